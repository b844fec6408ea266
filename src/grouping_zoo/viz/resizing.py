"""Photos and label maps at other sizes. A size is (width, height); a map is (height, width)."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PICTURE_SIDE = 2048  # longer side of pictures and of the finest labels: what bounds the memory for huge photos
MAX_ASPECT = 8  # the network sees longer photos smaller


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side brought to `shorter`, or the longer one to `MAX_ASPECT` times that."""
    scale = min(shorter / min(size), MAX_ASPECT * shorter / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def reduced(photo: Image.Image) -> Image.Image:
    """The photo at most `PICTURE_SIDE` pixels a side."""
    scale = PICTURE_SIDE / max(photo.size)
    if scale >= 1:
        return photo
    size = (max(1, round(scale * photo.width)), max(1, round(scale * photo.height)))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def best_of_maps(maps: Iterable[Tensor], size: tuple[int, int]) -> np.ndarray:
    """The largest of N maps at each pixel of another size, one map interpolated at a time to save memory.

    Args:
        maps: N times (h, w) float.
        size: (width, height) of the result.

    Returns:
        number of the largest map, (height, width) int64; of equal ones the first.
    """
    width, height = size
    best = torch.full((height, width), -torch.inf)
    index = torch.zeros((height, width), dtype=torch.int64)
    for number, one in enumerate(maps):
        full = F.interpolate(one.float()[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        better = full > best
        best[better] = full[better]
        index[better] = number
    return index.numpy()


def resized_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (h, w) at another size, with smoother outlines than the nearest neighbour gives.

    Every label's own map is interpolated bilinearly and the largest wins, of equal ones the lowest label. Only the
    labels of the four cells around a pixel can win there, so the cost does not grow with the number of labels.
    """
    top, bottom, low = _neighbours(labels.shape[0], size[1])
    left, right, near = _neighbours(labels.shape[1], size[0])
    low, near = low[:, None], near[None]
    corners = [
        (labels[top[:, None], left], (1 - low) * (1 - near)),
        (labels[top[:, None], right], (1 - low) * near),
        (labels[bottom[:, None], left], low * (1 - near)),
        (labels[bottom[:, None], right], low * near),
    ]
    chosen, best = corners[0][0].copy(), np.full((size[1], size[0]), -1.0, dtype=np.float32)
    for candidate, _ in corners:
        total = sum((weight * (label == candidate) for label, weight in corners), np.zeros_like(best))
        better = (total > best) | ((total == best) & (candidate < chosen))
        chosen[better] = candidate[better]
        best[better] = total[better]
    return chosen


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) at another size by the nearest neighbour."""
    rows = np.arange(size[1]) * labels.shape[0] // size[1]
    columns = np.arange(size[0]) * labels.shape[1] // size[0]
    return labels[rows[:, None], columns]


def _neighbours(cells: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `out` pixels along a side the two cells around its centre, and the second one's weight."""
    centres = np.clip((np.arange(out) + 0.5) * cells / out - 0.5, 0, cells - 1)
    first = np.floor(centres).astype(np.int64)
    return first, np.minimum(first + 1, cells - 1), (centres - first).astype(np.float32)
