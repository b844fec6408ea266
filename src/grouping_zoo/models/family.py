"""The contract of a grouping network: what every architecture of this package offers to the code around it.

A family subclasses `GroupingNetwork`, implements `forward_grouped`, states what differs from the defaults here, and
keeps timm's surface (`forward_features`, `forward_head`, `forward_intermediates`, ...) in its own file.

Shape legend: B batch, (H, W) image, N tokens, C width, (h, w) feature map, K classes.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping


class GroupedFeatures(NamedTuple):
    """Result of one pass of a grouping network.

    Attributes:
        features: as `forward_features` returns them.
        stages: output of each stage: tokens (B, N, C), or a feature map (B, C, h, w) of stages without tokens.
        grouping: assignment of the image's tokens to groups; None of a variant that makes no groups.
    """

    features: Tensor
    stages: list[Tensor]
    grouping: Grouping | None


class GroupingNetwork(nn.Module):
    """Base class of the timm models of this package.

    Attributes:
        input_names: tensors that `forward` and its siblings take beside the images, each with a maker in
            `input_makers`; the network makes those that are not given.
        predicts_pixels: the features and the head are those of every pixel, not of the image.
        has_class_attention: `class_attention(x, block)` returns where the class token looks.
        has_token_attention: `token_attention(x)` returns where each visual token looks.
        has_assignment_entropies: `assignment_entropies(x)` returns entropies of each layer's assignment.
        in_chans: input channels.
        num_classes: classes of the head, 0 for none.
        num_features: width of the features.
        pretrained_cfg: timm's description of the input and of the weights.
    """

    input_names: ClassVar[tuple[str, ...]] = ()
    predicts_pixels: bool = False
    has_class_attention: bool = False
    has_token_attention: bool = False
    has_assignment_entropies: bool = False

    in_chans: int
    num_classes: int
    num_features: int
    pretrained_cfg: dict[str, Any]

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside those that timm leaves out of all models."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: parts are recomputed in the backward pass."""
        raise NotImplementedError

    @property
    def grouping_heads(self) -> int:
        """Number of heads that each group the image on their own; 1 where all heads share one grouping, 0 for none."""
        return 1

    @property
    def grouping_levels(self) -> int:
        """Number of levels of the grouping, the tokens on the image included; 0 where there is no grouping."""
        raise NotImplementedError

    @property
    def grouping_args(self) -> dict[str, Any]:
        """Keyword arguments of `forward_grouping` that may change from call to call, with the network's own values."""
        return {}

    def forward_grouped(self, x: Tensor, *args: Any, **kwargs: Any) -> GroupedFeatures:
        """Features, stages and grouping from one pass.

        Args:
            x: normalised images (B, in_chans, H, W).
            args: see `kwargs`.
            kwargs: some of `input_names` and `grouping_args`.
        """
        raise NotImplementedError

    def forward_grouping(self, x: Tensor, *args: Any, **kwargs: Any) -> Grouping:
        """Grouping of an image batch; see `forward_grouped`.

        Raises:
            ValueError: of a variant that makes no groups.
        """
        grouping = self.forward_grouped(x, *args, **kwargs).grouping
        if grouping is None:
            raise ValueError(f"{type(self).__name__}: this variant makes no groups; choose one that does")
        return grouping

    def forward_grouping_with_attention(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Grouping, Tensor | None]:
        """`forward_grouping` and, where `has_token_attention`, `token_attention`, from one pass.

        Raises:
            ValueError: of a variant that makes no groups.
        """
        return self.forward_grouping(x, *args, **kwargs), None

    @property
    def segment_width(self) -> int:
        """Width of the features of the groups that `segment_grouping` returns."""
        return self.num_features

    def segment_grouping(self, grouped: GroupedFeatures) -> Grouping:
        """Grouping whose coarsest groups are the segments that texts are compared with.

        Args:
            grouped: from `forward_grouped`.

        Returns:
            a grouping with one assignment head, whose `tokens[-1]` (B, S, `segment_width`) are the segments' features.

        Raises:
            ValueError: of a variant that makes no groups.
        """
        if grouped.grouping is None:
            raise ValueError(f"{type(self).__name__}: this variant makes no groups; choose one that does")
        return grouped.grouping

    def input_makers(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Makers of `input_names` from a uint8 view (3, H, W); they can be pickled and run in a loader's workers."""
        return {}

    def check_images(self, x: Tensor) -> None:
        """Checks the shape of an image batch.

        Raises:
            ValueError: unless it is (B, in_chans, H, W).
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            name = type(self).__name__
            raise ValueError(f"{name}: expected images of shape (B, {self.in_chans}, H, W), got {tuple(x.shape)}")


class PatchGrid(NamedTuple):
    """`size` (h, w) of the patch grid of an image, and the fraction of its height and width that the image covers."""

    size: tuple[int, int]
    extent: tuple[float, float]


def patch_grid(x: Tensor, patch_size: tuple[int, int]) -> PatchGrid:
    """Grid of the whole patches that cover images (B, C, H, W)."""
    height, width = x.shape[-2:]
    h, w = math.ceil(height / patch_size[0]), math.ceil(width / patch_size[1])
    return PatchGrid((h, w), (height / (h * patch_size[0]), width / (w * patch_size[1])))


def pad_to_patches(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Pads images (B, C, H, W) with zeros at the bottom and right to whole patches."""
    (h, w), _ = patch_grid(x, patch_size)
    right, bottom = w * patch_size[1] - x.shape[-1], h * patch_size[0] - x.shape[-2]
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks a setting that is one of some words.

    Raises:
        ValueError: if it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")


def check_sizes(**sizes: int) -> None:
    """Checks that sizes, by the names of their arguments, are at least 1.

    Raises:
        ValueError: for the first one that is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


Network = TypeVar("Network", bound=GroupingNetwork)
FAMILIES: dict[str, type[GroupingNetwork]] = {}
"""Network class of each family, by the module that defines it and registers its timm entry points."""


def register_family(network_class: type[Network]) -> type[Network]:
    """Class decorator that makes a family known; its timm entry points are those of the class' own module."""
    FAMILIES[network_class.__module__] = network_class
    return network_class


def as_grouping_network(network: nn.Module) -> GroupingNetwork | None:
    """The network if it is one of this package's, None for any other timm model."""
    return network if isinstance(network, GroupingNetwork) else None


def extra_inputs(network: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that a timm model takes beside the images."""
    return network.input_names if isinstance(network, GroupingNetwork) else ()
