"""Accuracy of class scores.

Shape legend: N images, L classes.
"""

from typing import ClassVar

import torch
from torch import Tensor

from grouping_zoo.evaluation.metrics.base import Metric, Quantity

TOP = 5


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the fraction of images whose class is among their k best scored ones, in per cent.

    Args:
        scores: (N, L), higher is better.
        labels: (N,) int64 in [0, L).
        k: how many guesses count; with L or fewer classes every image counts.

    Raises:
        ValueError: if there is no image, or the labels do not fit the scores.
    """
    check_labels("labels", labels, len(scores), scores.shape[1])
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return 100 * float(_hits(scores, labels, k).double().mean())


class TopKAccuracy(Metric):
    """Top-1 accuracy, and top-5 where there are more than five classes."""

    quantities: ClassVar = {"top1": Quantity("top-1 accuracy"), "top5": Quantity("top-5 accuracy")}

    def __init__(self) -> None:
        self.hits = {1: 0, TOP: 0}
        self.images = self.classes = 0

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count scores (N, L) and labels (N,) int64."""
        check_labels("labels", truth, len(prediction), prediction.shape[1])
        self.images, self.classes = self.images + len(truth), prediction.shape[1]
        for k in self.hits:
            self.hits[k] += int(_hits(prediction, truth, k).sum())

    def compute(self) -> dict[str, float]:
        """Return "top1" and "top5" in per cent."""
        if not self.images:
            raise ValueError("evaluation set: expected at least one image, got none; is the split empty?")
        return {f"top{k}": 100 * hits / self.images for k, hits in self.hits.items() if k == 1 or self.classes > k}


class PresentClassAccuracy(Metric):
    """Fraction of images whose most probable class is one of those present."""

    quantities: ClassVar = {"classification": Quantity("best class is in the image")}

    def __init__(self) -> None:
        self.hits = self.images = 0

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count probabilities (N, L) and the classes present, (N, L) bool; an image without any has no right answer."""
        best = prediction.argmax(dim=1, keepdim=True)
        self.hits += int(truth.gather(1, best).sum())
        self.images += int(truth.any(dim=1).sum())

    def compute(self) -> dict[str, float]:
        """Return "classification" in per cent."""
        if not self.images:
            raise ValueError("evaluation set: expected images with a class, got none; is the split empty?")
        return {"classification": 100 * self.hits / self.images}


def check_labels(name: str, labels: Tensor, length: int, num_classes: int | None) -> None:
    """Check class numbers (N,).

    Args:
        name: what an error calls them.
        labels: the numbers.
        length: N.
        num_classes: L, None if unknown.

    Raises:
        ValueError: on another shape, no label, or one out of range.
    """
    if labels.shape != (length,) or not length or labels.is_floating_point():
        raise ValueError(
            f"{name}: expected a class number for each of the {length} images, got {labels.dtype} "
            f"{tuple(labels.shape)}; is the split empty, or without labels?"
        )
    highest = int(labels.max())
    if int(labels.min()) < 0 or (num_classes is not None and highest >= num_classes):
        raise ValueError(
            f"{name}: expected 0 to {'L - 1' if num_classes is None else num_classes - 1}, got "
            f"{int(labels.min())} to {highest}; does the number of classes fit the data set?"
        )


def _hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    best: Tensor = torch.topk(scores, min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return (best == labels.to(best.device)[:, None]).any(dim=1)
