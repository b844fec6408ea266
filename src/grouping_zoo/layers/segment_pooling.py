"""Average pooling over superpixels as a matrix: which share each cell of a feature map has in each segment token.

Ke et al., "CAST: Concurrent Recognition and Segmentation with Adaptive Segment Tokens" (2022), section 3.1.

Shape legend: B batch, N segments, (H, W) label map, (h, w) feature map, C width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = {"bilinear": 2, "bicubic": 4}


def check_superpixels(superpixels: Tensor, images: Tensor) -> None:
    """Checks a label map against the images (B, C, H, W) it belongs to.

    Raises:
        ValueError: unless it is an integer tensor (B, H, W) with labels from 0 to H * W - 1.
    """
    batch_size, _, height, width = images.shape
    if not isinstance(superpixels, Tensor) or superpixels.is_floating_point() or superpixels.is_complex():
        kind = superpixels.dtype if isinstance(superpixels, Tensor) else type(superpixels).__name__
        raise ValueError(f"superpixels: expected an integer tensor of labels (int64), got {kind}; convert with .long()")
    if superpixels.dtype == torch.bool:
        raise ValueError("superpixels: expected an integer tensor of labels (int64), got torch.bool, a mask")
    if tuple(superpixels.shape) != (batch_size, height, width):
        raise ValueError(
            f"superpixels: expected shape {(batch_size, height, width)} (B, H, W) to go with the images, "
            f"got {tuple(superpixels.shape)}"
        )
    if batch_size == 0:
        return
    lowest, highest = (int(value) for value in superpixels.aminmax())
    if lowest < 0 or highest >= height * width:
        raise ValueError(
            f"superpixels: expected labels from 0 to {height * width - 1} (H * W - 1), got {lowest} to {highest}; "
            "number them with `contiguous_labels`"
        )


def nearest_labels(superpixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at the upper left corner of each grid cell: (B, h, w), as `interpolate(mode="nearest")`."""
    rows, columns = (
        torch.arange(cells, device=superpixels.device) * side // cells
        for cells, side in zip(grid, superpixels.shape[1:], strict=True)
    )
    return superpixels[:, rows[:, None], columns[None]]


def nearest_pooling(labels: Tensor, num_segments: int) -> Tensor:
    """Pooling of a feature map that has a label for each cell.

    Args:
        labels: (B, h, w) int64.
        num_segments: N, above the highest label.

    Returns:
        (B, N, h * w) float32; rows sum to 1, or to 0 where a segment holds no cell.
    """
    cells = labels.flatten(1)  # (B, h * w)
    matrix = torch.zeros(len(cells), num_segments, cells.shape[1], device=labels.device)
    return _normalized(matrix.scatter_(1, cells[:, None], 1.0))


def interpolated_pooling(superpixels: Tensor, grid: tuple[int, int], num_segments: int, mode: str) -> Tensor:
    """Pooling of a feature map that is resized to the label map before averaging, without resizing it.

    Averaging and resizing are both linear, so their product is one small matrix; the resized features themselves
    would take H * W * C numbers.

    Args:
        superpixels: (B, H, W) int64.
        grid: (h, w) of the feature map.
        num_segments: N, above the highest label.
        mode: "bilinear" or "bicubic", as in `torch.nn.functional.interpolate` (corners not aligned).

    Returns:
        (B, N, h * w) float32; rows sum to 1, or to 0 where a segment holds no pixel.
    """
    device = superpixels.device
    rows, columns = (_taps(cells, side, mode, device) for cells, side in zip(grid, superpixels.shape[1:], strict=True))
    matrix = torch.zeros(len(superpixels), num_segments * grid[0] * grid[1], device=device)
    base = superpixels * (grid[0] * grid[1])  # (B, H, W)
    for row_weights, row_cells in zip(*rows, strict=True):
        for column_weights, column_cells in zip(*columns, strict=True):
            index = base + (row_cells[:, None] * grid[1] + column_cells)
            weights = (row_weights[:, None] * column_weights).expand(index.shape)
            matrix.scatter_add_(1, index.flatten(1), weights.flatten(1))
    return _normalized(matrix.unflatten(1, (num_segments, -1)))


def _taps(cells: int, side: int, mode: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights and source cells of resizing a line of `cells` values to `side`, each (taps, side)."""
    lines = F.interpolate(torch.eye(cells, device=device)[None, None], size=(cells, side), mode=mode)[0, 0]
    strongest = lines.abs().topk(min(TAPS[mode], cells), dim=0).indices
    return lines.gather(0, strongest), strongest


def _normalized(matrix: Tensor) -> Tensor:
    # Bicubic weights may be negative, yet those of a pixel sum to 1: the sum counts a segment's pixels.
    total = matrix.sum(dim=2, keepdim=True)
    return matrix / torch.where(total > 0.5, total, 1.0)
