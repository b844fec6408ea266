"""A family of one's own: Slot Attention as a fifth grouping network, in one file, without an edit of the package.

Locatello et al., "Object-Centric Learning with Slot Attention" (NeurIPS 2020), section 2.1 and Algorithm 1. Importing
the file registers `slot_attention_nano` with timm and with transformers. Run as a script it is the `grouping-zoo`
command with one more family:

    python examples/slot_attention.py train groupvit_nano_scenes_quick model.architecture=slot_attention_nano ...
    python examples/slot_attention.py segment docs/scene.png --model runs/mine/checkpoint

Shape legend: B batch, (H, W) image, (h, w) token grid, N = h * w tokens, S slots, C width, K classes.
"""

from typing import Any, ClassVar

import torch
from timm.layers import ConvNormAct
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from grouping_zoo import Grouping, cli
from grouping_zoo.hf.vision import (
    ZooBackbone,
    ZooForImageClassification,
    ZooForSemanticSegmentation,
    ZooVisionConfig,
    ZooVisionModel,
    pixel_logits,
    register_family,
)
from grouping_zoo.models.builder import COMMON_CFG, build_network
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork, check_choice, check_sizes
from grouping_zoo.models.family import register_family as register_network

__all__ = ["SlotAttention"]

POOLS = ("avg", "")
EPS = 1e-8  # of the weighted mean, as in Algorithm 1


# --- the network ----------------------------------------------------------------------------------------------------


class SlotBinding(nn.Module):
    """Algorithm 1: slots compete for the tokens and are updated by what they win.

    Args:
        dim: width C.
        num_iters: iterations T.
    """

    def __init__(self, dim: int, num_iters: int) -> None:
        super().__init__()
        self.num_iters = num_iters
        self.mean = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.log_scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm_tokens, self.norm_slots, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tensor, noise: Tensor, num_iters: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C) and noise (1 or B, S, C) to slots (B, S, C) and assignments (B, N, S), rows sum to 1."""
        tokens = self.norm_tokens(tokens)
        keys, values = self.key(tokens), self.value(tokens)
        slots = (self.mean + self.log_scale.exp() * noise).expand(tokens.shape[0], -1, -1)
        for _ in range(num_iters):
            queries = self.query(self.norm_slots(slots))
            logits = keys @ queries.transpose(1, 2) * keys.shape[2] ** -0.5  # (B, N, S)
            assignment = logits.softmax(dim=2)
            weights = assignment + EPS
            updates = (weights / weights.sum(dim=1, keepdim=True)).transpose(1, 2) @ values  # (B, S, C)
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots, assignment


@register_network
class SlotAttention(GroupingNetwork):
    """Convolutional encoder and slot attention; the image's feature is the mean of its slots.

    Args:
        in_chans: input channels.
        num_classes: classes of the head; 0 for none.
        global_pool: "avg", the mean over the slots, or "" for none.
        embed_dim: width C.
        depth: 3x3 convolutions of stride 2; the token grid is that many times halved.
        num_slots: S; changeable per call.
        num_iters: iterations T; changeable per call.
        dense: the variant whose features and head are those of every pixel: tokens and the slots they belong to.
        drop_rate: dropout before the head.
    """

    embed_dim: int

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depth: int = 2,
        num_slots: int = 7,
        num_iters: int = 3,
        dense: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        check_sizes(embed_dim=embed_dim, depth=depth, num_slots=num_slots, num_iters=num_iters)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_slots = num_slots
        self.predicts_pixels = dense
        self.grad_checkpointing = False
        self.patch_size = (2**depth, 2**depth)
        self.patch_embed = nn.Sequential(
            *(ConvNormAct(embed_dim if i else in_chans, embed_dim, 3, stride=2) for i in range(depth))
        )
        self.pos_embed = nn.Linear(4, embed_dim)
        self.binding = SlotBinding(embed_dim, num_iters)
        self.norm: nn.Module = nn.LayerNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [dict(module="patch_embed", num_chs=embed_dim, reduction=2**depth)]

    # --- the timm surface -------------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {"binding.mean", "binding.log_scale"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return dict(stem=r"^pos_embed", blocks=[(r"^patch_embed\.(\d+)", None), (r"^binding|^norm", (99999,))])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: the iterations are recomputed in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new head of `num_classes` (0: none) in place, and another pooling if given."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        parameter = next(self.parameters())
        self.head = nn.Linear(self.embed_dim, num_classes).to(parameter) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor, num_slots: int | None = None, num_iters: int | None = None) -> Tensor:
        """Images (B, in_chans, H, W) to slots (B, S, C), or with `dense` to a map (B, C, h, w)."""
        return self.forward_grouped(x, num_slots, num_iters).features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools slots to (B, C) and, unless `pre_logits`, classifies: (B, K); with `dense` (B, K, h, w)."""
        if self.predicts_pixels:
            x = self.head_drop(x)
            return x if pre_logits else self.head(x.movedim(1, -1)).movedim(-1, 1)
        if self.global_pool == "avg":
            x = x.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, num_slots: int | None = None, num_iters: int | None = None) -> Tensor:
        """See `forward_features` and `forward_head`."""
        return self.forward_head(self.forward_features(x, num_slots, num_iters))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The encoder's map (B, C, h, w), the only stage; arguments as in timm's networks."""
        check_choice("output_fmt", output_fmt, ("NCHW",))
        take, _ = feature_take_indices(len(self.feature_info), indices)
        if intermediates_only:
            return [self._encode(x) for _ in take]
        grouped = self.forward_grouped(x)
        return grouped.features, [grouped.stages[index] for index in take]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the head; returns the indices that stay."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.reset_classifier(0)
        return take

    # --- grouping ---------------------------------------------------------------------------------------------------

    @property
    def grouping_levels(self) -> int:
        """Tokens and slots."""
        return 2

    @property
    def grouping_args(self) -> dict[str, Any]:
        """See `forward_grouped`."""
        return dict(num_slots=self.num_slots, num_iters=self.binding.num_iters)

    def forward_grouped(self, x: Tensor, num_slots: int | None = None, num_iters: int | None = None) -> GroupedFeatures:
        """Features, the encoder's map, and the grouping of its cells into slots.

        Args:
            x: images (B, in_chans, H, W), any size.
            num_slots: S, in place of the model's own.
            num_iters: T, in place of the model's own.
        """
        encoded = self._encode(x)  # (B, C, h, w)
        noise = self._noise(encoded, self.num_slots if num_slots is None else num_slots)
        iterations = self.binding.num_iters if num_iters is None else num_iters
        arguments = (encoded.flatten(2).transpose(1, 2), noise, iterations)
        if self.grad_checkpointing and torch.is_grad_enabled():
            slots, assignment = checkpoint(self.binding, *arguments)
        else:
            slots, assignment = self.binding(*arguments)
        slots = self.norm(slots)
        grid = (encoded.shape[2], encoded.shape[3])
        features = slots
        if self.predicts_pixels:
            features = encoded + (assignment @ slots).transpose(1, 2).unflatten(2, grid)
        grouping = Grouping(assignments=[assignment[:, None]], tokens=[slots], grid=grid)
        return GroupedFeatures(features, [encoded], grouping)

    def _encode(self, x: Tensor) -> Tensor:
        """The encoder's map with position (section 2.2), (B, C, h, w)."""
        self.check_images(x)
        x = self.patch_embed(x)
        rows, columns = (torch.linspace(0, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[-2:])
        position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # (h, w, 2)
        return x + self.pos_embed(torch.cat([position, 1 - position], dim=-1)).permute(2, 0, 1)

    def _noise(self, x: Tensor, num_slots: int) -> Tensor:
        """Noise that slots start from: fresh in training, always the same at evaluation."""
        check_sizes(num_slots=num_slots)
        if self.training:
            return torch.randn(x.shape[0], num_slots, self.embed_dim, device=x.device, dtype=x.dtype)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, num_slots, self.embed_dim, generator=generator).to(x)


