"""Semantic segmentation on a feature pyramid: VT-FPN, which relates the levels by visual tokens, and the plain FPN.

Wu et al., "Visual Transformers: Token-based Image Representation and Processing for Computer Vision" (2020), section
4 and Tables 9, 10; the plain pyramid and the head of both: Kirillov et al., "Panoptic Feature Pyramid Networks" (CVPR
2019), section 3.1. What the paper counts as the FPN module is `SemanticFPN.neck`; multiply-adds with ResNet-50's maps:

| | 800x1216 | paper | 473x473 | paper |
|---|---|---|---|---|
| neck="fpn" | 55.1 G | 55.1 G | 12.9 G | 12.8 G |
| neck="vt" | 8.2 G | 8.5 G | 2.0 G | 2.0 G |

VT-FPN's count leaves room for 1x1 convolutions to 256 channels, which are 7.5 G of it, and for 8 tokens a level only
when each level takes up its own tokens; keys and queries are 256 wide, as Eq. 5 has them. Where the paper is silent: a
BatchNorm follows each level, as it follows the plain pyramid's convolutions.

Shape legend: B batch, (h_l, w_l) map of level l, 0 the finest, D pyramid channels, L tokens a level, C_T their width.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.layers.token_projector import TokenProjector
from grouping_zoo.layers.token_relation import TokenTransformer
from grouping_zoo.layers.visual_tokenizer import FilterTokenizer, Projection
from grouping_zoo.models.builder import COMMON_CFG, build_network, packaged_weights, refuse_weight_sources
from grouping_zoo.models.checkpoint import BackboneSource, asked_for, load_backbone
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork, check_choice, check_sizes, register_family

__all__ = ["SemanticFPN"]


class PlainNeck(nn.Module):
    """Feature pyramid: 1x1 convolutions, a sum from coarse to fine, 3x3 convolutions."""

    def __init__(self, in_channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.laterals = _lateral_convolutions(in_channels, dim)
        self.outputs = nn.ModuleList(ConvNormAct(dim, dim, 3, apply_act=False) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the levels, from fine to coarse, to as many with D channels."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            finer = merged[level]
            merged[level] = finer + F.interpolate(merged[level + 1], size=finer.shape[-2:], mode="nearest")
        return [output(x) for output, x in zip(self.outputs, merged, strict=True)]


class VTLevel(NamedTuple):
    """What a level of `VTNeck` makes.

    Attributes:
        features: (B, D, h_l, w_l).
        tokens: (B, L, C_T), after the transformer.
        attention: (B, L, h_l * w_l) the tokenizer's, rows sum to 1.
        assignment: (B, h_l * w_l, L) the projector's, rows sum to 1.
    """

    features: Tensor
    tokens: Tensor
    attention: Tensor
    assignment: Tensor


class VTNeck(nn.Module):
    """Tokens of every level, one transformer over all of them, and back onto each level (Figure 4).

    Args:
        in_channels: of each level.
        dim: D.
        num_tokens: L.
        token_dim: C_T.
        token_gradient: share of the tokens' gradient that reaches the levels that they are made of.
    """

    def __init__(
        self, in_channels: Sequence[int], dim: int, num_tokens: int, token_dim: int, token_gradient: float = 1.0
    ) -> None:
        super().__init__()
        self.token_gradient = token_gradient
        self.laterals = _lateral_convolutions(in_channels, dim)
        self.tokenizers = nn.ModuleList(FilterTokenizer(dim, token_dim, num_tokens) for _ in in_channels)
        self.transformer = TokenTransformer(token_dim)
        self.projectors = nn.ModuleList(TokenProjector(dim, dim, token_dim, key_dim=dim) for _ in in_channels)
        # What all pixels of all images are told alike goes, as after the plain pyramid's convolutions.
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in in_channels)
        for projector in self.projectors:
            # Fresh tokens tell all pixels nearly the same, louder than the levels tell what is there: they start mute.
            if isinstance(projector.value, Projection):
                nn.init.zeros_(projector.value.weight)

    def forward_levels(self, maps: Sequence[Tensor]) -> list[VTLevel]:
        """See `forward`, with the tokens and where they lie."""
        laterals = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        sources = laterals
        if self.token_gradient != 1 and torch.is_grad_enabled():
            sources = [x.detach() + self.token_gradient * (x - x.detach()) for x in laterals]
        pooled = [tokenizer(x) for tokenizer, x in zip(self.tokenizers, sources, strict=True)]
        related = self.transformer(torch.cat([tokens for tokens, _ in pooled], dim=1))  # (B, levels * L, C_T)
        levels = []
        for x, (_, attention), tokens, projector, norm in zip(
            laterals, pooled, related.chunk(len(laterals), dim=1), self.projectors, self.norms, strict=True
        ):
            features, assignment = projector(x, tokens)
            levels.append(VTLevel(norm(features), tokens, attention, assignment))
        return levels

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the levels, from fine to coarse, to as many with D channels."""
        return [level.features for level in self.forward_levels(maps)]


