"""GroupViT's grouping block: segment tokens are assigned to group tokens and merged by group.

Xu et al., "GroupViT: Semantic Segmentation Emerges from Text Supervision" (CVPR 2022), section 3.2; equations as
in Sharma, "Improving Visual Grouping and Visual-Text Alignment for Open-Vocabulary Segmentation" (2023), section 4.2.

Shape legend: B batch, N segment tokens, G group tokens, M output groups, C width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

AssignmentMode = Literal["gumbel", "hard", "soft"]
ASSIGNMENT_MODES = ("gumbel", "hard", "soft")


class TokenMixer(Mlp):
    """An MLP over the token axis: (B, G, C) -> (B, M, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens of each channel."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class CrossAttention(nn.Module):
    """Multi-head attention from queries (B, M, C) to a context (B, N, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Returns the attended context for each query, (B, M, C)."""
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, tokens, C / heads)
            for projection, x in ((self.q_proj, queries), (self.k_proj, context), (self.v_proj, context))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class TokenAssignment(nn.Module):
    """Assigns every segment token to one group and merges the tokens of each group.

    The logits are q . k / sqrt(C) with q from the groups and k from the segments; the softmax runs over the groups.
    In training the arg-max is sampled with Gumbel noise and made one-hot with a straight-through gradient (thesis
    Eq. 11-14); at evaluation it is the arg-max. Each group is the mean of its tokens' values, with one added to the
    count so that an empty group gives zeros.

    Args:
        dim: width C.
        mode: "gumbel" as published; "hard" without noise; "soft" merges by the softmax itself, in training and
            evaluation.
        temperature: the softmax temperature of the Gumbel sampling.
    """

    def __init__(self, dim: int, mode: AssignmentMode = "gumbel", temperature: float = 1.0) -> None:
        super().__init__()
        if mode not in ASSIGNMENT_MODES:
            raise ValueError(f"assignment: expected one of {ASSIGNMENT_MODES}, got {mode!r}")
        if not temperature > 0:
            raise ValueError(f"assignment_temperature: expected a number above 0, got {temperature}")
        self.scale = dim**-0.5
        self.mode = mode
        self.temperature = temperature
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, groups: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Merges segments (B, N, C) into groups (B, M, C).

        Returns:
            the merged tokens (B, M, C) and the soft assignment (B, N, M), at least float32, rows sum to 1.
        """
        logits = (self.q_proj(groups) * self.scale) @ self.k_proj(segments).transpose(1, 2)  # (B, M, N)
        # Half precision would round near-ties of the softmax.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        soft = logits.softmax(dim=1)
        merge = self._merge_weights(logits, soft)
        merge = merge / (merge.sum(dim=2, keepdim=True) + 1.0)
        values = self.v_proj(segments)
        return self.proj(merge.to(values.dtype) @ values), soft.transpose(1, 2)

    def _merge_weights(self, logits: Tensor, soft: Tensor) -> Tensor:
        """(B, M, N) weights by which segments enter the groups; a column sums to 1."""
        if self.mode == "soft":
            return soft
        if self.mode == "gumbel" and self.training:
            # -log of an exponential sample is a Gumbel sample; the tiny floor keeps the logarithm finite.
            noise = torch.empty_like(logits).exponential_().clamp_min_(torch.finfo(logits.dtype).tiny).log_().neg_()
            soft = ((logits + noise) / self.temperature).softmax(dim=1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        # In this order the added zero is exact, so that the weights are one-hot to the last bit.
        return hard + (soft - soft.detach()) if soft.requires_grad else hard


class CrossAttentionBlock(nn.Module):
    """Groups look at the segments, then an MLP, then a norm; no norm before the attention."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.attn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm_post = nn.LayerNorm(dim, eps=eps)

    def forward(self, groups: Tensor, segments: Tensor) -> Tensor:
        """(B, M, C) groups after looking at (B, N, C) segments."""
        groups = groups + self.attn(groups, segments)
        groups = groups + self.mlp(self.norm2(groups))
        return self.norm_post(groups)


class GroupingBlock(nn.Module):
    """Turns N segment tokens and G group tokens into M new segment tokens.

    Args:
        dim: width C.
        num_heads: heads of the cross-attention (the assignment has one).
        num_group_tokens: G.
        num_output_groups: M.
        mlp_ratio: hidden width of the cross-attention's MLP over C.
        assign_mlp_ratio: hidden widths over C of the token mixer and of the last MLP.
        mode: see `TokenAssignment`.
        temperature: see `TokenAssignment`.
        eps: of the LayerNorms.
        group_content: whether the new segments hold their group tokens, which have looked at the whole image, besides
            their own tokens' values (as published). False leaves out the cross-attention and the residual: group
            tokens only choose, and a segment can show nothing but what its tokens show.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_group_tokens: int,
        num_output_groups: int,
        mlp_ratio: float = 4.0,
        assign_mlp_ratio: tuple[float, float] = (0.5, 4.0),
        mode: AssignmentMode = "gumbel",
        temperature: float = 1.0,
        eps: float = 1e-5,
        group_content: bool = True,
    ) -> None:
        super().__init__()
        self.norm_groups = nn.LayerNorm(dim, eps=eps)
        self.mixer = TokenMixer(num_group_tokens, int(dim * assign_mlp_ratio[0]), num_output_groups)
        self.norm_mixed = nn.LayerNorm(dim, eps=eps)
        self.norm_segments = nn.LayerNorm(dim, eps=eps)
        self.cross_attention = CrossAttentionBlock(dim, num_heads, mlp_ratio, eps) if group_content else None
        self.assignment = TokenAssignment(dim, mode, temperature)
        self.norm_output = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * assign_mlp_ratio[1]))

    def forward(self, segments: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Groups segments (B, N, C) by group tokens (B, G, C).

        Returns:
            new segments (B, M, C) and the soft assignment (B, N, M).
        """
        segments = self.norm_segments(segments)
        groups = self.norm_mixed(self.mixer(self.norm_groups(groups)))  # (B, M, C)
        if self.cross_attention is not None:
            groups = self.cross_attention(groups, segments)
        merged, assignment = self.assignment(groups, segments)
        if self.cross_attention is not None:
            merged = merged + groups
        return merged + self.mlp(self.norm_output(merged)), assignment

    def singletons(self, segments: Tensor) -> Tensor:
        """What each segment token would become as a group of its own, without a group token: (B, N, C) -> (B, N, C)."""
        values = self.assignment.proj(self.assignment.v_proj(self.norm_segments(segments)))
        return values + self.mlp(self.norm_output(values))
