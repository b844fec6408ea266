"""CAST as a timm model: a vision transformer on segment tokens that graph pooling merges into ever larger regions.

Ke et al., "CAST: Concurrent Recognition and Segmentation with Adaptive Segment Tokens" (2022), section 3; names and
shapes of the official checkpoints in `cast_checkpoint`.

Shape legend: B batch, (H, W) image, (h, w) stem's grid, N_l tokens of stage l (N_0 superpixels), A heads, C width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.layers.sampling import CentroidMethod
from grouping_zoo.layers.segment_pooling import (
    check_superpixels,
    interpolated_pooling,
    nearest_labels,
    nearest_pooling,
)
from grouping_zoo.layers.superpixels import (
    SUPERPIXEL_METHODS,
    SuperpixelMethod,
    make_superpixels,
    superpixel_count,
    superpixels_by_size,
)
from grouping_zoo.models.builder import COMMON_CFG, build_network, packaged_weights
from grouping_zoo.models.cast_checkpoint import checkpoint_filter_fn
from grouping_zoo.models.cast_parts import (
    LAYER_NORM_EPS,
    CASTStage,
    LevelFusion,
    OverlappingStem,
    init_linear,
    sincos_position_code,
)
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork, check_choice, register_family

__all__ = ["CAST"]

POOLS = ("token", "")


class ClassAttention(NamedTuple):
    """Attention of the class token to the tokens of one block: `weights` (B, A, N_l) and where the tokens lie."""

    weights: Tensor
    level: int
    grouping: Grouping

    def maps(self, size: tuple[int, int] | None = None) -> Tensor:
        """Every pixel with its token's attention: (B, A, H, W)."""
        labels = self.grouping.labels(self.level, size)  # (B, H, W)
        index = labels.flatten(1)[:, None].expand(-1, self.weights.shape[1], -1)
        return self.weights.gather(2, index).unflatten(2, tuple(labels.shape[1:]))


class Encoded(NamedTuple):
    """What one pass finds.

    Attributes:
        cls_tokens: class token after the blocks of each stage, (B, 1, C).
        tokens: tokens after the blocks of each stage, (B, N_l, C).
        valid: which of them the image itself has, (B, N_l) bool, or None for all.
        assignments: soft assignment of each graph pooling, (B, N_l, N_{l+1}).
        pooled: tokens each graph pooling made, (B, N_{l+1}, C).
        superpixels: (B, H, W) int64.
        attention: weights (B, A, N_l) of the class token in the block that was asked for.
    """

    cls_tokens: list[Tensor]
    tokens: list[Tensor]
    valid: list[Tensor | None]
    assignments: list[Tensor]
    pooled: list[Tensor]
    superpixels: Tensor
    attention: Tensor | None


