"""CAST's graph pooling: tokens are assigned to centroids sampled among them and averaged by cluster.

Ke et al., "CAST: Concurrent Recognition and Segmentation with Adaptive Segment Tokens" (2022), section 3.3,
algorithm 1.

Shape legend: B batch, N tokens, K clusters, C width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from grouping_zoo.layers.sampling import CENTROID_METHODS, CentroidMethod, choose_centroids, masked_mean

ASSIGNMENT_SCALE = 5.0


class Pooled(NamedTuple):
    """New class token (B, 1, C) and tokens (B, K, C), which of them count (B, K), soft assignment (B, N, K)."""

    cls_token: Tensor
    tokens: Tensor
    valid: Tensor
    assignment: Tensor


class GraphPooling(nn.Module):
    """Pools the tokens of each image into at most K clusters.

    With node = x + attention(norm(x)), less its mean over the tokens, plus a learned bias, the soft assignment is
    softmax_k(5 cos(node_n, node_k)) over the centroids k. The tokens are widened, averaged by the assignment and
    narrowed again, and each centroid's own x is added.

    Args:
        dim: width C.
        num_heads: heads of the attention.
        mlp_ratio: hidden width over C.
        drop: dropout of the hidden features.
        centroids: "farthest" as published; see `grouping_zoo.layers.sampling.choose_centroids` for the others.
        eps: of the LayerNorms.

    Raises:
        ValueError: on an unknown method.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.1,
        centroids: CentroidMethod = "farthest",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if centroids not in CENTROID_METHODS:
            raise ValueError(f"centroids: expected one of {CENTROID_METHODS}, got {centroids!r}")
        self.centroids = centroids
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.drop = nn.Dropout(drop)
        self.norm2 = nn.LayerNorm(int(dim * mlp_ratio), eps=eps)
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)

    def forward(
        self, cls_token: Tensor, x: Tensor, num_clusters: int, valid: Tensor | None = None, empty: Tensor | None = None
    ) -> Pooled:
        """Pools (B, 1, C) and (B, N, C).

        Args:
            cls_token: class token; it is no member of any cluster.
            x: tokens.
            num_clusters: K; images with fewer distinct tokens get fewer valid clusters.
            valid: (B, N) bool, False for tokens that are there because other images of the batch have more; they
                influence nothing. All count if omitted.
            empty: (B, N) bool, True for valid tokens that hold no part of the image; they are no centroids.
        """
        usable = x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        node = self._nodes(x, valid)
        if empty is not None:
            usable = usable & ~empty
        centroids = choose_centroids(x.detach(), min(num_clusters, x.shape[1]), usable, self.centroids)
        assignment = _assign(node, centroids.weights.to(node.dtype) @ node, centroids.valid)  # (B, N, K)

        hidden = self.drop(F.gelu(self.fc1(self.norm1(torch.cat([cls_token, x], dim=1)))))  # (B, 1 + N, 4C)
        weights = assignment if valid is None else assignment * valid[:, :, None]
        total = weights.sum(dim=1, keepdim=True)
        weights = weights / total.where(centroids.valid[:, None], 1.0)
        pooled = weights.transpose(1, 2).to(hidden.dtype) @ hidden[:, 1:]  # (B, K, 4C)
        out = self.fc2(self.norm2(torch.cat([hidden[:, :1], pooled], dim=1)))
        tokens = out[:, 1:] + centroids.weights.to(x.dtype) @ x
        return Pooled(out[:, :1] + cls_token, tokens, centroids.valid, assignment)

    def _nodes(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, N, C) features that are compared."""
        mask = None if valid is None else valid[:, None, None]  # (B, 1, 1, N): keys that count
        node = x + self.attn(self.norm(x), attn_mask=mask)
        mean = node.mean(dim=1, keepdim=True) if valid is None else masked_mean(node, valid)
        return node - mean + self.bias


def _assign(node: Tensor, centroids: Tensor, valid: Tensor) -> Tensor:
    """Softmax of the scaled cosine over valid centroids, (B, N, K) float32."""
    with torch.autocast(node.device.type, enabled=False):  # half precision would round near-ties of the arg-max
        cosine = F.normalize(node.float(), dim=-1) @ F.normalize(centroids.float(), dim=-1).transpose(1, 2)
    return (ASSIGNMENT_SCALE * cosine).masked_fill(~valid[:, None], -torch.inf).softmax(dim=-1)
