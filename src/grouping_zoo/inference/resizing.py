"""Sizes of photos: what the network sees of one, and what is drawn. A size is (width, height)."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from grouping_zoo.viz.contact_sheet import FIGURE_SIDE

MIN_SIDE = 32  # of a photo for the network in pixels: neither superpixels nor convolutions make sense of less
MAX_ASPECT = 8  # the network sees longer photos smaller


def network_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side brought to `shorter`, or the longer one to `MAX_ASPECT` times that."""
    scale = min(shorter / min(size), MAX_ASPECT * shorter / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def reduce_photo(photo: Image.Image) -> Image.Image:
    """The photo with at most `FIGURE_SIDE` pixels a side, which bounds the memory for huge ones."""
    scale = FIGURE_SIDE / max(photo.size)
    if scale >= 1:
        return photo
    size = (max(1, round(scale * photo.width)), max(1, round(scale * photo.height)))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def argmax_resized(maps: Iterable[Tensor], size: tuple[int, int]) -> np.ndarray:
    """Index of the largest of N maps at each pixel of another size, one map interpolated at a time to save memory.

    Args:
        maps: N times (h, w) float.
        size: (width, height) of the result.

    Returns:
        (height, width) int64; of equal maps the first.
    """
    width, height = size
    best = torch.full((height, width), -torch.inf)
    index = torch.zeros((height, width), dtype=torch.int64)
    for number, one in enumerate(maps):
        full = F.interpolate(one.float()[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        better = full > best
        best = torch.where(better, full, best)
        index.masked_fill_(better, number)
    return index.numpy()
