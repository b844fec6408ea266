"""Regions as COCO's annotations write them: polygons or run lengths, to masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from skimage.draw import polygon

from grouping_zoo.data.limits import MAX_PIXELS

LARGEST_CORNER = 10**6


def region_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw the region of an annotation.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or run lengths {"size": [h, w], "counts": ...}.
        height: of the image.
        width: likewise.

    Returns:
        (H, W) bool: of polygons, the pixels whose center lies inside of one.

    Raises:
        ValueError: if it is neither, or not of this size.
    """
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if size != [height, width]:
            raise ValueError(f"segmentation: expected run lengths of size {[height, width]}, got {size}")
        return decode_run_lengths(segmentation)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation: expected polygons or run lengths, got {type(segmentation).__name__}")
    mask = np.zeros((height, width), dtype=bool)
    for corners in segmentation:
        if not isinstance(corners, list) or len(corners) < 6 or len(corners) % 2:
            found = f"{len(corners)} numbers" if isinstance(corners, list) else type(corners).__name__
            raise ValueError(f"segmentation: expected at least 3 pairs of x and y, got {found}")
        if not all(isinstance(corner, int | float) and abs(corner) <= LARGEST_CORNER for corner in corners):
            raise ValueError(f"segmentation: expected finite numbers up to {LARGEST_CORNER}, got others")
        # COCO counts from the image's corner, so that the first pixel's center is (0.5, 0.5).
        x, y = np.asarray(corners, dtype=np.float64).reshape(-1, 2).T - 0.5
        mask[polygon(y, x, mask.shape)] = True
    return mask


def decode_run_lengths(region: Mapping[str, Any]) -> np.ndarray:
    """Decode {"size": [h, w], "counts": ...}: lengths of runs of 0, 1, 0, ... down the columns, to (h, w) bool.

    Raises:
        ValueError: if they are of another kind, too many, or do not add up to the size.
    """
    size, counts = region.get("size"), region.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise ValueError(f"size: expected [height, width], got {size}; correct the annotation")
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError(f"size: expected at most {MAX_PIXELS} pixels, got {height}x{width}; correct the annotation")
    lengths = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(isinstance(length, int) for length in lengths):
        raise ValueError("counts: expected whole numbers or their compressed text, got others; correct the annotation")
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(
            f"counts: expected run lengths with a sum of {height}x{width} pixels, got {sum(lengths)}; "
            "is the annotation file complete?"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """Numbers in groups of five bits, the lowest first, each group a character from "0" on whose sixth bit says that
    there is more and whose fifth bit is, in the last group, the sign; from the fourth number on, differences to the
    last but one.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"counts: expected compressed run lengths, got {character!r}; correct the annotation")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = shift = 0
    return numbers
