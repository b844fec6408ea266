"""Visual tokens: a feature map's pixels are pooled into a few tokens by attention over the image.

Wu et al., "Visual Transformers: Token-based Image Representation and Processing for Computer Vision" (2020), section
3.1 and appendix C. With pixels X (HW, C) and group weights W (C, L) the tokens are T = softmax_HW(X W)^T X; the
tokenizers differ in W. Two things that the paper leaves open: tokens wider than the map are projected after the
pooling, so that no C x C_T product runs over the pixels; and they are normalised, which keeps the logits of all that
follows in one range.

Shape legend: B batch, (H, W) feature map, C its channels, L tokens, C_T their width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.layers.kmeans import spherical_kmeans

TokenizerMethod = Literal["filter", "clustering", "pooling"]
TOKENIZER_METHODS = ("filter", "clustering", "pooling")
LLOYD_STEPS = 5


class Projection(nn.Linear):
    """Linear layer without bias, drawn so that unit inputs give outputs of standard deviation `gain`."""

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0) -> None:
        self.gain = gain  # before the base class draws the weights
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draws the weights."""
        nn.init.normal_(self.weight, std=self.gain * self.in_features**-0.5)


def token_grid(num_tokens: int) -> tuple[int, int]:
    """Rows and columns of the squarest grid of exactly `num_tokens` cells."""
    rows = max(r for r in range(1, math.isqrt(num_tokens) + 1) if num_tokens % r == 0)
    return rows, num_tokens // rows


class VisualTokenizer(nn.Module):
    """T = LayerNorm(A X W_T), A (L, HW) the attention of each token over the pixels; subclasses say which.

    Args:
        dim: C.
        token_dim: C_T; without W_T where it equals C.
        num_tokens: L.
    """

    def __init__(self, dim: int, token_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.token_proj: nn.Module = nn.Identity()
        if dim != token_dim:
            self.token_proj = Projection(dim, token_dim)
        self.norm = nn.LayerNorm(token_dim)

    def attention(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """Attention (B, L, HW) of each token over the pixels, rows sum to 1."""
        raise NotImplementedError

    def forward(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pools a map into tokens.

        Args:
            x: (B, C, H, W).
            previous: (B, L, C_T) tokens of the module before; only the recurrent tokenizer looks at them.

        Returns:
            tokens (B, L, C_T) and the attention (B, L, HW), at least float32, rows sum to 1.
        """
        attention = self.attention(x, previous)
        pooled = attention.to(x.dtype) @ x.flatten(2).transpose(1, 2)  # (B, L, C)
        return self.norm(self.token_proj(pooled)), attention


class FilterTokenizer(VisualTokenizer):
    """W = W_A, learned filters that are the same for every image (Eq. 1)."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int) -> None:
        super().__init__(dim, token_dim, num_tokens)
        self.filters = Projection(dim, num_tokens)

    def attention(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """See `VisualTokenizer`."""
        return _softmax_over_pixels(self.filters.weight, x)


class RecurrentTokenizer(VisualTokenizer):
    """W = T_in W_{T->R}, made of the previous module's tokens (Eq. 2)."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int) -> None:
        super().__init__(dim, token_dim, num_tokens)
        self.token_to_filter = Projection(token_dim, dim, gain=dim**-0.5)

    def attention(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """See `VisualTokenizer`."""
        assert previous is not None
        return _softmax_over_pixels(self.token_to_filter(previous), x)


class ClusteringTokenizer(VisualTokenizer):
    """W = the K-means centroids of the image's own pixels (Eq. 6); they start from the downsampled map."""

    def attention(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """See `VisualTokenizer`."""
        start = F.adaptive_avg_pool2d(x, token_grid(self.num_tokens))
        centroids = spherical_kmeans(x.flatten(2).transpose(1, 2), start.flatten(2).transpose(1, 2), LLOYD_STEPS)
        return _softmax_over_pixels(centroids.to(x.dtype), x)


class PoolingTokenizer(VisualTokenizer):
    """Averages over the cells of a regular grid, the baseline of Table 3."""

    def attention(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """See `VisualTokenizer`."""
        # Pooling the identity gives each cell's weights, of rows and of columns.
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(side, device=x.device)[None], cells)[0].T
            for side, cells in zip(x.shape[-2:], token_grid(self.num_tokens), strict=True)
        )
        return torch.kron(rows, columns).expand(x.shape[0], -1, -1)


def make_tokenizer(method: TokenizerMethod, dim: int, token_dim: int, num_tokens: int) -> VisualTokenizer:
    """The tokenizer of a first module, by name.

    Raises:
        ValueError: on an unknown name.
    """
    tokenizers = {"filter": FilterTokenizer, "clustering": ClusteringTokenizer, "pooling": PoolingTokenizer}
    if method not in tokenizers:
        raise ValueError(f"tokenizer: expected one of {TOKENIZER_METHODS}, got {method!r}")
    return tokenizers[method](dim, token_dim, num_tokens)


def _softmax_over_pixels(weights: Tensor, x: Tensor) -> Tensor:
    """softmax_HW of W (L, C) or (B, L, C) and X (B, C, H, W): (B, L, HW)."""
    logits = weights @ x.flatten(2)
    # Half precision would round the small weights of many pixels.
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=2)