# --- timm's names ---------------------------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs(
    {
        "slot_attention_nano.untrained": COMMON_CFG
        | dict(input_size=(3, 64, 64), crop_pct=1.0, first_conv="patch_embed.0.conv"),
    }
)


@register_model
def slot_attention_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Slot Attention for a laptop: 64x64 images, 16x16 tokens of width 64, 7 slots."""
    return build_network(SlotAttention, "slot_attention_nano", pretrained, (0,), **kwargs)


# --- transformers' classes ------------------------------------------------------------------------------------------


class SlotAttentionConfig(ZooVisionConfig):
    """Configuration of the Slot Attention classes; see `ZooVisionConfig` for the arguments."""

    model_type = "slot_attention"
    network_class: ClassVar[type[GroupingNetwork]] = SlotAttention

    architecture: str = "slot_attention_nano"


class SlotAttentionModel(ZooVisionModel):
    """Slot Attention without head."""

    config_class = SlotAttentionConfig


class SlotAttentionForImageClassification(ZooForImageClassification):
    """Slot Attention with its linear head."""

    config_class = SlotAttentionConfig


class SlotAttentionForSemanticSegmentation(ZooForSemanticSegmentation):
    """Slot Attention with a linear layer on each token and the slots that it belongs to."""

    config_class = SlotAttentionConfig

    def make_head(self, num_labels: int) -> nn.Module:
        """2 C -> K, for each token."""
        return nn.Linear(2 * self.model.embed_dim, num_labels)

    def segment(self, encoded: GroupedFeatures, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W), interpolated from the tokens'."""
        grouping = encoded.grouping
        assert grouping is not None
        assert grouping.grid is not None
        tokens = encoded.stages[0].flatten(2).transpose(1, 2)  # (B, N, C)
        logits = self.segmentation_head(torch.cat([tokens, grouping.compose() @ grouping.tokens[-1]], dim=2))
        return pixel_logits(logits, grouping.grid, self.model.patch_size, size)


class SlotAttentionBackbone(ZooBackbone):
    """Slot Attention's encoder as a backbone."""

    config_class = SlotAttentionConfig


register_family(
    SlotAttentionConfig,
    model=SlotAttentionModel,
    classifier=SlotAttentionForImageClassification,
    segmenter=SlotAttentionForSemanticSegmentation,
    backbone=SlotAttentionBackbone,
)

if __name__ == "__main__":
    cli.main()
