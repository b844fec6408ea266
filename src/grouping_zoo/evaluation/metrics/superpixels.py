"""Agreement of superpixels with true regions.

Stutz, Hermans and Leibe (2018), Superpixels: An Evaluation of the State-of-the-Art, section 5.
"""

import math
from typing import ClassVar

import numpy as np
from scipy.ndimage import maximum_filter

from grouping_zoo.evaluation.metrics.base import ImageMeanMetric, Quantity, Scores
from grouping_zoo.evaluation.metrics.boundary import boundary_map, looks_at
from grouping_zoo.evaluation.metrics.regions import LabelMap, contingency, label_array


def boundary_recall(
    superpixels: LabelMap, truth: LabelMap, *, radius: int | None = None, ignore_index: int | None = None
) -> float:
    """Return the fraction of the true boundary's pixels with a superpixel boundary near, in per cent.

    Args:
        superpixels: labels (H, W).
        truth: labels (H, W).
        radius: how far up, down, left and right counts as near; 0.25 % of the image's diagonal, rounded, if omitted.
        ignore_index: true label of pixels whose label is unknown; boundaries next to them do not count.

    Returns:
        100 where there is no true boundary.
    """
    true, found = label_array("truth", truth), label_array("superpixels", superpixels)
    if true.shape != found.shape:
        raise ValueError(f"superpixels: expected labels of the truth's shape {true.shape}, got {found.shape}")
    if radius is None:
        radius = round(0.0025 * math.hypot(*true.shape))
    boundary = boundary_map(true)
    if ignore_index is not None:
        boundary &= ~looks_at(true == ignore_index)
    if not boundary.any():
        return 100.0
    near = maximum_filter(boundary_map(found), size=2 * radius + 1, mode="constant")
    return 100 * float(near[boundary].mean())


def under_segmentation_error(superpixels: LabelMap, truth: LabelMap, ignore_index: int | None = None) -> float:
    """Return the pixels by which superpixels leak over the borders of true regions, in per cent of the image.

    Neubert and Protzel (2012), Superpixel Benchmark and Comparison: of each superpixel that meets a region the smaller
    of its parts inside and outside, summed over regions.
    """
    counts = contingency(superpixels, truth, ignore_index).counts  # (superpixels, regions)
    outside = counts.sum(axis=1, keepdims=True) - counts
    return 100 * float(np.minimum(counts, outside).sum() / counts.sum())


class SuperpixelMetric(ImageMeanMetric):
    """ "boundary_recall" and "under_segmentation_error" in per cent; "superpixels", how many there are."""

    quantities: ClassVar = {"superpixels": Quantity("superpixels", "")}

    def score(self, prediction: LabelMap, truth: LabelMap) -> Scores:
        """See `ImageMeanMetric`."""
        return {
            "boundary_recall": boundary_recall(prediction, truth, ignore_index=self.ignore_index),
            "under_segmentation_error": under_segmentation_error(prediction, truth, self.ignore_index),
            "superpixels": float(len(np.unique(label_array("superpixels", prediction)))),
        }
