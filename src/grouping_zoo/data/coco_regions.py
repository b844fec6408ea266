"""Regions as COCO's annotations write them: polygons or run lengths, to masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from skimage.draw import polygon


def region_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw the region of an annotation.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or run lengths {"size": [h, w], "counts": ...}.
        height: of the image.
        width: likewise.

    Returns:
        (H, W) bool: of polygons, the pixels whose centre lies inside of one.

    Raises:
        ValueError: if it is neither, or not of this size.
    """
    if isinstance(segmentation, Mapping):
        mask = decode_run_lengths(segmentation)
        if mask.shape != (height, width):
            raise ValueError(
                f"segmentation: expected run lengths of size {[height, width]}, got {segmentation['size']}"
            )
        return mask
    mask = np.zeros((height, width), dtype=bool)
    for corners in segmentation:
        if len(corners) < 6 or len(corners) % 2:
            raise ValueError(f"segmentation: expected at least 3 pairs of x and y, got {len(corners)} numbers")
        # COCO counts from the image's corner, so that the first pixel's centre is (0.5, 0.5).
        x, y = np.asarray(corners, dtype=np.float64).reshape(-1, 2).T - 0.5
        mask[polygon(y, x, mask.shape)] = True
    return mask


def decode_run_lengths(region: Mapping[str, Any]) -> np.ndarray:
    """Decode {"size": [h, w], "counts": ...}: lengths of runs of 0, 1, 0, ... down the columns, to (h, w) bool.

    Raises:
        ValueError: if the lengths do not add up to the size.
    """
    height, width = region["size"]
    counts = region["counts"]
    lengths = _decompress(counts) if isinstance(counts, str) else counts
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(
            f"counts: expected run lengths with a sum of {height}x{width} pixels, got {sum(lengths)}; "
            "is the annotation file complete?"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def _decompress(text: str) -> Sequence[int]:
    """Numbers in groups of five bits, the lowest first, each group a character from "0" on whose sixth bit says that
    there is more and whose fifth bit is, in the last group, the sign; from the fourth number on, differences to the
    last but one.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = shift = 0
    return numbers
