"""Label maps as PNG files whose pixel values are the labels."""

from pathlib import Path

import numpy as np
from PIL import Image

from grouping_zoo.viz.palette import palette

MAX_LABEL = 65535


def save_label_png(labels: np.ndarray, path: Path) -> None:
    """Write labels without loss: the pixel values are the labels.

    Labels up to 255 make a PNG with a color table (mode P, as Pascal VOC has it), so that viewers show colors and
    `np.asarray(Image.open(path))` gives the labels; larger ones a 16-bit grey PNG.

    Args:
        labels: (H, W), 0 to 65535.
        path: ends in .png.

    Raises:
        ValueError: for labels out of range.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > MAX_LABEL:
        raise ValueError(f"labels: expected 0 to {MAX_LABEL}, got {low} to {high}")
    if high > 255:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette(256).tobytes())
    image.save(path)
