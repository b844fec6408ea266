"""SLIC superpixels in plain PyTorch, batched and on the images' device, and the regular grid they start from.

Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods" (PAMI 2012), section 3; each pixel
considers the 3x3 centres around its own grid cell. The paper's last step, which merges stray pixels into a
neighbour, is left out: a superpixel may have a few of them.

Shape legend: B batch, P pixels of an image, K superpixels.
"""

import torch
from torch import Tensor

ITERATIONS = 10
COMPACTNESS = 10.0
# Linear RGB (D65 white) to CIE XYZ, each row divided by the white point.
_RGB_TO_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)


def grid_shape(height: int, width: int, number: int) -> tuple[int, int]:
    """Rows and columns of about `number` nearly square cells that cover an image."""
    rows = min(max(round((number * height / width) ** 0.5), 1), height)
    return rows, min(max(round(number / rows), 1), width)


def grid_labels(height: int, width: int, number: int) -> Tensor:
    """Labels (H, W) int64 of about `number` equal cells, in row-major order."""
    rows, columns = grid_shape(height, width, number)
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return row[:, None] * columns + column


@torch.no_grad()
def slic(images: Tensor, number: int) -> Tensor:
    """Labels of SLIC superpixels.

    Args:
        images: (B, 3, H, W) RGB or (B, 1, H, W) grey, uint8.
        number: K; the nearest full grid of centres is used.

    Returns:
        (B, H, W) int64, values below the number of centres; some may be without pixels.
    """
    height, width = images.shape[-2:]
    rows, columns = grid_shape(height, width, number)
    home = grid_labels(height, width, number).to(images.device).flatten()  # (P,)
    spacing = (height * width / (rows * columns)) ** 0.5
    features = _features(images, COMPACTNESS / spacing)  # (B, P, D)
    labels = home.expand(len(images), -1)
    centres = _means(features, labels, features.new_zeros(len(images), rows * columns, features.shape[2]))
    for _ in range(ITERATIONS):
        labels = _nearest_centres(features, centres, home, rows, columns)
        centres = _means(features, labels, centres)
    return labels.unflatten(1, (height, width))


def _features(images: Tensor, position_weight: float) -> Tensor:
    """Lab colour (or lightness) and weighted position of every pixel, (B, P, D)."""
    colour = rgb_to_lab(images) if images.shape[1] == 3 else images * (100 / 255)
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(side, device=images.device) * position_weight for side in (height, width))
    position = torch.stack([rows[:, None].expand(-1, width), columns.expand(height, -1)])
    return torch.cat([colour, position.expand(len(images), -1, -1, -1)], dim=1).flatten(2).transpose(1, 2).contiguous()


def rgb_to_lab(images: Tensor) -> Tensor:
    """uint8 sRGB (B, 3, H, W) to CIE Lab: lightness 0 to 100, a and b about -128 to 127."""
    rgb = images / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,bjhw->bihw", torch.tensor(_RGB_TO_XYZ, device=images.device), linear)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _nearest_centres(features: Tensor, centres: Tensor, home: Tensor, rows: int, columns: int) -> Tensor:
    """(B, P) nearest of the 3x3 centres around each pixel's home cell."""
    best = torch.full(features.shape[:2], torch.inf, device=features.device)
    labels = home.expand(len(features), -1)
    row, column = home // columns, home % columns
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            candidate = (row + down).clamp(0, rows - 1) * columns + (column + right).clamp(0, columns - 1)
            distance = (features - centres[:, candidate]).square_().sum(-1)
            labels = torch.where(distance < best, candidate, labels)
            best = torch.minimum(best, distance)
    return labels


def _means(features: Tensor, labels: Tensor, previous: Tensor) -> Tensor:
    """(B, K, D) means of each label's pixels; the previous centre where it has none."""
    index = labels[:, :, None].expand_as(features)
    sums = torch.zeros_like(previous).scatter_add_(1, index, features)
    counts = torch.zeros_like(previous).scatter_add_(1, index, torch.ones_like(features))
    return torch.where(counts > 0, sums / counts.clamp(min=1), previous)
