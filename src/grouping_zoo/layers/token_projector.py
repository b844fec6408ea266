"""Puts visual tokens back onto the feature map: every pixel takes up the tokens that it asks for.

Wu et al., "Visual Transformers: Token-based Image Representation and Processing for Computer Vision" (2020), section
3.3.

Shape legend: B batch, (H, W) feature map, C its channels, C' those of the output, L tokens, C_T their width.
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from grouping_zoo.layers.visual_tokenizer import Projection


class TokenProjector(nn.Module):
    """X_out = X + softmax_L((X W_Q)(T W_K)^T) T W_V  (Eq. 5).

    The product is taken as X (T W_K W_Q^T)^T, and values are made of the L tokens: no dense product runs over the
    pixels, without which the paper's multiply-adds cannot be reached. Where the map gets more channels, X passes
    through ResNet's shortcut, a 1x1 convolution with BatchNorm.

    Args:
        dim: C.
        out_dim: C'.
        token_dim: C_T; without W_V where it equals C'.
        key_dim: width of keys and queries.
        drop_path: stochastic depth rate of what the tokens add.
    """

    def __init__(self, dim: int, out_dim: int, token_dim: int, key_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.query = Projection(dim, key_dim, gain=key_dim**-0.25)
        self.key = Projection(token_dim, key_dim, gain=key_dim**-0.25)
        self.value: nn.Module = nn.Identity()
        if token_dim != out_dim:
            self.value = Projection(token_dim, out_dim)
        self.shortcut: nn.Module = nn.Identity()
        if dim != out_dim:
            convolution = nn.Conv2d(dim, out_dim, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Adds tokens (B, L, C_T) to a map (B, C, H, W).

        Returns:
            the map (B, C', H, W) and the pixels' assignment to tokens (B, HW, L), at least float32, rows sum to 1.
        """
        folded_keys = self.key(tokens) @ self.query.weight  # (B, L, C)
        logits = folded_keys @ x.flatten(2)  # (B, L, HW)
        assignment = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
        added = self.value(tokens).transpose(1, 2) @ assignment.to(x.dtype)  # (B, C', HW)
        added = added.unflatten(2, x.shape[-2:])
        return self.shortcut(x) + self.drop_path(added), assignment.transpose(1, 2)
