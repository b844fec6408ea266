"""GroupViT's vision encoder as a timm model.

Xu et al., "GroupViT: Semantic Segmentation Emerges from Text Supervision" (CVPR 2022), section 3.1. Written from the
paper and the description in Sharma, "Improving Visual Grouping and Visual-Text Alignment for Open-Vocabulary
Segmentation" (2023), section 4.2; names and shapes of the official checkpoints in `groupvit_checkpoint`.

Shape legend: B batch, N tokens of a stage (N_0 patches on an h x w grid), G group tokens, M output groups, C width,
S segments that leave the network.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.layers.conv_stem import ConvStem
from grouping_zoo.layers.token_assignment import AssignmentMode, GroupingBlock, TokenMixer
from grouping_zoo.models.builder import COMMON_CFG, build_network, packaged_weights
from grouping_zoo.models.family import (
    GroupedFeatures,
    GroupingNetwork,
    check_choice,
    pad_to_patches,
    patch_grid,
    register_family,
)
from grouping_zoo.models.groupvit_checkpoint import checkpoint_filter_fn

__all__ = ["GroupViT"]

LAYER_NORM_EPS = 1e-5
POOLS = ("avg", "")


class GroupProjector(nn.Module):
    """Turns the group tokens that leave one stage into an offset of the next stage's: (B, G, C) -> (B, G', C)."""

    def __init__(self, dim: int, num_previous: int, num_group_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mixer = TokenMixer(num_previous, dim // 2, num_group_tokens)

    def forward(self, groups: Tensor) -> Tensor:
        """Normalises, then mixes the group tokens."""
        return self.mixer(self.norm(groups))


class GroupingStage(nn.Module):
    """Transformer blocks over [segments; group tokens], then a grouping block; the last stage may have neither.

    Args:
        dim: width C.
        num_heads: attention heads.
        drop_path: stochastic depth rate of each block; their number is the stage's depth.
        num_group_tokens: G; 0 for a stage without grouping.
        num_output_groups: M.
        num_previous: group tokens that leave the stage before; 0 in the first stage.
        mlp_ratio: hidden width of the MLPs over C.
        assign_mlp_ratio: hidden widths over C of the grouping block's token mixer and last MLP.
        assignment: see `grouping_zoo.layers.token_assignment.TokenAssignment`.
        assignment_temperature: likewise.
        group_content: see `grouping_zoo.layers.token_assignment.GroupingBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_path: Sequence[float],
        num_group_tokens: int,
        num_output_groups: int,
        num_previous: int,
        mlp_ratio: float,
        assign_mlp_ratio: tuple[float, float],
        assignment: AssignmentMode,
        assignment_temperature: float,
        group_content: bool,
    ) -> None:
        super().__init__()
        norm_layer: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.num_group_tokens = num_group_tokens
        self.grad_checkpointing = False
        self.group_tokens = nn.Parameter(torch.zeros(1, num_group_tokens, dim)) if num_group_tokens else None
        self.group_projector = (
            GroupProjector(dim, num_previous, num_group_tokens) if num_previous and num_group_tokens else None
        )
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=norm_layer) for rate in drop_path
        )
        self.grouping = (
            GroupingBlock(
                dim,
                num_heads,
                num_group_tokens,
                num_output_groups,
                mlp_ratio,
                assign_mlp_ratio,
                assignment,
                assignment_temperature,
                LAYER_NORM_EPS,
                group_content,
            )
            if num_group_tokens
            else None
        )

    def forward_blocks(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The blocks alone: segments (B, N, C) and group tokens (B, G, C), if the stage has any, after them."""
        groups = None
        if self.group_tokens is not None:
            groups = self.group_tokens.expand(x.shape[0], -1, -1)
            if self.group_projector is not None:
                groups = groups + self.group_projector(previous)
            x = torch.cat([x, groups], dim=1)  # (B, N + G, C)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing and torch.is_grad_enabled() else block(x)
        if groups is not None:
            x, groups = x[:, : -self.num_group_tokens], x[:, -self.num_group_tokens :]
        return x, groups


@register_family
class GroupViT(GroupingNetwork):
    """Vision transformer that merges its patch tokens into ever fewer segments.

    Args:
        img_size: size the position embedding is made for; any other size works too, by interpolation.
        patch_size: side of a patch in pixels (a power of two with `stem="conv"`).
        in_chans: input channels.
        num_classes: classes of the linear head; 0 for none.
        global_pool: "avg", the mean over the segments, or "" for none.
        embed_dim: width C.
        depths: transformer blocks of each stage.
        num_heads: attention heads.
        num_group_tokens: group tokens of each stage; 0, allowed in the last stage alone, for no grouping.
        num_output_groups: groups each stage makes; entries of stages without grouping are ignored.
        mlp_ratio: hidden width of the MLPs over C.
        assign_mlp_ratio: hidden widths over C of the grouping blocks' token mixer and last MLP.
        stem: "patch", one convolution as published, or "conv", 3x3 convolutions of stride 2.
        stem_depth: further 3x3 convolutions on the token grid, with `stem="conv"`.
        assignment: "gumbel" (as published), "hard" or "soft"; see `TokenAssignment`.
        assignment_temperature: temperature of the Gumbel sampling.
        group_content: False keeps the group tokens' own content out of the segments; see `GroupingBlock`.
        unit_init: False draws the linear weights with deviation 0.02 (as published); True with 1 / sqrt(inputs), half
            that in the assignments' logits, and the first stage's group tokens with 1: at small widths 0.02 makes all
            groups alike and training starts at a saddle point.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Raises:
        ValueError: on lists that do not fit together.
    """

    embed_dim: int
    patch_embed: Any
    stages: Any

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "avg",
        embed_dim: int = 384,
        depths: Sequence[int] = (6, 3, 3),
        num_heads: int = 6,
        num_group_tokens: Sequence[int] = (64, 8, 0),
        num_output_groups: Sequence[int] = (64, 8, 0),
        mlp_ratio: float = 4.0,
        assign_mlp_ratio: tuple[float, float] = (0.5, 4.0),
        stem: str = "patch",
        stem_depth: int = 0,
        assignment: AssignmentMode = "gumbel",
        assignment_temperature: float = 1.0,
        group_content: bool = True,
        unit_init: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_stages(depths, num_group_tokens, num_output_groups)
        check_choice("global_pool", global_pool, POOLS)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim: expected a multiple of num_heads ({num_heads}), got {embed_dim}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.unit_init = unit_init
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.patch_size = to_2tuple(patch_size)
        self.patch_embed = _make_stem(stem, img_size, patch_size, in_chans, embed_dim, stem_depth)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim))

        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        previous = [0, *num_group_tokens[:-1]]
        self.stages = nn.ModuleList(
            GroupingStage(
                embed_dim,
                num_heads,
                rates[i].tolist(),
                num_group_tokens[i],
                num_output_groups[i],
                previous[i],
                mlp_ratio,
                assign_mlp_ratio,
                assignment,
                assignment_temperature,
                group_content,
            )
            for i in range(len(depths))
        )
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            dict(module=f"stages.{i}", num_chs=embed_dim, reduction=patch_size) for i in range(len(depths))
        ]
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal weights (see `unit_init`), zero biases; group tokens of later stages start at zero."""
        if self.pos_embed.is_meta:  # nothing to fill, which takes timm long
            return
        self.apply(_init_module)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.get_parameter("stages.0.group_tokens"), std=1.0 if self.unit_init else 0.02)
        if self.unit_init:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            for stage in self.stages:
                if stage.grouping is not None:  # softer at first: a saturated softmax passes no gradient
                    stage.grouping.assignment.q_proj.weight.data.mul_(0.5)
                    stage.grouping.assignment.k_proj.weight.data.mul_(0.5)

    # --- the timm surface -------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {"pos_embed"} | {f"stages.{i}.group_tokens" for i, s in enumerate(self.stages) if s.num_group_tokens}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return dict(
            stem=r"^pos_embed|^patch_embed",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:group_tokens|group_projector)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.grouping", (99998,)),
                (r"^norm", (99999,)),
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
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head.apply(_init_module).to(self.pos_embed.device, self.pos_embed.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Segments of an image batch: (B, in_chans, H, W) -> (B, S, C), normalised."""
        return self._encode(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools segments (B, S, C) to (B, C) and, unless `pre_logits`, classifies: (B, num_classes)."""
        if self.global_pool == "avg":
            x = x.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes), or the pooled feature (B, C) without a head."""
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
        """Features after the blocks of each stage.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages to take: the last n, or a list; all if omitted.
            norm: apply the final norm to each.
            stop_early: leave out the stages after the last one taken (only with `intermediates_only`).
            output_fmt: "NCHW": (B, C, h, w), later stages' segments spread over the patch grid by the soft
                assignments; "NLC": the stage's own tokens (B, N, C).
            intermediates_only: return the list alone.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        stop = last + 1 if stop_early and intermediates_only else None
        final, features, assignments, _ = self._encode(x, stop=stop)
        grid = patch_grid(x, self.patch_size).size
        taken = []
        for index in take:
            feature = self.norm(features[index]) if norm else features[index]  # (B, N, C)
            if output_fmt == "NCHW":
                for assignment in reversed(assignments[:index]):
                    feature = assignment.to(feature.dtype) @ feature
                feature = feature.transpose(1, 2).unflatten(2, grid)  # (B, C, h, w)
            taken.append(feature)
        return taken if intermediates_only else (final, taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages that `indices` does not need; returns the indices that stay."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    # --- grouping ---------------------------------------------------------------------------------------------------

    @property
    def grouping_levels(self) -> int:
        """The patches, and one level for each grouping stage."""
        return 1 + sum(stage.grouping is not None for stage in self.stages)

    def forward_grouped(self, x: Tensor) -> GroupedFeatures:
        """Features, each stage's tokens after its blocks (B, N, C), and the grouping, its last tokens normalised."""
        segments, stage_tokens, assignments, tokens = self._encode(x)
        grid, extent = patch_grid(x, self.patch_size)
        grouping = Grouping(
            assignments=[a[:, None] for a in assignments], tokens=[*tokens[:-1], segments], grid=grid, extent=extent
        )
        return GroupedFeatures(segments, stage_tokens, grouping)

    def tokens_as_segments(self, stage_tokens: list[Tensor]) -> Tensor:
        """What each token that enters the last grouping would be as a segment of its own, normalised: (B, N, C).

        Args:
            stage_tokens: from `forward_grouped`.

        Raises:
            ValueError: if blocks follow the last grouping: they relate segments to each other.
        """
        last = max(i for i, stage in enumerate(self.stages) if stage.grouping is not None)
        if any(len(stage.blocks) for stage in self.stages[last + 1 :]):
            raise ValueError(
                f"depths: expected no block after the last grouping (stage {last}), so that a token can be a segment "
                "of its own; set the later depths to 0"
            )
        return self.norm(self.stages[last].grouping.singletons(stage_tokens[last]))

    def _embed(self, x: Tensor) -> Tensor:
        """Patch tokens with position: (B, in_chans, H, W) -> (B, N_0, C)."""
        self.check_images(x)
        grid, _ = patch_grid(x, self.patch_size)
        x = self.patch_embed(pad_to_patches(x, self.patch_size))
        # Plain bicubic, as the official code: antialiasing would change the kernel.
        pos_embed = resample_abs_pos_embed(
            self.pos_embed, list(grid), list(self.patch_embed.grid_size), num_prefix_tokens=0, antialias=False
        )
        return x + pos_embed

    def _encode(self, x: Tensor, stop: int | None = None) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Runs the stages.

        Returns:
            normalised segments (B, S, C); each stage's tokens after its blocks; each soft assignment (B, N, M);
            the tokens each grouping made (B, M, C).
        """
        x = self._embed(x)
        groups: Tensor | None = None
        features, assignments, tokens = [], [], []
        for stage in self.stages[:stop]:
            x, groups = stage.forward_blocks(x, groups)
            features.append(x)
            if stage.grouping is not None:
                x, assignment = stage.grouping(x, groups)
                assignments.append(assignment)
                tokens.append(x)
        return self.norm(x), features, assignments, tokens


def _init_module(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def _check_stages(depths: Sequence[int], num_group_tokens: Sequence[int], num_output_groups: Sequence[int]) -> None:
    if not len(depths) == len(num_group_tokens) == len(num_output_groups):
        raise ValueError(
            "depths, num_group_tokens and num_output_groups: expected one entry a stage in each, got "
            f"{tuple(depths)}, {tuple(num_group_tokens)} and {tuple(num_output_groups)}"
        )
    if not num_group_tokens or num_group_tokens[0] < 1 or any(n < 1 for n in num_group_tokens[:-1]):
        raise ValueError(
            f"num_group_tokens: expected at least 1 in every stage but the last, got {tuple(num_group_tokens)}"
        )
    if any(g and m < 1 for g, m in zip(num_group_tokens, num_output_groups, strict=True)):
        raise ValueError(
            f"num_output_groups: expected at least 1 in every stage that groups, got {tuple(num_output_groups)}"
        )


def _make_stem(
    stem: str, img_size: int | tuple[int, int], patch_size: int, in_chans: int, dim: int, depth: int
) -> nn.Module:
    if stem == "conv":
        return ConvStem(img_size, patch_size, in_chans, dim, depth)
    if stem == "patch":
        norm_layer = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        return PatchEmbed(img_size, patch_size, in_chans, dim, norm_layer=norm_layer, strict_img_size=False)
    raise ValueError(f"stem: expected 'patch' or 'conv', got {stem!r}")


# --- variants -------------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return COMMON_CFG | dict(crop_pct=1.0) | kwargs


default_cfgs = generate_default_cfgs(
    {
        "groupvit_small_patch16_224.untrained": _cfg(),
        "groupvit_nano_patch4_64.scenes": _cfg(
            **packaged_weights("groupvit_nano_scenes"),
            input_size=(3, 64, 64),
            first_conv="patch_embed.layers.0",
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    stages = tuple(range(len(kwargs["depths"])))
    return build_network(GroupViT, variant, pretrained, stages, filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def groupvit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GroupViT as published: 16x16 patches, 64 then 8 groups; 28.8 M parameters."""
    return _create("groupvit_small_patch16_224", pretrained, **{"depths": (6, 3, 3), **kwargs})


@register_model
def groupvit_nano_patch4_64(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A GroupViT for a laptop: 64x64 images, tokens of 4x4 pixels from a convolution stem, one grouping into 12.

    The stem stands in for the transformer blocks before the grouping, and nothing mixes the segments after it: so a
    token knows its surroundings alone, and every segment speaks for its own pixels.
    """
    model_args: dict[str, Any] = dict(
        img_size=64,
        patch_size=4,
        stem="conv",
        stem_depth=3,
        embed_dim=64,
        num_heads=2,
        depths=(0, 0),
        num_group_tokens=(12, 0),
        num_output_groups=(12, 0),
        mlp_ratio=2.0,
        assign_mlp_ratio=(0.5, 2.0),
        assignment="soft",
        group_content=False,
        unit_init=True,
    )
    return _create("groupvit_nano_patch4_64", pretrained, **{**model_args, **kwargs})