class SemanticHead(nn.Module):
    """Brings every level to the finest one's size, by convolutions and upsampling in turns, and sums them."""

    branches: Any

    def __init__(self, dim: int, out_dim: int, num_levels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(ConvNormAct(out_dim if step else dim, out_dim, 3) for step in range(max(1, level)))
            for level in range(num_levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, D, h_l, w_l) of each level to (B, D', h_0, w_0)."""
        merged = torch.zeros((), device=maps[0].device, dtype=maps[0].dtype)
        for level, (branch, x) in enumerate(zip(self.branches, maps, strict=True)):
            for step, convolution in enumerate(branch):
                x = convolution(x)
                if level:
                    size = maps[level - step - 1].shape[-2:]
                    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            merged = merged + x
        return merged


@register_family
class SemanticFPN(GroupingNetwork):
    """A timm backbone, a pyramid over its levels, and a prediction for every pixel of the finest level.

    Any image size that the backbone takes; in training, BatchNorm needs more than one value a channel, so that a batch
    of one image must be larger than the coarsest level's stride.

    Args:
        backbone: name of a timm model that has `features_only`.
        backbone_args: its arguments.
        levels: indices of the backbone's maps, from fine to coarse; the prediction has the size of the first.
        neck: "vt" or "fpn".
        dim: D.
        num_tokens: L; of neck "vt".
        token_dim: C_T; of neck "vt".
        token_gradient: share of the tokens' gradient that reaches the levels that they are made of; of neck "vt". At 1
            short trainings from scratch go by the tokens, which know little yet, rather than by the pixels.
        head_dim: channels of the head.
        in_chans: input channels.
        num_classes: classes of a pixel; 0 for none.
        drop_rate: dropout of whole channels before the classifier.

    Raises:
        ValueError: on unknown settings.
    """

    predicts_pixels = True

    def __init__(
        self,
        backbone: str = "resnet50",
        backbone_args: dict[str, Any] | None = None,
        levels: Sequence[int] = (1, 2, 3, 4),
        neck: Literal["vt", "fpn"] = "vt",
        dim: int = 256,
        num_tokens: int = 8,
        token_dim: int = 1024,
        token_gradient: float = 1.0,
        head_dim: int = 128,
        in_chans: int = 3,
        num_classes: int = 171,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("neck", neck, ("vt", "fpn"))
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, dim=dim, head_dim=head_dim)
        _check_backbone(backbone, backbone_args or {})
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = head_dim
        self.token_dim = token_dim
        self.has_token_attention = neck == "vt"
        self.backbone = timm.create_model(
            backbone, features_only=True, out_indices=tuple(levels), in_chans=in_chans, **(backbone_args or {})
        )
        channels = self.backbone.feature_info.channels()
        self.neck: PlainNeck | VTNeck = (
            VTNeck(channels, dim, num_tokens, token_dim, token_gradient) if neck == "vt" else PlainNeck(channels, dim)
        )
        self.head: nn.Module = SemanticHead(dim, head_dim, len(channels))
        self.head_drop = nn.Dropout2d(drop_rate)
        self.classifier = nn.Conv2d(head_dim, num_classes, 1) if num_classes else nn.Identity()
        reductions = self.backbone.feature_info.reduction()
        self.feature_info = [
            dict(num_chs=dim, reduction=reduction, module=f"neck.{level}") for level, reduction in enumerate(reductions)
        ]

    # --- the timm surface -------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: the backbone, then everything else."""
        return dict(stem=r"^backbone", blocks=r"^neck")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: the backbone is recomputed in the backward pass."""
        getattr(self.backbone, "model", self.backbone).set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The 1x1 convolution, or Identity."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new classifier of `num_classes` (0: none) in place; there is no pooling."""
        if global_pool:
            raise ValueError(f"global_pool: expected None or '', a segmentation network has none, got {global_pool!r}")
        self.num_classes = num_classes
        parameter = next(self.head.parameters())
        self.classifier = nn.Conv2d(self.num_features, num_classes, 1).to(parameter) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the merged levels (B, head_dim, h_0, w_0)."""
        return self.head(self.neck(self._levels(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classifies every cell, unless `pre_logits`: (B, num_classes, h_0, w_0)."""
        x = self.head_drop(x)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes, h_0, w_0), a quarter of the image's size with four ResNet levels."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The pyramid's maps.

        Args:
            x: images (B, in_chans, H, W).
            indices: levels to take: the last n, or a list; all if omitted.
            norm: without effect: the maps have no norm that follows.
            stop_early: without effect: every level depends on all.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        take, _ = feature_take_indices(len(self.feature_info), indices)
        maps = self.neck(self._levels(x))
        taken = [maps[index] for index in take]
        return taken if intermediates_only else (self.head(maps), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the head; every level of the pyramid depends on all of the rest. Returns `indices`, counted from 0."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.head = nn.Identity()
            self.num_classes, self.classifier = 0, nn.Identity()
        return take

    # --- grouping ---------------------------------------------------------------------------------------------------

    @property
    def grouping_heads(self) -> int:
        """None of a plain FPN."""
        return int(self.has_token_attention)

    @property
    def grouping_levels(self) -> int:
        """The cells of a pyramid level's map and its tokens; none of a plain FPN."""
        return 2 if self.has_token_attention else 0

    @property
    def grouping_args(self) -> dict[str, Any]:
        """See `forward_grouping`."""
        return dict(level=0) if self.has_token_attention else {}

    @property
    def segment_width(self) -> int:
        """C_T."""
        return self.token_dim

    def forward_grouping(self, x: Tensor, level: int = 0) -> Grouping:
        """Groups an image batch by the tokens of one level of the pyramid, 0 the finest: the projector's assignment.

        Raises:
            ValueError: of a plain FPN, which makes no groups, or on a level that is not there.
        """
        return _grouping(self._vt_levels(x)[self._level(level)])

    def forward_grouped(self, x: Tensor, level: int = 0) -> GroupedFeatures:
        """Features, the maps of `forward_intermediates`, and `forward_grouping`, in one pass."""
        maps = self._levels(x)
        if not isinstance(self.neck, VTNeck):
            found = self.neck(maps)
            return GroupedFeatures(self.head(found), found, None)
        levels = self.neck.forward_levels(maps)
        found = [level.features for level in levels]
        return GroupedFeatures(self.head(found), found, _grouping(levels[self._level(level)]))

    def token_attention(self, x: Tensor, level: int = -1, size: tuple[int, int] | None = None) -> Tensor:
        """Where the tokens of one level look (Figures 5, 7).

        Args:
            x: images (B, in_chans, H, W).
            level: 0 is the finest, -1 the coarsest.
            size: (H, W) of the maps, interpolated bilinearly; the level's own if omitted.

        Returns:
            (B, L, h_l, w_l), each token's map sums to 1; (B, L, H, W) where a size is given.
        """
        maps = _attention_maps(self._vt_levels(x)[self._level(level)])
        return maps if size is None else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def forward_grouping_with_attention(self, x: Tensor, level: int = 0) -> tuple[Grouping, Tensor]:
        """`forward_grouping` of a level, and `token_attention` of the coarsest, from one pass."""
        levels = self._vt_levels(x)
        return _grouping(levels[self._level(level)]), _attention_maps(levels[-1])

    def _vt_levels(self, x: Tensor) -> list[VTLevel]:
        if not isinstance(self.neck, VTNeck):
            raise ValueError("neck: expected 'vt' for a grouping, got 'fpn', which makes no groups")
        return self.neck.forward_levels(self._levels(x))

    def _level(self, level: int) -> int:
        count = len(self.feature_info)
        if not -count <= level < count:
            raise ValueError(f"level: expected -{count} to {count - 1}, got {level}")
        return level

    def _levels(self, x: Tensor) -> list[Tensor]:
        self.check_images(x)
        maps = self.backbone(x)
        # Some of timm's transformers keep channels last.
        return [m.permute(0, 3, 1, 2) for m in maps] if self.backbone.output_fmt == "NHWC" else maps


def _attention_maps(level: VTLevel) -> Tensor:
    """(B, L, h_l * w_l) attention as maps (B, L, h_l, w_l)."""
    return level.attention.unflatten(2, level.features.shape[-2:])


def _grouping(level: VTLevel) -> Grouping:
    rows, columns = level.features.shape[-2:]
    return Grouping(assignments=[level.assignment[:, None]], tokens=[level.tokens], grid=(rows, columns))


def _check_backbone(backbone: str, arguments: dict[str, Any]) -> None:
    # The settings may come from an untrusted checkpoint: they may name an architecture and nothing else.
    if not timm.is_model(backbone):
        raise ValueError(f"backbone: expected the name of one of timm's models, got {backbone!r}")
    refuse_weight_sources(arguments, "backbone_args")


def _lateral_convolutions(in_channels: Sequence[int], dim: int) -> nn.ModuleList:
    return nn.ModuleList(ConvNormAct(channels, dim, 1, apply_act=False) for channels in in_channels)


# --- variants -------------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return (
        COMMON_CFG
        | dict(
            num_classes=171,
            input_size=(3, 512, 512),
            crop_pct=1.0,
            interpolation="bilinear",
            first_conv="backbone.conv1",
            classifier="classifier",
        )
        | kwargs
    )


_NANO_CFG = dict(num_classes=9, input_size=(3, 64, 64), interpolation="bicubic", first_conv="backbone.conv1.0")

default_cfgs = generate_default_cfgs(
    {
        "vt_fpn_resnet50.untrained": _cfg(),
        "vt_fpn_resnet101.untrained": _cfg(),
        "semantic_fpn_resnet50.untrained": _cfg(),
        "semantic_fpn_resnet101.untrained": _cfg(),
        "vt_fpn_nano.scenes": _cfg(**packaged_weights("vt_fpn_nano_scenes"), **_NANO_CFG),
        "semantic_fpn_nano.untrained": _cfg(**_NANO_CFG),
    }
)

_NANO_ARGS: dict[str, Any] = dict(
    backbone="resnet18",
    backbone_args=dict(layers=(1, 1, 1, 1), channels=(24, 48, 96, 192), stem_type="deep", stem_width=12),
    dim=64,
    num_tokens=8,
    token_dim=192,
    token_gradient=0.1,
    head_dim=64,
)


def _create(
    variant: str, pretrained: bool, pretrained_backbone: BackboneSource | None = None, **kwargs: Any
) -> nn.Module:
    """Builds a variant; its backbone starts from `pretrained_backbone` (see `load_backbone`), if not `pretrained`."""
    source = asked_for(pretrained_backbone, pretrained, kwargs)
    network = build_network(SemanticFPN, variant, pretrained, (0, 1, 2, 3), **kwargs)
    if source is not None:
        backbone = (network.model if kwargs.get("features_only") else network).backbone
        inner = getattr(backbone, "model", backbone)
        load_backbone(inner, source, ("",), in_chans=kwargs.get("in_chans", 3))
    return network


@register_model
def vt_fpn_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VT-FPN on ResNet-50."""
    return _create("vt_fpn_resnet50", pretrained, **kwargs)


@register_model
def vt_fpn_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VT-FPN on ResNet-101."""
    return _create("vt_fpn_resnet101", pretrained, **{"backbone": "resnet101", **kwargs})


@register_model
def semantic_fpn_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain FPN on ResNet-50."""
    return _create("semantic_fpn_resnet50", pretrained, **{"neck": "fpn", **kwargs})


@register_model
def semantic_fpn_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain FPN on ResNet-101."""
    return _create("semantic_fpn_resnet101", pretrained, **{"neck": "fpn", "backbone": "resnet101", **kwargs})


@register_model
def vt_fpn_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A VT-FPN for a laptop, on a plain nano ResNet; 64x64 images, the scenes' eight shapes and background."""
    return _create("vt_fpn_nano", pretrained, **{**_NANO_ARGS, **kwargs})


@register_model
def semantic_fpn_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain FPN of the same backbone as `vt_fpn_nano`."""
    return _create("semantic_fpn_nano", pretrained, **{**_NANO_ARGS, "neck": "fpn", **kwargs})
