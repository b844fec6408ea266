"""How well the boundaries of segments lie on the true ones.

Boundaries are one pixel wide: a pixel lies on one if the pixel to its right, below it, or below its right one has
another label, as in the benchmark of Perazzi et al. (2016), A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation, section 4, whose F-measure this is.

True labels may be unknown along object borders (Pascal VOC's bands of 255). The true boundary is then taken to run
where it is equally far from the labelled pixels of both sides; predicted boundaries count for precision only between
labelled pixels.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter
from torch import Tensor
from tqdm import tqdm

from grouping_zoo.evaluation.grouping_metrics import LabelMap, label_array


class BoundaryScore(NamedTuple):
    """Precision, recall and their harmonic mean, in per cent."""

    precision: float
    recall: float
    f_measure: float


class KnownTruth(NamedTuple):
    """The truth where it is known, and where it may be guessed.

    Attributes:
        labels: (H, W), the nearest known label where there was none.
        labelled: (H, W) bool, which were known.
        near: (H, W) bool, at most the tolerance away from those; beyond, nothing is known about boundaries.
    """

    labels: np.ndarray
    labelled: np.ndarray
    near: np.ndarray


def boundary_map(labels: LabelMap) -> np.ndarray:
    """Where segments meet: labels (H, W), integers or bool -> (H, W) bool."""
    array = label_array("labels", labels)
    boundary = np.zeros(array.shape, dtype=bool)
    boundary[:, :-1] |= array[:, :-1] != array[:, 1:]
    boundary[:-1] |= array[:-1] != array[1:]
    boundary[:-1, :-1] |= array[:-1, :-1] != array[1:, 1:]
    return boundary


def looks_at(mask: np.ndarray) -> np.ndarray:
    """Pixels whose place in `boundary_map` depends on a pixel of the mask: (H, W) bool -> (H, W) bool."""
    return maximum_filter(mask, size=2, origin=-1, mode="constant")


def default_tolerance(shape: tuple[int, ...]) -> float:
    """0.75 % of the image's diagonal in pixels, rounded up, as is usual for natural images."""
    return float(math.ceil(0.0075 * math.hypot(*shape[:2])))


def known_truth(truth: LabelMap, tolerance: float, ignore_index: int | None = None) -> KnownTruth:
    """Gives each pixel without a true label that of the nearest one that has it.

    Raises:
        ValueError: if no pixel has a label.
    """
    labels = label_array("truth", truth)
    labelled = np.ones_like(labels, dtype=bool) if ignore_index is None else labels != ignore_index
    if labelled.all():
        return KnownTruth(labels, labelled, labelled)
    if not labelled.any():
        raise ValueError(f"truth: expected at least one labelled pixel, got only {ignore_index}; skip such an image")
    distance, (rows, columns) = distance_transform_edt(~labelled, return_indices=True)
    return KnownTruth(labels[rows, columns], labelled, distance <= tolerance)


def boundary_score(
    prediction: LabelMap, truth: LabelMap, *, tolerance: float | None = None, ignore_index: int | None = None
) -> BoundaryScore:
    """Precision and recall of the boundaries between the segments of one image, whatever their labels.

    Args:
        prediction: labels (H, W).
        truth: labels (H, W).
        tolerance: Euclidean distance in pixels up to which boundaries match; see `default_tolerance`.
        ignore_index: true label of pixels whose label is unknown.

    Returns:
        in per cent; of no boundary at all the precision, and if there is none to find the recall, is 100.
    """
    predicted = label_array("prediction", prediction)
    tolerance = default_tolerance(predicted.shape) if tolerance is None else tolerance
    known = known_truth(truth, tolerance, ignore_index)
    if predicted.shape != known.labels.shape:
        raise ValueError(
            f"prediction: expected labels of the truth's shape {known.labels.shape}, got {predicted.shape}"
        )
    return _score(boundary_map(predicted), boundary_map(known.labels), known, tolerance)


def evaluate_boundaries(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    class_names: Sequence[str],
    *,
    tolerance: float | None = None,
    ignore_index: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Boundary F-measure of a semantic segmentation: of each class' mask, in each image that has the class.

    Args:
        predict: images (B, C, H, W) -> labels (B, H, W) int64 in [0, number of classes).
        batches: pairs of images and true labels (B, H, W).
        class_names: of every label, background included.
        tolerance: see `boundary_score`.
        ignore_index: true label of pixels whose label is unknown.
        progress: show a progress bar.

    Returns:
        "boundary_f/NAME": a class' mean over the images that have it in the truth or, among labelled pixels, in the
        prediction, nan if none has; "boundary_f": the mean over classes. In per cent.

    Raises:
        ValueError: if there is no labelled pixel, or shapes differ.
    """
    totals, images_with = np.zeros(len(class_names)), np.zeros(len(class_names), dtype=np.int64)
    for images, masks in tqdm(batches, desc="boundaries", unit="batch", disable=not progress, leave=False):
        predictions = predict(images)
        if predictions.shape != masks.shape:
            raise ValueError(
                f"predict: expected labels of the truth's shape {tuple(masks.shape)}, got {tuple(predictions.shape)}"
            )
        for prediction, truth in zip(predictions.cpu().numpy(), masks.cpu().numpy(), strict=True):
            for label, f_measure in _class_scores(prediction, truth, tolerance, ignore_index).items():
                if not 0 <= label < len(class_names):
                    raise ValueError(
                        f"labels: expected 0 to {len(class_names) - 1} for {len(class_names)} classes, got {label}; "
                        f"give its class name, or name it as ignore_index"
                    )
                totals[label] += f_measure
                images_with[label] += 1
    if not images_with.any():
        raise ValueError("evaluation set: expected at least one labelled pixel, got none; is the split empty?")
    means = np.full(len(class_names), np.nan)
    np.divide(totals, images_with, out=means, where=images_with > 0)
    named = {f"boundary_f/{name}": float(mean) for name, mean in zip(class_names, means, strict=True)}
    return {"boundary_f": float(np.nanmean(means)), **named}


def _class_scores(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float | None, ignore_index: int | None
) -> dict[int, float]:
    if ignore_index is not None and (truth == ignore_index).all():
        return {}
    reach = default_tolerance(truth.shape) if tolerance is None else tolerance
    known = known_truth(truth, reach, ignore_index)
    classes = np.union1d(known.labels, prediction[known.labelled])
    return {
        int(label): _score(
            boundary_map(prediction == label), boundary_map(known.labels == label), known, reach
        ).f_measure
        for label in classes
    }


def _score(predicted: np.ndarray, true: np.ndarray, known: KnownTruth, tolerance: float) -> BoundaryScore:
    precision = _matched(predicted & ~looks_at(~known.labelled), true, tolerance)
    recall = _matched(true & known.near, predicted, tolerance)
    total = precision + recall
    return BoundaryScore(100 * precision, 100 * recall, 100 * 2 * precision * recall / total if total else 0.0)


def _matched(boundary: np.ndarray, other: np.ndarray, tolerance: float) -> float:
    """Share of a boundary's pixels that lie near the other boundary."""
    if not boundary.any():
        return 1.0
    if not other.any():
        return 0.0
    return float((distance_transform_edt(~other)[boundary] <= tolerance).mean())
