"""Intersection over union and pixel accuracy of label maps."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from grouping_zoo.evaluation.metrics.base import Metric, Quantity

VOID = -1


class SegmentationMetric(Metric):
    """Intersection over union over all pixels of a set.

    Args:
        class_names: of every label, background included.
        ignore_index: true label that does not count.
        left_out: label that counts neither as a class nor as a pixel's truth, such as the background.
    """

    quantities: ClassVar = {"miou": Quantity("mean IoU"), "iou": Quantity("IoU")}

    def __init__(
        self, class_names: Sequence[str], ignore_index: int | None = None, left_out: int | None = None
    ) -> None:
        self.class_names = class_names
        self.left_out = left_out
        not_counted = [label for label in (ignore_index, left_out) if label is not None]
        self.not_counted = torch.tensor(not_counted, dtype=torch.int64)
        self.counts = torch.zeros(len(class_names), len(class_names), dtype=torch.int64)  # (true, predicted)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count label maps (B, H, W), predictions in [0, number of classes)."""
        if prediction.shape != truth.shape:
            raise ValueError(
                f"prediction: expected labels of the truth's shape {tuple(truth.shape)}, got {tuple(prediction.shape)}"
            )
        counted = truth.long().masked_fill(torch.isin(truth, self.not_counted), VOID)
        self.counts += multiclass_confusion_matrix(
            prediction, counted, len(self.class_names), ignore_index=VOID, validate_args=False
        )

    def iou(self) -> Tensor:
        """Return each class' intersection over union in per cent, nan where it occurs nowhere: (K,) float64."""
        both = self.counts.diag().double()
        return 100 * both / (self.counts.sum(dim=0) + self.counts.sum(dim=1) - both)

    def mean_iou(self) -> float:
        """Return the mean over the classes that occur in truth or prediction, nan if none does."""
        classes = torch.arange(len(self.class_names)) != (VOID if self.left_out is None else self.left_out)
        return float(self.iou()[classes].nanmean())

    def compute(self) -> dict[str, float]:
        """Return "miou", "pixel_accuracy", and "iou/NAME" of each class, in per cent."""
        pixels = int(self.counts.sum())
        if not pixels:
            raise ValueError("evaluation set: expected at least one labelled pixel, got none; is the split empty?")
        named = {f"iou/{name}": float(value) for name, value in zip(self.class_names, self.iou(), strict=True)}
        return {"miou": self.mean_iou(), "pixel_accuracy": 100 * int(self.counts.trace()) / pixels, **named}
