"""The parts of CAST: convolution stem with position code, stages of blocks and pooling, fusion of the levels.

Ke et al., "CAST: Concurrent Recognition and Segmentation with Adaptive Segment Tokens" (2022), section 3.

Shape legend: B batch, (H, W) image, (h, w) stem's grid, N tokens of a stage (N_0 superpixels), A heads, C width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from grouping_zoo.layers.graph_pooling import GraphPooling
from grouping_zoo.layers.sampling import CentroidMethod

LAYER_NORM_EPS = 1e-6
FUSION_DROPOUT = 0.2


class OverlappingStem(nn.Module):
    """3x3 convolutions whose widths double up to C, each with BatchNorm and ReLU, then a 1x1 convolution.

    Args:
        img_size: size that `grid_size` describes.
        in_chans: input channels.
        dim: width C.
        strides: of the 3x3 convolutions.
    """

    def __init__(self, img_size: int | tuple[int, int], in_chans: int, dim: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        height, width = to_2tuple(img_size)
        self.grid_size = self.grid(height, width)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        before = in_chans
        for i, stride in enumerate(strides):
            after = dim // 2 ** (len(strides) - 1 - i)
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.proj = nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the features of an image; each convolution rounds up."""
        for stride in self.strides:
            height, width = -(-height // stride), -(-width // stride)
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, h * w, C), row-major."""
        return self.proj(x).flatten(2).transpose(1, 2)


class CASTStage(nn.Module):
    """Transformer blocks over [class token; tokens], and the graph pooling that follows them."""

    def __init__(
        self, dim: int, num_heads: int, drop_path: Sequence[float], mlp_ratio: float, centroids: CentroidMethod
    ) -> None:
        super().__init__()
        norm_layer: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=norm_layer) for rate in drop_path
        )
        self.pooling = GraphPooling(dim, num_heads, mlp_ratio, centroids=centroids, eps=LAYER_NORM_EPS)

    def forward_blocks(self, x: Tensor, valid: Tensor | None, attend: int | None) -> tuple[Tensor, Tensor | None]:
        """The blocks over (B, 1 + N, C), and the class token's attention in block `attend` of the stage, if any."""
        mask = None  # (B, 1, 1, 1 + N): keys that count
        if valid is not None:
            mask = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)[:, None, None]
        attention = None
        for i, block in enumerate(self.blocks):
            if i == attend:
                attention = class_token_attention(block, x, mask)
            x = checkpoint(block, x, mask) if self.grad_checkpointing and torch.is_grad_enabled() else block(x, mask)
        return x, attention


class LevelFusion(nn.Module):
    """Concatenates the levels at the superpixels and mixes them: BatchNorm, dropout, one linear layer."""

    def __init__(self, dim: int, num_levels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim * num_levels)
        self.drop = nn.Dropout(FUSION_DROPOUT)
        self.fc = nn.Linear(dim * num_levels, dim)

    def forward(self, levels: list[Tensor], valid: Tensor | None) -> Tensor:
        """Levels (B, N_0, C) each -> (B, N_0, C); tokens that do not count give zeros and enter no statistics."""
        x = torch.cat(levels, dim=2)  # (B, N_0, L * C)
        if valid is None:
            return self.fc(self.drop(self.norm(x.flatten(0, 1)))).unflatten(0, x.shape[:2])
        fused = self.fc(self.drop(self.norm(x[valid])))
        return fused.new_zeros(*x.shape[:2], fused.shape[-1]).index_put((valid,), fused)


def sincos_position_code(grid: tuple[int, int], dim: int) -> Tensor:
    """[sin(r w), cos(r w), sin(c w), cos(c w)] of each cell (r, c), with w_k = 10000^(-k / (C / 4)): (1, h * w, C)."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in grid)
    row = (rows[:, None] * frequencies)[:, None].expand(-1, grid[1], -1)  # (h, w, C / 4)
    column = (columns[:, None] * frequencies)[None].expand(grid[0], -1, -1)
    return (
        torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)
        .flatten(0, 1)[None]
        .to(torch.get_default_dtype())
    )


def class_token_attention(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, A, N) weights by which the first of (B, 1 + N, C) attends to the others in a transformer block."""
    attn = block.attn
    query, key, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = (query[:, :, :1] * attn.scale @ key.transpose(2, 3)).float()  # (B, A, 1, 1 + N)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(dim=-1)[:, :, 0, 1:]


def init_linear(linear: nn.Linear, parts: int = 1) -> None:
    """Xavier uniform, with the fan of one of `parts` stacked matrices; zero bias."""
    bound = (6 / (linear.out_features // parts + linear.in_features)) ** 0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)
