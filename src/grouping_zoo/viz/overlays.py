"""Groups and labels in colors over an image.

Label maps are (H, W) integer arrays of the image's size. Figures of small images are enlarged by a whole factor, so
that boundaries and words stay readable.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from grouping_zoo.viz.legend import LegendEntry, with_legend
from grouping_zoo.viz.palette import palette
from grouping_zoo.viz.wording import percent

MIN_FIGURE_SIDE = 512  # figures whose longer side is smaller are enlarged
COLOR_WEIGHT = 0.55
BACKGROUND_LIGHT, BACKGROUND_LIFT = 0.5, 30  # factor on the background's grey, and what is added
BOUNDARY_COLOR = (250, 250, 250)
PIXELS_PER_BOUNDARY = 700  # longer side of a figure whose boundaries are one step wider


def groups_figure(image: Image.Image, labels: np.ndarray) -> Image.Image:
    """Each group in its color over the image, with thin boundaries.

    Args:
        image: RGB.
        labels: (H, W), of the image's size; label g has color g + 1 of `palette`.

    Raises:
        ValueError: if the sizes differ, or a label is negative.
    """
    _check(image, labels)
    image, labels = _enlarge(image, labels)
    return tinted(image, labels, palette(int(labels.max()) + 2)[1:])


def tinted(
    image: Image.Image, labels: np.ndarray, colors: np.ndarray, weight: float = COLOR_WEIGHT, boundaries: bool = True
) -> Image.Image:
    """The image in grey under the labels' colors.

    Args:
        image: RGB.
        labels: (H, W), of the image's size.
        colors: (N, 3), one a label.
        weight: of the colors, the rest is the image's.
        boundaries: draw a thin line where the label changes.
    """
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    blended = weight * colors[labels] + (1 - weight) * grey
    return Image.fromarray(_with_boundaries(blended, labels) if boundaries else blended.astype(np.uint8))


def classes_figure(image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """The classes that occur, in their colors over the image, the background greyed, and a legend below.

    Args:
        image: RGB.
        labels: (H, W), of the image's size; 0 is the background, label c has color c of `palette`.
        names: of every label, background included.

    Raises:
        ValueError: if the sizes differ, or a label has no name.
    """
    _check(image, labels)
    if int(labels.max()) >= len(names):
        raise ValueError(f"names: expected one for each label up to {int(labels.max())}, got {len(names)}")
    counts = np.bincount(labels.ravel(), minlength=len(names))
    image, labels = _enlarge(image, labels)
    colors = palette(len(names))
    # Over grey, so that the colors in the figure are those of the legend.
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    blended = COLOR_WEIGHT * colors[labels] + (1 - COLOR_WEIGHT) * grey
    blended = np.where(labels[..., None] == 0, BACKGROUND_LIGHT * grey + BACKGROUND_LIFT, blended)
    figure = Image.fromarray(_with_boundaries(blended, labels))
    occurring = sorted(np.flatnonzero(counts).tolist(), key=lambda label: (label == 0, -counts[label]))
    entries = []
    for label in occurring:
        red, green, blue = colors[label].tolist()
        entries.append(LegendEntry((red, green, blue), names[label], percent(counts[label] / counts.sum())))
    return with_legend(figure, entries)


def _check(image: Image.Image, labels: np.ndarray) -> None:
    if labels.shape != (image.height, image.width):
        raise ValueError(
            f"labels: expected the image's (height, width) {(image.height, image.width)}, got {labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(f"labels: expected 0 or more, got {labels.min()}")


def _enlarge(image: Image.Image, labels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    factor = MIN_FIGURE_SIDE // max(image.size)
    if factor <= 1:
        return image, labels
    enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    return enlarged, labels.repeat(factor, axis=0).repeat(factor, axis=1)


def _with_boundaries(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) as uint8, with a line where the label changes; the line is as wide as the figure asks for."""
    edges = np.zeros(labels.shape, dtype=np.uint8)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    width = 1 + 2 * (max(labels.shape) // PIXELS_PER_BOUNDARY // 2)
    widened = np.asarray(Image.fromarray(255 * edges).filter(ImageFilter.MaxFilter(width))) > 0
    return np.where(widened[..., None], BOUNDARY_COLOR, pixels.clip(0, 255)).astype(np.uint8)
