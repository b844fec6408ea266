"""Patch tokens from a small convolution network instead of one linear projection.

Xiao et al., "Early Convolutions Help Transformers See Better" (NeurIPS 2021), section 4.
"""

import math
from itertools import pairwise

from timm.layers import LayerNorm2d, to_2tuple
from torch import Tensor, nn


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, each with a norm and GELU, then a 1x1 convolution.

    Has the attributes of timm's `PatchEmbed` that models read (`grid_size`, `num_patches`).

    Args:
        img_size: image size that `grid_size` describes.
        patch_size: total stride, a power of two.
        in_chans: input channels.
        embed_dim: width C of the tokens; the convolutions' widths double up to it.

    Raises:
        ValueError: if `patch_size` is not a power of two, at least 2.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int = 4, in_chans: int = 3, embed_dim: int = 128
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
                LayerNorm2d(after),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H/p * W/p, C), row-major."""
        return self.norm(self.layers(x).flatten(2).transpose(1, 2))
