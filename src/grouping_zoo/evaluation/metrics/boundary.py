"""F-measure of the boundaries between segments.

Boundaries are one pixel wide: a pixel lies on one if the pixel to its right, below it, or below its right one has
another label, as in the benchmark of Perazzi et al. (2016), A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation, section 4, whose F-measure this is.

True labels may be unknown along object borders (Pascal VOC's bands of 255). The true boundary is then taken to run
where it is equally far from the labelled pixels of both sides; predicted boundaries count for precision only between
labelled pixels.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter

from grouping_zoo.evaluation.metrics.base import ImageMeanMetric, Quantity, Scores
from grouping_zoo.evaluation.metrics.regions import LabelMap, label_array


class BoundaryScore(NamedTuple):
    """Precision, recall and their harmonic mean, in per cent."""

    precision: float
    recall: float
    f_measure: float


class KnownTruth(NamedTuple):
    """The true labels where they are known, and where they may be guessed.

    Attributes:
        labels: (H, W), the nearest known label where there was none.
        labelled: (H, W) bool, whether a label was known.
        near: (H, W) bool, at most the tolerance away from those; beyond, nothing is known about boundaries.
    """

    labels: np.ndarray
    labelled: np.ndarray
    near: np.ndarray


def boundary_map(labels: LabelMap) -> np.ndarray:
    """Return where segments meet: labels (H, W), integers or bool -> (H, W) bool."""
    array = label_array("labels", labels)
    boundary = np.zeros(array.shape, dtype=bool)
    boundary[:, :-1] |= array[:, :-1] != array[:, 1:]
    boundary[:-1] |= array[:-1] != array[1:]
    boundary[:-1, :-1] |= array[:-1, :-1] != array[1:, 1:]
    return boundary


def looks_at(mask: np.ndarray) -> np.ndarray:
    """Return the pixels whose place in `boundary_map` depends on a pixel of the mask: (H, W) bool -> (H, W) bool."""
    return maximum_filter(mask, size=2, origin=-1, mode="constant")


def default_tolerance(shape: tuple[int, ...]) -> float:
    """Return 0.75 % of the image's diagonal in pixels, rounded up, as is usual for natural images."""
    return float(math.ceil(0.0075 * math.hypot(*shape[:2])))


def known_truth(truth: LabelMap, tolerance: float, ignore_index: int | None = None) -> KnownTruth:
    """Give each pixel without a true label that of the nearest one that has it.

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


def boundary_score(prediction: LabelMap, known: KnownTruth, tolerance: float) -> BoundaryScore:
    """Compare the boundaries between the segments of one image, whatever their labels.

    Args:
        prediction: labels (H, W), integers or bool.
        known: the truth.
        tolerance: Euclidean distance in pixels up to which boundaries match; see `default_tolerance`.

    Returns:
        in per cent; of no boundary at all the precision, and if there is none to find the recall, is 100.
    """
    predicted, true = boundary_map(prediction), boundary_map(known.labels)
    precision = _matched(predicted & ~looks_at(~known.labelled), true, tolerance)
    recall = _matched(true & known.near, predicted, tolerance)
    total = precision + recall
    return BoundaryScore(100 * precision, 100 * recall, 100 * 2 * precision * recall / total if total else 0.0)


class BoundaryMetric(ImageMeanMetric):
    """Boundary F-measure of a semantic segmentation: of each class' mask, in each image that has the class.

    An image has a class that is in the truth or, among labelled pixels, in the prediction. Distance transforms of every
    class of every image cost minutes on large sets: let processes share `scores`.

    Args:
        class_names: of every label, background included.
        ignore_index: true label of pixels whose label is unknown.
        tolerance: see `boundary_score`; `default_tolerance` if omitted.
    """

    quantities: ClassVar = {"boundary_f": Quantity("boundary F-measure")}

    def __init__(
        self, class_names: Sequence[str], ignore_index: int | None = None, tolerance: float | None = None
    ) -> None:
        super().__init__(ignore_index)
        self.class_names = class_names
        self.tolerance = tolerance

    def score(self, prediction: LabelMap, truth: LabelMap) -> Scores:
        """See `ImageMeanMetric`.

        Raises:
            ValueError: on a label without class name.
        """
        predicted = label_array("prediction", prediction)
        tolerance = default_tolerance(predicted.shape) if self.tolerance is None else self.tolerance
        known = known_truth(truth, tolerance, self.ignore_index)
        if predicted.shape != known.labels.shape:
            raise ValueError(
                f"prediction: expected labels of the truth's shape {known.labels.shape}, got {predicted.shape}"
            )
        classes = np.union1d(known.labels, predicted[known.labelled]).tolist()
        if classes[0] < 0 or classes[-1] >= len(self.class_names):
            raise ValueError(
                f"labels: expected 0 to {len(self.class_names) - 1} for {len(self.class_names)} classes, got "
                f"{classes[0]} to {classes[-1]}; give its class name, or name it as ignore_index"
            )
        return {
            f"boundary_f/{self.class_names[label]}": boundary_score(
                predicted == label, known._replace(labels=known.labels == label), tolerance
            ).f_measure
            for label in classes
        }

    def compute(self) -> dict[str, float]:
        """Return "boundary_f/NAME" of the classes that occur, and "boundary_f", their mean, in per cent."""
        found = super().compute()
        classes = {name: found[name] for name in (f"boundary_f/{label}" for label in self.class_names) if name in found}
        return {"boundary_f": float(np.mean(list(classes.values()))), **classes}


def _matched(boundary: np.ndarray, other: np.ndarray, tolerance: float) -> float:
    """Return the fraction of a boundary's pixels that lie near the other boundary."""
    if not boundary.any():
        return 1.0
    if not other.any():
        return 0.0
    return float((distance_transform_edt(~other)[boundary] <= tolerance).mean())
