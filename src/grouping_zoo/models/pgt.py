"""The Perceptual Group Tokenizer (PGT) as a timm model: a backbone of grouping layers alone, without self-attention.

Deng et al., "Perceptual Group Tokenizer: Building Perception with Iterative Grouping" (ICLR 2024), section 3.2 and 4.1.

Shape legend: B batch, (H, W) image, (h, w) patch grid, N = h * w input tokens, D their width, A grouping heads, M group
tokens a head, d their width, C feature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed, trunc_normal_
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.layers.attention_pooling import AttentionPooling
from grouping_zoo.layers.multi_grouping import Entropies, GroupingLayer, MultiGrouping, Seeding
from grouping_zoo.models.builder import COMMON_CFG, build_network, packaged_weights
from grouping_zoo.models.family import (
    GroupedFeatures,
    GroupingNetwork,
    check_choice,
    check_sizes,
    pad_to_patches,
    patch_grid,
    register_family,
)

__all__ = ["PGT"]

DEPTHS = (10, 10, 10)
POOLS = ("map", "")

# At initialisation, beside weights scaled by fan-in and the GRU's usual ones: an update gate near 0 lets what a group
# binds replace what it was, instead of an even mixture. Chosen on short supervised trainings of the nano.
KEY_DEVIATION = 3.0
GRU_SCALE = 2.0
UPDATE_BIAS = 2.0

Groups = int | Sequence[int]
"""Group tokens a head: of all layers, or one number for each block."""


class LayerStep(NamedTuple):
    """What one layer makes of its `inputs` (B, N, D): refined `tokens` (B, N, D) and `groups` (B, A, M, d)."""

    inputs: Tensor
    tokens: Tensor
    groups: Tensor


@register_family
class PGT(GroupingNetwork):
    """Perceptual Group Tokenizer: each layer groups the input tokens and refines them by what their groups found.

    Group tokens start from random draws, so that their number M, and the number of binding iterations K, can be
    changed per call without training anew (section 4.3). In training each image and layer has draws of its own, from
    the device's random state. At evaluation, or with `seed`, all images and layers share draws made from the seed (0
    unless given) alone: an image then gets the same features at any time, in any batch and on any device, and the
    global random state is left alone.

    The feature comes from the last layer's group tokens. What that layer hands back to the input tokens counts for
    dense tasks only: a loss on the feature does not reach it.

    Args:
        img_size: size the position embedding is made for; any other size works too, by interpolation.
        patch_size: side of a patch in pixels.
        in_chans: input channels.
        num_classes: classes of the linear head; 0 for none.
        global_pool: "map", the learnable query's attention to the group tokens, or "" for none.
        embed_dim: width D of the input tokens.
        depths: grouping layers of each block.
        group_dims: width d of the group tokens in each block ("token size" in Table 2).
        num_heads: grouping heads A; 1 with `num_groups` A times as large is single grouping.
        num_groups: group tokens M of each head, in all layers or for each block ("token shape" in Table 2); changeable
            per call.
        num_iters: binding iterations K; changeable per call.
        mlp_ratio: hidden width of the layers' MLPs over D.
        group_mlp_ratio: hidden width of the group tokens' MLPs over d.
        seeding: distribution that group tokens are drawn from, "gaussian" or "flow".
        learn_seeds: train that distribution; see `MultiGrouping`.
        feature_dim: width C of the feature and its query.
        feature_heads: heads of the attention that pools.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last layer, rising linearly from 0.

    Raises:
        ValueError: on settings that do not fit together.
    """

    has_assignment_entropies = True

    patch_embed: Any
    layers: Any

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "map",
        embed_dim: int = 384,
        depths: Sequence[int] = DEPTHS,
        group_dims: Sequence[int] = (98, 192, 288),
        num_heads: int = 6,
        num_groups: Groups = 256,
        num_iters: int = 3,
        mlp_ratio: float = 1.0,
        group_mlp_ratio: float = 1.0,
        seeding: Seeding = "gaussian",
        learn_seeds: bool = True,
        feature_dim: int = 2048,
        feature_heads: int = 8,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        if len(depths) != len(group_dims) or not depths or min(depths) < 1:
            raise ValueError(
                "depths and group_dims: expected one entry a block in each, depths of at least 1, got "
                f"{tuple(depths)} and {tuple(group_dims)}"
            )
        check_sizes(embed_dim=embed_dim, num_heads=num_heads)
        if min(group_dims) < 1:
            raise ValueError(f"group_dims: expected widths of at least 1, got {tuple(group_dims)}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.embed_dim = embed_dim
        self.depths = tuple(depths)
        self.group_dims = tuple(group_dims)
        self.num_heads = num_heads
        self.num_groups = _groups_of_layers(num_groups, depths)
        self.num_iters = _check_iters(num_iters)
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, strict_img_size=False)
        self.patch_size = self.patch_embed.patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim))
        widths = [width for width, depth in zip(group_dims, depths, strict=True) for _ in range(depth)]
        rates = torch.linspace(0, drop_path_rate, len(widths), device="cpu").tolist()
        self.layers = nn.ModuleList(
            GroupingLayer(
                embed_dim,
                MultiGrouping(embed_dim, width, num_heads, number, num_iters, group_mlp_ratio, seeding, learn_seeds),
                mlp_ratio,
                rate,
            )
            for width, number, rate in zip(widths, self.num_groups, rates, strict=True)
        )
        self.norm = nn.Identity()
        self.pool = AttentionPooling(group_dims[-1], feature_dim, feature_heads) if global_pool else None
        self.num_features = self.head_hidden_size = feature_dim if global_pool else group_dims[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            dict(module=f"layers.{i}", num_chs=embed_dim, reduction=patch_size) for i in range(len(widths))
        ]
        # Drawn once: a generator inside of an exported or traced program would go on drawing.
        self.evaluation_noise = self._draw_noise(max(self.num_groups), 0)
        self.init_weights()

    def init_weights(self) -> None:
        """Weights scaled by fan-in, zero biases, unit Gaussian seeds, and assignments that are decisive from the start.

        At the usual deviation of 0.02, and still with keys of unit deviation, a token would belong to all groups nearly
        alike; the groups would then hold the same mean of all tokens, and what is left of the seeds.
        """
        if self.pos_embed.is_meta:  # nothing to fill, which takes timm long
            return
        for module in self.modules():
            _init_linear(module)
        for layer in self.layers:
            _init_binding(layer.grouping)
        trunc_normal_(self.pos_embed, std=0.02)

    # --- the timm surface -------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        seeds = {f"layers.{i}.grouping.seeds.{name}" for i in range(len(self.layers)) for name in ("mean", "scale")}
        return {"pos_embed"} | seeds | ({"pool.query"} if self.pool is not None else set())

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return dict(
            stem=r"^pos_embed|^patch_embed",
            blocks=r"^layers\.(\d+)" if coarse else [(r"^layers\.(\d+)", None), (r"^pool", (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: layers are recomputed in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new head of `num_classes` (0: none) in place; `global_pool=""` drops the pooling for good."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
            if global_pool and self.pool is None:
                raise ValueError("global_pool: expected '', as the pooling was dropped, got 'map'; create a new model")
            self.global_pool = global_pool
            if not global_pool:
                self.pool = None
                self.num_features = self.head_hidden_size = self.layers[-1].grouping.group_dim
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _init_linear(self.head.to(self.pos_embed.device, self.pos_embed.dtype))

    def forward_features(
        self, x: Tensor, num_groups: Groups | None = None, num_iters: int | None = None, seed: int | None = None
    ) -> Tensor:
        """The last layer's group tokens.

        Args:
            x: images (B, in_chans, H, W).
            num_groups: group tokens M of each head, in all layers or for each block, in place of the model's own.
            num_iters: binding iterations K, in place of the model's own.
            seed: of the draws that group tokens start from. Omitted: 0 at evaluation, fresh draws in training.

        Returns:
            (B, A * M, d), head by head.
        """
        *_, last = self._steps(x, num_groups, num_iters, seed)
        return last.groups.flatten(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools group tokens (B, A * M, d) to (B, C) and, unless `pre_logits`, classifies: (B, num_classes)."""
        if self.pool is not None:
            x = self.pool(x)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(
        self, x: Tensor, num_groups: Groups | None = None, num_iters: int | None = None, seed: int | None = None
    ) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes), or the feature (B, C) without a head; see `forward_features`."""
        return self.forward_head(self.forward_features(x, num_groups, num_iters, seed))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Refined input tokens after each layer.

        Args:
            x: images (B, in_chans, H, W).
            indices: layers to take: the last n, or a list; all if omitted.
            norm: without effect: the network ends in no norm.
            stop_early: leave out the layers after the last one taken (only with `intermediates_only`).
            output_fmt: "NCHW": (B, D, h, w); "NLC": (B, N, D).
            intermediates_only: return the list alone.
            num_groups: see `forward_features`.
            num_iters: see `forward_features`.
            seed: see `forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.layers), indices)
        found = {}
        for index, step in enumerate(self._steps(x, num_groups, num_iters, seed)):
            if index in take:
                tokens = self.norm(step.tokens) if norm else step.tokens
                found[index] = tokens if output_fmt == "NLC" else self._spread(tokens, x)
            if index == last and stop_early and intermediates_only:
                break
        taken = [found[index] for index in take]
        return taken if intermediates_only else (step.groups.flatten(1, 2), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the layers that `indices` does not need; returns the indices that stay."""
        take, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    # --- grouping ---------------------------------------------------------------------------------------------------

    @property
    def grouping_heads(self) -> int:
        """Each head groups on its own."""
        return self.num_heads

    @property
    def grouping_levels(self) -> int:
        """The patches and their groups."""
        return 2

    @property
    def grouping_args(self) -> dict[str, Any]:
        """See `forward_grouping`."""
        starts = (end - depth for end, depth in zip(accumulate(self.depths), self.depths, strict=True))
        num_groups = tuple(self.num_groups[start] for start in starts)  # one a block, as a call takes them
        return dict(layer=-1, head=None, num_groups=num_groups, num_iters=self.num_iters, seed=0)

    def forward_grouping(
        self,
        x: Tensor,
        layer: int = -1,
        head: int | None = None,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
    ) -> Grouping:
        """Groups an image batch as one layer does: one level, M groups, an assignment for each grouping head.

        Each head groups on its own, so that its groups are of use alone: take one with `head`, here or of the result.

        Args:
            x: images (B, in_chans, H, W).
            layer: which one, counted from 0; negative from the end.
            head: the one head that is wanted; all if omitted.
            num_groups: see `forward_features`.
            num_iters: see `forward_features`.
            seed: see `forward_features`.

        Returns:
            assignments (B, A, N, M); a group's features are those of all heads side by side, (B, M, A * d). A is 1
            where a head was asked for.
        """
        layer = self._layer(layer)
        for index, step in enumerate(self._steps(x, num_groups, num_iters, seed)):
            if index == layer:
                return self._grouping(x, layer, step, head)
        raise AssertionError("the layer is one of those that ran")

    def forward_grouped(
        self,
        x: Tensor,
        layer: int = -1,
        head: int | None = None,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
    ) -> GroupedFeatures:
        """Features, the refined input tokens of each layer (B, N, D), and `forward_grouping`, in one pass."""
        layer = self._layer(layer)
        stage_tokens = []
        for index, step in enumerate(self._steps(x, num_groups, num_iters, seed)):
            stage_tokens.append(step.tokens)
            if index == layer:
                grouping = self._grouping(x, layer, step, head)
        return GroupedFeatures(step.groups.flatten(1, 2), stage_tokens, grouping)

    @property
    def segment_width(self) -> int:
        """d of the last block."""
        return self.group_dims[-1]

    def segment_grouping(self, grouped: GroupedFeatures) -> Grouping:
        """The group tokens of all heads side by side as segments: every head shares out an equal part of each token."""
        assert grouped.grouping is not None
        (assignment,) = grouped.grouping.assignments  # (B, A, N, M)
        joined = assignment.transpose(1, 2).flatten(2)[:, None] / assignment.shape[1]  # (B, 1, N, A * M)
        return replace(grouped.grouping, assignments=[joined], tokens=[grouped.features])

    def assignment_entropies(
        self, x: Tensor, num_groups: Groups | None = None, num_iters: int | None = None, seed: int | None = None
    ) -> Entropies:
        """Entropies of p(c) and p(c|x) in each layer and head (section 4.2, A.2.1); arguments as `forward_features`.

        Returns:
            in nats, each (layers, A).
        """
        steps = zip(self.layers, self._steps(x, num_groups, num_iters, seed), strict=True)
        found = [layer.grouping.entropies(step.inputs, step.groups) for layer, step in steps]
        return Entropies(*(torch.stack(part) for part in zip(*found, strict=True)))

    def _layer(self, layer: int) -> int:
        number = len(self.layers)
        if not -number <= layer < number:
            raise ValueError(f"layer: expected -{number} to {number - 1}, got {layer}")
        return layer % number

    def _grouping(self, x: Tensor, layer: int, step: LayerStep, head: int | None) -> Grouping:
        if head is not None and not -self.num_heads <= head < self.num_heads:
            raise ValueError(f"head: expected -{self.num_heads} to {self.num_heads - 1}, got {head}")
        chosen = None if head is None else head % self.num_heads
        assignment = self.layers[layer].grouping.assignment(step.inputs, step.groups, chosen)
        groups = step.groups if chosen is None else step.groups[:, chosen : chosen + 1]
        grid, extent = patch_grid(x, self.patch_size)
        return Grouping(assignments=[assignment], tokens=[groups.transpose(1, 2).flatten(2)], grid=grid, extent=extent)

    def _spread(self, tokens: Tensor, x: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, patch_grid(x, self.patch_size).size)  # (B, D, h, w)

    def _embed(self, x: Tensor) -> Tensor:
        """Patch tokens with position, (B, N, D); images are padded at the bottom and right to whole patches."""
        self.check_images(x)
        grid, _ = patch_grid(x, self.patch_size)
        pos_embed = resample_abs_pos_embed(
            self.pos_embed, list(grid), list(self.patch_embed.grid_size), num_prefix_tokens=0, antialias=False
        )
        return self.patch_embed(pad_to_patches(x, self.patch_size)) + pos_embed

    def _steps(
        self, x: Tensor, num_groups: Groups | None, num_iters: int | None, seed: int | None
    ) -> Iterator[LayerStep]:
        """Runs the layers one by one."""
        numbers = self.num_groups if num_groups is None else _groups_of_layers(num_groups, self.depths)
        iters = self.num_iters if num_iters is None else _check_iters(num_iters)
        noise = None if self.training and seed is None else self._noise(max(numbers), seed or 0).to(x.device)
        tokens = self._embed(x)
        # A pruned network has fewer layers than numbers.
        for layer, number in zip(self.layers, numbers, strict=False):
            inputs = tokens
            if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
                tokens, groups = checkpoint(layer, inputs, noise, number, iters)
            else:
                tokens, groups = layer(inputs, noise, number, iters)
            yield LayerStep(inputs, tokens, groups)

    def _noise(self, num_groups: int, seed: int) -> Tensor:
        """Noise of a seed; that of seed 0 for the model's own number of groups is kept."""
        kept = self.evaluation_noise
        return kept if seed == 0 and num_groups == kept.shape[1] else self._draw_noise(num_groups, seed)

    def _draw_noise(self, num_groups: int, seed: int) -> Tensor:
        """Unit Gaussian (A, M, d of the widest block), drawn on the CPU so that devices agree."""
        generator = torch.Generator().manual_seed(seed)
        shape = (num_groups, self.num_heads, max(self.group_dims))
        # Not in the default precision, which transformers changes while it makes a network.
        noise = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        return noise.transpose(0, 1)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_binding(grouping: MultiGrouping) -> None:
    with torch.no_grad():
        grouping.key.weight *= KEY_DEVIATION
        gru, dim = grouping.gru, grouping.group_dim
        gru.weight_ih *= GRU_SCALE
        gru.weight_hh *= GRU_SCALE
        gru.bias_ih[dim : 2 * dim] -= UPDATE_BIAS


