"""Pools tokens of one width into a feature of another by a learnable query."""

import torch
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """Multi-head attention of one learnable token to all tokens of an image.

    Deng et al., "Perceptual Group Tokenizer" (ICLR 2024), section 3.3.

    Args:
        dim: width of the tokens.
        feature_dim: width C of the query and of the feature.
        num_heads: attention heads.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, dim: int, feature_dim: int, num_heads: int = 8) -> None:
        super().__init__()
        if feature_dim % num_heads:
            raise ValueError(f"feature_dim: expected a multiple of the pooling's {num_heads} heads, got {feature_dim}")
        self.query = nn.Parameter(torch.zeros(1, 1, feature_dim))
        self.attention = nn.MultiheadAttention(feature_dim, num_heads, kdim=dim, vdim=dim, batch_first=True)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, dim) to features (B, C)."""
        query = self.query.expand(tokens.shape[0], -1, -1)
        return self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]
