"""Photos of any size to the groups that a model without text makes of them, level by level."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from grouping_zoo.inference.photos import network_input
from grouping_zoo.inference.resizing import MIN_SIDE, network_size
from grouping_zoo.inference.result import GroupSegmentation, Origin
from grouping_zoo.models.family import GroupingNetwork

MAX_PIXELS = 1_000_000  # that the network sees of a photo: what bounds the memory for superpixels and their pooling
MAX_NUMBER = 4096  # of groups of each head, ...: more fit neither a figure nor, with a photo's many tokens, the memory


class PhotoGrouper:
    """Groups photos at their own aspect ratio and size; only very long ones are widened for the network.

    Args:
        network: on its device, in evaluation mode.
        image_processor: of the checkpoint.
        size: the photo's shorter side for the network in pixels.
        level: the one level that is shown, 0 the finest, -1 the coarsest; None for all.
        grouping_args: arguments of `forward_grouping`, some of the network's own.

    Raises:
        ValueError: for a size below `MIN_SIDE`, a level that is not there, or an argument that the network does not
            have.
    """

    def __init__(
        self,
        network: GroupingNetwork,
        image_processor: Any,
        size: int,
        level: int | None,
        grouping_args: Mapping[str, Any],
    ) -> None:
        if size < MIN_SIDE:
            raise ValueError(f"size: expected at least {MIN_SIDE} pixels, got {size}; raise size")
        levels = network.grouping_levels
        if level is not None and not -levels <= level < levels:
            raise ValueError(f"level: expected -{levels} to {levels - 1}, got {level}")
        _check_arguments(network, grouping_args)
        self.network = network
        self.image_processor = image_processor
        self.size = size
        self.level = level
        self.grouping_args = dict(grouping_args)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that changes the result."""
        # A network's argument of the name "level" (VT-FPN's pyramid level) is left as it is.
        own = {name: value for name, value in self.network.grouping_args.items() if name != "level"}
        return {"size": self.size, "level": self.level} | own | self.grouping_args

    @torch.no_grad()
    def __call__(self, photo: Image.Image, origin: Origin) -> GroupSegmentation:
        """Group an RGB photo.

        Raises:
            ValueError: if the network would have to look at too many pixels.
        """
        width, height = (max(side, MIN_SIDE) for side in network_size(photo.size, self.size))
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"size: expected at most {MAX_PIXELS} pixels for the network, got {width}x{height} with the shorter "
                f"side at {self.size}; lower size"
            )
        device = next(self.network.parameters()).device
        preview, size, tensors = network_input(photo, (width, height), self.image_processor, device)
        pixels = tensors.pop("pixel_values")
        grouping, attention = self.network.forward_grouping_with_attention(pixels, **tensors, **self.grouping_args)
        return GroupSegmentation(
            image=photo,
            preview=preview,
            network_size=size,
            grouping=grouping.to("cpu"),
            origin=origin,
            level=self.level,
            token_attention=None if attention is None else attention[0].float().cpu().numpy(),
        )


def _check_arguments(network: GroupingNetwork, arguments: Mapping[str, Any]) -> None:
    own = network.grouping_args
    for name, value in arguments.items():
        if name not in own:
            offered = f"it has {', '.join(own)}" if own else "it has none of its own"
            raise ValueError(f"{name}: this model has no such setting; leave it out ({offered})")
        if name.startswith("num_") and isinstance(value, int) and value > MAX_NUMBER:
            raise ValueError(f"{name}: expected at most {MAX_NUMBER}, got {value}; lower it")
