"""Patch tokens from a small convolution network instead of one linear projection.

Xiao et al., "Early Convolutions Help Transformers See Better" (NeurIPS 2021), section 4.
"""

import math
from itertools import pairwise

import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn


class ResidualConv(nn.Module):
    """x + ReLU(batch norm(3x3 convolution(x)))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + F.relu(self.norm(self.conv(x)))


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, each with batch norm and ReLU, then a 1x1 convolution and a LayerNorm.

    Has the attributes of timm's `PatchEmbed` that models read (`grid_size`, `num_patches`).

    Args:
        img_size: image size that `grid_size` describes.
        patch_size: total stride, a power of two.
        in_chans: input channels.
        embed_dim: width C of the tokens; the convolutions' widths double up to it.
        depth: residual 3x3 convolutions of stride 1 on the token grid; each lets a token see one more token around.

    Raises:
        ValueError: if `patch_size` is not a power of two, at least 2.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 128,
        depth: int = 0,
    ) -> None:
        super().__init__()
        steps = int(math.log2(patch_size)) if patch_size > 1 else 0
        if steps < 1 or 2**steps != patch_size:
            raise ValueError(f"patch_size: a convolution stem needs a power of two of at least 2, got {patch_size}")
        self.grid_size = tuple(math.ceil(side / patch_size) for side in to_2tuple(img_size))
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = [in_chans] + [embed_dim // 2**step for step in reversed(range(steps))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        layers += [ResidualConv(embed_dim) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H/p * W/p, C), row-major."""
        return self.norm(self.layers(x).flatten(2).transpose(1, 2))
