"""Metrics of groups against true regions, averaged over images."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from grouping_zoo.evaluation.metrics.base import ImageMeanMetric, Quantity, Scores
from grouping_zoo.evaluation.metrics.regions import (
    LabelMap,
    adjusted_rand_index,
    assignment_entropies,
    best_overlaps,
    label_array,
    region_scores,
    segmentation_covering,
    variation_of_information,
)


class AdjustedRandIndex(ImageMeanMetric):
    """Adjusted Rand index of a partition, "rand_index", in per cent: 100 the same partition, 0 chance."""

    quantities: ClassVar = {"rand_index": Quantity("adjusted Rand index")}

    def score(self, prediction: LabelMap, truth: LabelMap) -> Scores:
        """See `ImageMeanMetric`."""
        return {"rand_index": adjusted_rand_index(prediction, truth, self.ignore_index)}


class PartitionMetric(AdjustedRandIndex):
    """Covering of the true regions, adjusted Rand index, and variation of information in bits."""

    quantities: ClassVar = {"variation_of_information": Quantity("variation of information", "bits")}

    def score(self, prediction: LabelMap, truth: LabelMap) -> Scores:
        """See `ImageMeanMetric`."""
        return {
            "segmentation_covering": segmentation_covering(prediction, truth, self.ignore_index).of_truth,
            **super().score(prediction, truth),
            "variation_of_information": sum(variation_of_information(prediction, truth, self.ignore_index)),
        }


class HierarchyMetric(ImageMeanMetric):
    """Covering of the true regions by each level of a hierarchy and by all together.

    Ke et al. (2022), CAST, "Hierarchical segmentation": region-wise covering (Arbelaez et al.) by F1-score.

    "covering", "covering_f1" and "region_f1" (see `region_scores`) take the best segment of any level; the same of each
    level are "covering/LEVEL" with 0 for the finest; "segments/LEVEL" is how many there are. Predictions are a list of
    label maps (B, H, W), fine to coarse.

    Args:
        ignore_index: true label of pixels that do not count.
        background: true label that is no region to find, though segments that spill into it lose by it.
    """

    quantities: ClassVar = {
        "covering_f1": Quantity("covering by F1"),
        "region_f1": Quantity("F1 of regions"),
        "segments": Quantity("segments", ""),
    }
    requirement = "a true region"

    def __init__(self, ignore_index: int | None = None, background: int | None = None) -> None:
        super().__init__(ignore_index)
        self.background = background

    def scores(self, prediction: Iterable[Any], truth: Any) -> list[Scores]:
        """See `ImageMeanMetric`."""
        return super().scores(list(zip(*prediction, strict=True)), truth)

    def score(self, prediction: Sequence[LabelMap], truth: LabelMap) -> Scores:
        """See `ImageMeanMetric`; nothing for an image without region."""
        not_regions = [label for label in (self.ignore_index, self.background) if label is not None]
        if np.isin(label_array("truth", truth), not_regions).all():
            return {}
        overlaps = best_overlaps(prediction, truth, ignore_index=self.ignore_index, background=self.background)
        found = region_scores(overlaps.iou.max(axis=0), overlaps.area)
        for number, level in enumerate(prediction):
            of_level = region_scores(overlaps.iou[number], overlaps.area)
            found |= {f"{name}/{number}": value for name, value in of_level.items()}
            found[f"segments/{number}"] = float(len(np.unique(label_array("prediction", level))))
        return found


class AssignmentEntropy(ImageMeanMetric):
    """Entropies of how tokens are assigned to groups, of assignments (B, N, M); see `assignment_entropies`."""

    quantities: ClassVar = {
        "marginal_entropy": Quantity("marginal entropy", "nats"),
        "conditional_entropy": Quantity("conditional entropy", "nats"),
    }

    def score(self, prediction: Tensor, truth: LabelMap) -> Scores:
        """See `ImageMeanMetric`."""
        marginal, conditional = assignment_entropies(prediction[None, None])
        return {"marginal_entropy": float(marginal), "conditional_entropy": float(conditional)}
