"""How well superpixels keep to true regions.

Stutz, Hermans and Leibe (2018), Superpixels: An Evaluation of the State-of-the-Art, section 5.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from scipy.ndimage import maximum_filter
from torch import Tensor
from tqdm import tqdm

from grouping_zoo.evaluation.boundaries import boundary_map, looks_at
from grouping_zoo.evaluation.grouping_metrics import LabelMap, contingency, label_array


def boundary_recall(
    superpixels: LabelMap, truth: LabelMap, *, radius: int | None = None, ignore_index: int | None = None
) -> float:
    """Share of the true boundary's pixels with a superpixel boundary near, in per cent.

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
    """Pixels by which superpixels leak over the borders of true regions, in per cent of the image; 0 is best.

    Neubert and Protzel (2012), Superpixel Benchmark and Comparison: of each superpixel that meets a region the smaller
    of its parts inside and outside, summed over regions.
    """
    counts = contingency(superpixels, truth, ignore_index).counts  # (superpixels, regions)
    outside = counts.sum(axis=1, keepdims=True) - counts
    return 100 * float(np.minimum(counts, outside).sum() / counts.sum())


def evaluate_superpixels(
    make_superpixels: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    ignore_index: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Quality of superpixels over a set of images.

    Args:
        make_superpixels: images (B, C, H, W) -> labels (B, H, W).
        batches: pairs of images and true labels (B, H, W).
        ignore_index: true label of pixels that do not count.
        progress: show a progress bar.

    Returns:
        means over the images that have a labelled pixel: "boundary_recall", "under_segmentation_error" in per cent,
        "superpixels", how many there are.

    Raises:
        ValueError: if there is no such image.
    """
    figures = []
    for images, masks in tqdm(batches, desc="superpixels", unit="batch", disable=not progress, leave=False):
        for labels, truth in zip(make_superpixels(images).cpu(), masks.cpu(), strict=True):
            if ignore_index is not None and (truth == ignore_index).all():
                continue
            recall = boundary_recall(labels, truth, ignore_index=ignore_index)
            error = under_segmentation_error(labels, truth, ignore_index)
            figures.append((recall, error, float(len(labels.unique()))))
    if not figures:
        raise ValueError("evaluation set: expected at least one labelled pixel, got none; is the split empty?")
    means = np.mean(figures, axis=0)
    names = ("boundary_recall", "under_segmentation_error", "superpixels")
    return {name: float(mean) for name, mean in zip(names, means, strict=True)}