@register_family
class CAST(GroupingNetwork):
    """Vision transformer whose tokens are superpixels, merged after each stage into fewer, larger segments.

    The feature is the class token after the last stage's blocks. What follows them, the last graph pooling, only
    makes the coarsest level of the grouping; no loss on the features reaches it, so it is frozen, as is the fixed
    position code.

    Args:
        img_size: size the position code is made for; any other size works too, by interpolation.
        in_chans: input channels.
        num_classes: classes of the linear head; 0 for none.
        global_pool: "token", the image's feature in front of the tokens, or "" for none.
        embed_dim: width C.
        depths: transformer blocks of each stage.
        num_heads: attention heads, in the blocks and in the poolings.
        num_clusters: clusters that each stage's pooling makes, at most; changeable per call.
        mlp_ratio: hidden width of the MLPs and poolings over C.
        stem_strides: strides of the stem's 3x3 convolutions.
        dense: the variant for segmentation: features are resized to the label map before they are averaged, all
            levels are fused at the superpixels, and the image's feature is the mean of the fused tokens.
        superpixel_method: how superpixels are made where none are given: "seeds" as published, "slic", or "grid"
            for square patches.
        superpixel_size: side in pixels of a square as large as a superpixel that is made.
        centroids: "farthest" as published, "random", "kmedoids" or "kmeans".
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Raises:
        ValueError: on settings that do not fit together.
    """

    input_names: ClassVar[tuple[str, ...]] = ("superpixels",)
    has_class_attention = True

    embed_dim: int
    patch_embed: Any
    stages: Any

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depths: Sequence[int] = (3, 3, 3, 2),
        num_heads: int = 12,
        num_clusters: Sequence[int] = (64, 32, 16, 8),
        mlp_ratio: float = 4.0,
        stem_strides: Sequence[int] = (2, 2, 2, 1),
        dense: bool = False,
        superpixel_method: SuperpixelMethod = "seeds",
        superpixel_size: int = 16,
        centroids: CentroidMethod = "farthest",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        _check_width(embed_dim, num_heads, len(stem_strides))
        if superpixel_size < 1:
            raise ValueError(f"superpixel_size: expected at least 1 pixel, got {superpixel_size}")
        if superpixel_method not in SUPERPIXEL_METHODS:
            raise ValueError(f"superpixel_method: expected one of {SUPERPIXEL_METHODS}, got {superpixel_method!r}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.dense = dense
        self.superpixel_method = superpixel_method
        self.superpixel_size = superpixel_size
        self.num_clusters = _check_clusters(num_clusters, len(depths))
        self.patch_embed = OverlappingStem(img_size, in_chans, embed_dim, stem_strides)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_position_code(self.patch_embed.grid_size, embed_dim), requires_grad=False)

        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.stages = nn.ModuleList(
            CASTStage(embed_dim, num_heads, rate.tolist(), mlp_ratio, centroids) for rate in rates
        )
        self.stages[-1].pooling.requires_grad_(False)
        self.fusion = LevelFusion(embed_dim, len(depths)) if dense else None
        self.norm: nn.Module = nn.Identity() if dense else nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        reduction = 1
        for stride in stem_strides:
            reduction *= stride
        self.feature_info = [
            dict(module=f"stages.{i}", num_chs=embed_dim, reduction=reduction) for i in range(len(depths))
        ]
        self.init_weights()

    def init_weights(self) -> None:
        """MoCo-v3's start (Chen et al., ICCV 2021): Xavier weights, zero biases, a tiny class token."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                init_linear(module, parts=3 if name.endswith("qkv") else 1)
        nn.init.normal_(self.cls_token, std=1e-6)

    # --- the timm surface -------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {"cls_token", "pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return dict(
            stem=r"^cls_token|^pos_embed|^patch_embed",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.pooling", (99998,)),
                (r"^norm|^fusion", (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: blocks are recomputed in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new head of `num_classes` (0: none) in place, and another pooling if given."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes).to(self.cls_token.device, self.cls_token.dtype)
            init_linear(self.head)

    def forward_features(
        self, x: Tensor, superpixels: Tensor | None = None, num_clusters: Sequence[int] | None = None
    ) -> Tensor:
        """Features of an image batch.

        Args:
            x: normalised images (B, in_chans, H, W).
            superpixels: (B, H, W) int64 label map; made from `x` if omitted.
            num_clusters: clusters of each stage, in place of the model's own.

        Returns:
            (B, 1 + N, C): the image's feature in front, then the tokens of the last stage, all normalised. Of the
            dense variant: the mean of the fused tokens, then the fused token of each superpixel.
        """
        return self._features(self._encode(x, superpixels, num_clusters, pool_last=False))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Takes the image's feature (B, C) of (B, 1 + N, C) and, unless `pre_logits`, classifies: (B, num_classes)."""
        if self.global_pool == "token":
            x = x[:, 0]
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(
        self, x: Tensor, superpixels: Tensor | None = None, num_clusters: Sequence[int] | None = None
    ) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes), or the feature (B, C) without a head; see `forward_features`."""
        return self.forward_head(self.forward_features(x, superpixels, num_clusters))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        superpixels: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after the blocks of each stage.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages to take: the last n, or a list; all if omitted.
            norm: apply the final norm to each.
            stop_early: leave out the stages after the last one taken (only with `intermediates_only`).
            output_fmt: "NCHW": (B, C, h, w), each cell of the stem's grid with the token its superpixel belongs to;
                "NLC": the stage's own tokens (B, N, C).
            intermediates_only: return the list alone.
            superpixels: see `forward_features`.
            num_clusters: see `forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        stop = last + 1 if stop_early and intermediates_only else None
        encoded = self._encode(x, superpixels, num_clusters, pool_last=False, stop=stop)
        cells = nearest_labels(encoded.superpixels, self.patch_embed.grid(*x.shape[-2:]))  # (B, h, w)
        chains = _parent_chains(encoded)
        taken = []
        for index in take:
            feature = self.norm(encoded.tokens[index]) if norm else encoded.tokens[index]  # (B, N, C)
            if output_fmt == "NCHW":
                feature = _gather_tokens(feature, chains[index].gather(1, cells.flatten(1)))
                feature = feature.transpose(1, 2).unflatten(2, tuple(cells.shape[1:]))  # (B, C, h, w)
            taken.append(feature)
        return taken if intermediates_only else (self._features(encoded), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages that `indices` does not need; returns the indices that stay."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        self.num_clusters = self.num_clusters[: last + 1]
        self.stages[-1].pooling.requires_grad_(False)  # which the features do not need, see the class
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fusion = None
            self.reset_classifier(0)
        return take

    # --- grouping ---------------------------------------------------------------------------------------------------

    @property
    def grouping_levels(self) -> int:
        """The superpixels, and the clusters of each stage."""
        return 1 + len(self.stages)

    @property
    def grouping_args(self) -> dict[str, Any]:
        """See `forward_features`."""
        return dict(num_clusters=self.num_clusters)

    def segment_grouping(self, grouped: GroupedFeatures) -> Grouping:
        """The last stage's tokens as segments (of the dense variant the fused superpixels), all normalised.

        The coarsest level of the grouping itself comes from a pooling that no loss on features trains.
        """
        assert grouped.grouping is not None
        tokens = grouped.features[:, 1:]  # (B, N, C)
        if self.dense:
            eye = torch.eye(tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
            assignment = eye.expand(tokens.shape[0], 1, -1, -1)
            return replace(grouped.grouping, assignments=[assignment], tokens=[tokens])
        assignments, pooled = grouped.grouping.assignments[:-1], grouped.grouping.tokens[:-2]
        return replace(grouped.grouping, assignments=assignments, tokens=[*pooled, tokens])

    def input_makers(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Superpixels of a view, as many as fit by their size."""
        make = partial(superpixels_by_size, size=self.superpixel_size, method=self.superpixel_method)
        return dict(superpixels=make)

    def forward_grouped(
        self, x: Tensor, superpixels: Tensor | None = None, num_clusters: Sequence[int] | None = None
    ) -> GroupedFeatures:
        """Features, each stage's tokens (B, N_l, C), and the grouping: superpixels, then each stage's clusters."""
        encoded = self._encode(x, superpixels, num_clusters, pool_last=True)
        return GroupedFeatures(self._features(encoded), encoded.tokens, _grouping(encoded))

    def class_attention(
        self,
        x: Tensor,
        block: int,
        superpixels: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
    ) -> ClassAttention:
        """Attention of the class token to the tokens in one block.

        Args:
            x: images (B, in_chans, H, W).
            block: which block, counted from 0 over all stages (the paper's 9th block is 8); negative from the end.
            superpixels: see `forward_features`.
            num_clusters: see `forward_features`.

        Returns:
            the weights, softmax over the class token and the tokens with the former's share left out.
        """
        starts = [sum(len(stage.blocks) for stage in self.stages[:i]) for i in range(len(self.stages) + 1)]
        if not -starts[-1] <= block < starts[-1]:
            raise ValueError(f"block: expected -{starts[-1]} to {starts[-1] - 1}, got {block}")
        block %= starts[-1]
        level = max(i for i, start in enumerate(starts[:-1]) if start <= block)
        encoded = self._encode(x, superpixels, num_clusters, pool_last=True, attend=(level, block - starts[level]))
        assert encoded.attention is not None
        return ClassAttention(encoded.attention, level, _grouping(encoded))

    def make_superpixels(self, x: Tensor) -> Tensor:
        """Superpixels (B, H, W) int64 of normalised images (B, in_chans, H, W), as the model makes them itself."""
        mean, std = (torch.tensor(self.pretrained_cfg[key], device=x.device).view(-1, 1, 1) for key in ("mean", "std"))
        images = x.detach().float()
        if len(mean) != x.shape[1]:
            images, mean, std = images.mean(dim=1, keepdim=True), mean.mean(), std.mean()
        images = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        number = superpixel_count(x.shape[-2], x.shape[-1], self.superpixel_size)
        return make_superpixels(images, number, self.superpixel_method).labels

    def _encode(
        self,
        x: Tensor,
        superpixels: Tensor | None,
        num_clusters: Sequence[int] | None,
        pool_last: bool,
        stop: int | None = None,
        attend: tuple[int, int] | None = None,
    ) -> Encoded:
        """Runs the stages; the last one's pooling only with `pool_last`."""
        self.check_images(x)
        clusters = self.num_clusters if num_clusters is None else _check_clusters(num_clusters, len(self.stages))
        if superpixels is None:
            superpixels = self.make_superpixels(x)
        check_superpixels(superpixels, x)
        superpixels = superpixels.to(x.device, torch.int64)
        tokens, valid, empty = self._embed(x, superpixels)
        cls_token = self.cls_token.expand(x.shape[0], -1, -1)
        encoded = Encoded([], [], [], [], [], superpixels, None)
        for i, stage in enumerate(self.stages[:stop]):
            block = attend[1] if attend is not None and attend[0] == i else None
            joined, attention = stage.forward_blocks(torch.cat([cls_token, tokens], dim=1), valid, block)
            cls_token, tokens = joined[:, :1], joined[:, 1:]
            encoded.cls_tokens.append(cls_token)
            encoded.tokens.append(tokens)
            encoded.valid.append(valid)
            if attention is not None:
                encoded = encoded._replace(attention=attention)
            if i + 1 < len(self.stages) or pool_last:
                cls_token, tokens, valid, assignment = stage.pooling(cls_token, tokens, clusters[i], valid, empty)
                valid, empty = _unless_all(valid), None
                encoded.assignments.append(assignment)
                encoded.pooled.append(tokens)
        return encoded

    def _embed(self, x: Tensor, superpixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Segment tokens (B, N_0, C) with position, which of them are the image's own, and which hold no cell."""
        features = self.patch_embed(x)  # (B, h * w, C)
        grid = self.patch_embed.grid(*x.shape[-2:])
        size = self.patch_embed.grid_size
        number = int(superpixels.max()) + 1 if x.shape[0] else 1
        if not self.dense:
            labels = nearest_labels(superpixels, grid)
            pos_embed = self.pos_embed
            if grid != size:
                pos_embed = resample_abs_pos_embed(
                    pos_embed, list(grid), list(size), num_prefix_tokens=0, antialias=False
                )
            pooling = nearest_pooling(labels, number)
            tokens = pooling.to(features.dtype) @ (features + pos_embed)
        else:
            labels = superpixels
            pooling = interpolated_pooling(superpixels, grid, number, "bilinear")
            position_pooling = interpolated_pooling(superpixels, size, number, "bicubic")
            tokens = pooling.to(features.dtype) @ features + position_pooling.to(self.pos_embed.dtype) @ self.pos_embed
        # The official code counts an image's labels on the map it averages with.
        valid = torch.arange(number, device=x.device) <= labels.flatten(1).amax(dim=1, keepdim=True)
        return tokens, _unless_all(valid), pooling.sum(dim=2) == 0

    def _features(self, encoded: Encoded) -> Tensor:
        """See `forward_features`."""
        if self.fusion is None:
            return self.norm(torch.cat([encoded.cls_tokens[-1], encoded.tokens[-1]], dim=1))
        chains = _parent_chains(encoded)
        levels = [_gather_tokens(tokens, chain) for tokens, chain in zip(encoded.tokens, chains, strict=True)]
        valid = encoded.valid[0]
        fused = self.fusion(levels, valid)  # (B, N_0, C)
        count = fused.shape[1] if valid is None else valid.sum(dim=1)[:, None, None]
        return torch.cat([fused.sum(dim=1, keepdim=True) / count, fused], dim=1)


def _grouping(encoded: Encoded) -> Grouping:
    return Grouping(
        assignments=[a[:, None] for a in encoded.assignments], tokens=encoded.pooled, superpixels=encoded.superpixels
    )


def _parent_chains(encoded: Encoded) -> list[Tensor]:
    """For each stage the token that every superpixel belongs to, by the arg-max of each assignment: (B, N_0)."""
    first = encoded.tokens[0]
    chains = [torch.arange(first.shape[1], device=first.device).expand(len(first), -1)]
    for assignment in encoded.assignments[: len(encoded.tokens) - 1]:
        chains.append(assignment.argmax(dim=2).gather(1, chains[-1]))
    return chains


def _gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, C) at (B, M): (B, M, C)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def _unless_all(mask: Tensor) -> Tensor | None:
    """None for a mask that keeps everything: attention without a mask is faster."""
    return None if mask.all() else mask


