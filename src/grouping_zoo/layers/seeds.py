"""SEEDS superpixels of one image, as the official CAST data code makes them with OpenCV.

Van den Bergh et al., "SEEDS: Superpixels Extracted via Energy-Driven Sampling" (ECCV 2012).
"""

import math
from itertools import chain
from typing import Any

import numpy as np

ITERATIONS = 20
SMALLEST_NUMBER = 10  # OpenCV raises lower ones to this


def seeds(image: np.ndarray, num_superpixels: int) -> tuple[np.ndarray, int]:
    """SEEDS in Lab, with the official settings.

    Args:
        image: (H, W, 3) RGB or (H, W, 1) grey, uint8.
        num_superpixels: how many to aim at; OpenCV often makes fewer, or more than so few as ten.
            Where OpenCV cannot work with the number, as on narrow images, the next one that it can takes its place.

    Returns:
        labels (H, W) int32 from 0 without gaps, and how many there are.

    Raises:
        ValueError: on another shape or dtype, or an image too small for any number.
        ModuleNotFoundError: where OpenCV is missing or has no SEEDS.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(f"seeds: expected uint8 of shape (H, W, 3) or (H, W, 1), got {image.dtype} {image.shape}")
    height, width, channels = image.shape
    num_superpixels = _possible_number(height, width, num_superpixels)
    cv2 = _opencv()
    if channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    algorithm = cv2.ximgproc.createSuperpixelSEEDS(
        width, height, channels, num_superpixels, num_levels=1, prior=2, histogram_bins=15, double_step=False
    )
    algorithm.iterate(image, num_iterations=ITERATIONS)
    labels = algorithm.getLabels()
    used = np.bincount(labels.ravel()) > 0
    if not used.all():
        labels = (np.cumsum(used, dtype=np.int32) - 1)[labels]
    return labels, int(used.sum())


def _possible_number(height: int, width: int, number: int) -> int:
    """The number, or the next higher or else lower one, with which OpenCV does not read out of bounds."""
    number = max(number, SMALLEST_NUMBER)
    most = height * width // 4
    for candidate in chain(range(number, most + 1), range(min(number, most + 1) - 1, SMALLEST_NUMBER - 1, -1)):
        if _is_possible(height, width, candidate):
            return candidate
    raise ValueError(
        f"seeds: an image of {height}x{width} pixels is too small for SEEDS; choose superpixel method 'slic' or 'grid'"
    )


def _is_possible(height: int, width: int, number: int) -> bool:
    """Whether two levels of blocks fit, as OpenCV lays them out: it checks nothing and would end the process."""
    rows = int(np.sqrt(np.float32(number) * np.float32(height) / np.float32(width)))
    columns = rows * width // height
    if rows < 1 or columns < 1:
        return False
    block_height, block_width = height / rows / 2, width / columns / 2
    if min(block_height, block_width) < 1:
        return False
    return height // math.ceil(block_height) >= 2 and width // math.ceil(block_width) >= 2


def _opencv() -> Any:
    """OpenCV with its contributed modules, imported only where SEEDS is used."""
    remedy = "run `pip install opencv-contrib-python-headless`, or choose superpixel method 'slic' or 'grid'"
    try:
        import cv2
    except ImportError as error:
        raise ModuleNotFoundError(f"seeds: OpenCV is not installed ({error}); {remedy}") from None
    if not hasattr(getattr(cv2, "ximgproc", None), "createSuperpixelSEEDS"):
        raise ModuleNotFoundError(
            "seeds: this OpenCV has no cv2.ximgproc, as another OpenCV package overwrote it; run `pip uninstall "
            f"opencv-python opencv-python-headless opencv-contrib-python`, then {remedy}"
        )
    return cv2
