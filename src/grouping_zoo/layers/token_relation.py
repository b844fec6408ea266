"""What visual tokens learn from each other: a small transformer, or the baselines of Table 5.

Wu et al., "Visual Transformers: Token-based Image Representation and Processing for Computer Vision" (2020), section
3.2.

Shape legend: B batch, L tokens, C_T their width.
"""

from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from grouping_zoo.layers.visual_tokenizer import Projection

TokenRelation = Literal["transformer", "graph", "none"]
TOKEN_RELATIONS = ("transformer", "graph", "none")


class TokenTransformer(nn.Module):
    """T' = T + softmax_L((T K)(T Q)^T) T;  T_out = T' + relu(T' F_1) F_2  (Eq. 3, 4).

    The widths follow from Table 5, where a transformer adds 1.57 M parameters, 1.5 C_T^2: keys and queries are C_T / 4
    wide, the feed-forward layer C_T / 2. Nothing divides the logits; K and Q start small instead, so that they start
    with a standard deviation of 1.

    Args:
        dim: C_T.
        drop_path: stochastic depth rate of both residuals.
    """

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        key_dim = dim // 4
        self.key = Projection(dim, key_dim, gain=key_dim**-0.25)
        self.query = Projection(dim, key_dim, gain=key_dim**-0.25)
        self.fc1 = Projection(dim, dim // 2, gain=2**0.5)
        self.fc2 = Projection(dim // 2, dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C_T) to the same shape."""
        logits = self.key(tokens) @ self.query(tokens).transpose(1, 2)  # (B, L, L)
        weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=2)
        tokens = tokens + self.drop_path(weights.to(tokens.dtype) @ tokens)
        return tokens + self.drop_path(self.fc2(self.fc1(tokens).relu()))


class GraphConvolution(nn.Module):
    """T_out = T + relu(G T), G (L, L) learned weights between tokens that are the same for every image.

    Without weights between channels, as Table 5 counts no parameters for it.
    """

    def __init__(self, num_tokens: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.empty(num_tokens, num_tokens))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the edges."""
        nn.init.normal_(self.edges, std=len(self.edges) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C_T) to the same shape."""
        return tokens + self.drop_path((self.edges @ tokens).relu())


def make_token_relation(kind: TokenRelation, num_tokens: int, token_dim: int, drop_path: float = 0.0) -> nn.Module:
    """The module that relates tokens, by name; "none" leaves them as they are.

    Raises:
        ValueError: on an unknown name.
    """
    if kind not in TOKEN_RELATIONS:
        raise ValueError(f"token_relation: expected one of {TOKEN_RELATIONS}, got {kind!r}")
    if kind == "transformer":
        return TokenTransformer(token_dim, drop_path)
    return GraphConvolution(num_tokens, drop_path) if kind == "graph" else nn.Identity()