def _check_width(embed_dim: int, num_heads: int, num_convolutions: int) -> None:
    if min(embed_dim, num_heads) < 1:
        raise ValueError(f"embed_dim and num_heads: expected at least 1, got {embed_dim} and {num_heads}")
    for divisor, what in (
        (4, "the position code"),
        (num_heads, "num_heads"),
        (2 ** (num_convolutions - 1), "the stem"),
    ):
        if embed_dim % divisor:
            raise ValueError(f"embed_dim: expected a multiple of {divisor}, for {what}, got {embed_dim}")


def _check_clusters(num_clusters: Sequence[int], num_stages: int) -> tuple[int, ...]:
    if len(num_clusters) != num_stages or any(number < 1 for number in num_clusters):
        raise ValueError(
            f"num_clusters: expected {num_stages} numbers of at least 1, one a stage, got {tuple(num_clusters)}"
        )
    return tuple(num_clusters)


# --- variants -------------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return COMMON_CFG | dict(num_classes=1000, first_conv="patch_embed.proj.0") | kwargs


default_cfgs = generate_default_cfgs(
    {
        "cast_small.untrained": _cfg(),
        "cast_base.untrained": _cfg(),
        "cast_small_deep.untrained": _cfg(),
        "cast_base_deep.untrained": _cfg(),
        "cast_seg_small.untrained": _cfg(),
        "cast_seg_base.untrained": _cfg(),
        "cast_nano.scenes": _cfg(
            **packaged_weights("cast_nano_scenes"), num_classes=0, input_size=(3, 64, 64), crop_pct=1.0
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_network(CAST, variant, pretrained, (0, 1, 2, 3), filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def cast_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAST-S: width 384, 11 blocks; 28.3 M parameters."""
    return _create("cast_small", pretrained, **kwargs)


@register_model
def cast_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAST-B: width 768, 11 blocks."""
    return _create("cast_base", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def cast_small_deep(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAST-SD: width 384, 15 blocks."""
    return _create("cast_small_deep", pretrained, **{"depths": (6, 3, 3, 3), **kwargs})


@register_model
def cast_base_deep(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAST-BD: width 768, 15 blocks."""
    return _create("cast_base_deep", pretrained, **{"embed_dim": 768, "depths": (6, 3, 3, 3), **kwargs})


@register_model
def cast_seg_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAST-S for segmentation; (320, 160, 80, 40) clusters at 512x512."""
    return _create("cast_seg_small", pretrained, **{"dense": True, **kwargs})


@register_model
def cast_seg_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CAST-B for segmentation; (320, 160, 80, 40) clusters at 512x512."""
    return _create("cast_seg_base", pretrained, **{"dense": True, "embed_dim": 768, **kwargs})


@register_model
def cast_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A CAST for a laptop: width 64, 6 blocks, 64x64 images of about 64 superpixels, a stem of stride 2."""
    model_args: dict[str, Any] = dict(
        img_size=64,
        embed_dim=64,
        depths=(2, 1, 1, 2),
        num_heads=4,
        num_clusters=(32, 16, 8, 4),
        stem_strides=(2, 1, 1),
        superpixel_size=8,
    )
    return _create("cast_nano", pretrained, **{**model_args, **kwargs})