def _check_iters(num_iters: int) -> int:
    if num_iters < 1:
        raise ValueError(f"num_iters: expected at least 1 iteration, got {num_iters}")
    return num_iters


def _groups_of_layers(num_groups: Groups, depths: Sequence[int]) -> tuple[int, ...]:
    """Group tokens a head in each layer."""
    blocks = [num_groups] * len(depths) if isinstance(num_groups, int) else list(num_groups)
    if len(blocks) != len(depths) or min(blocks) < 1:
        raise ValueError(
            f"num_groups: expected a number of at least 1, or {len(depths)} of them, one a block, got {num_groups}"
        )
    return tuple(number for number, depth in zip(blocks, depths, strict=True) for _ in range(depth))


# --- variants -------------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return COMMON_CFG | kwargs


default_cfgs = generate_default_cfgs(
    {
        "pgt_tiny.untrained": _cfg(),
        "pgt_small.untrained": _cfg(),
        "pgt_base.untrained": _cfg(),
        "pgt_base_flow.untrained": _cfg(),
        "pgt_nano.photos": _cfg(**packaged_weights("pgt_nano_photos"), input_size=(3, 64, 64), crop_pct=1.0),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    ends = tuple(end - 1 for end in accumulate(kwargs.get("depths", DEPTHS)))
    return build_network(PGT, variant, pretrained, ends, **kwargs)


@register_model
def pgt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PGT-Tiny: width 256, 2 layers a block, feature 512; 9.9 M parameters."""
    return _create("pgt_tiny", pretrained, **{"embed_dim": 256, "depths": (2, 2, 2), "feature_dim": 512, **kwargs})


@register_model
def pgt_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PGT-S: width 384, 4 layers a block; 34.6 M parameters."""
    return _create("pgt_small", pretrained, **{"depths": (4, 4, 4), **kwargs})


@register_model
def pgt_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PGT-B with Gaussian seeds: width 384, 10 layers a block; 70.2 M parameters."""
    return _create("pgt_base", pretrained, **kwargs)


@register_model
def pgt_base_flow(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PGT-B with seeds from a flow; 117 M parameters."""
    return _create("pgt_base_flow", pretrained, **{"seeding": "flow", **kwargs})


@register_model
def pgt_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A PGT for a laptop: width 96, 1 layer a block, 64x64 images, 16 groups in each of 3 heads; 0.36 M parameters.

    Patches of 8x8 pixels: DINO needs many passes over many crops, and with 4x4 ones less than half as many fit in the
    same time. Larger images give finer groups.
    """
    model_args: dict[str, Any] = dict(
        img_size=64,
        patch_size=8,
        embed_dim=96,
        depths=(1, 1, 1),
        group_dims=(24, 32, 48),
        num_heads=3,
        num_groups=16,
        feature_dim=256,
    )
    return _create("pgt_nano", pretrained, **{**model_args, **kwargs})
