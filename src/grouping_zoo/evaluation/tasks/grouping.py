"""Tasks about the groups themselves, whatever they mean: against the true regions, objects or parts."""

from typing import Any

import torch
from torch import Tensor

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.base import Scores
from grouping_zoo.evaluation.metrics.figure_ground import FigureGroundMetric, foreground_masks
from grouping_zoo.evaluation.metrics.grouping import (
    AdjustedRandIndex,
    AssignmentEntropy,
    HierarchyMetric,
    PartitionMetric,
)
from grouping_zoo.evaluation.metrics.superpixels import SuperpixelMetric
from grouping_zoo.evaluation.tasks.registry import Task, register_task
from grouping_zoo.evaluation.tasks.segments import cluster_segments

ATTENTION_BLOCK = 8  # CAST's 9th, where a network has so many


@register_task
class Clustering(Task):
    """Clusters of each image's dense features as its segments: what a network without groups knows of them."""

    name = "clustering"
    needs = ("mask",)

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.gives_maps

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `PartitionMetric`."""
        metric = PartitionMetric(context.data.ignore_index)

        def compute(batch: dict[str, Any]) -> list[Scores]:
            return metric.scores(cluster_segments(context.model, batch).labels, true_regions(batch))

        for scores in context.results(compute, self.name):
            metric.add(scores)
        return metric.compute()


@register_task
class Hierarchy(Task):
    """All levels of the groups against the true regions, and the coarsest level as a partition.

    Heads that group apart are evaluated one by one; the values are their mean.
    """

    name = "hierarchy"
    needs = ("mask",)

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.grouping_heads > 0

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `HierarchyMetric`; "rand_index" of the coarsest groups, and the entropies of their assignment."""
        data = context.data
        rand, hierarchy = AdjustedRandIndex(data.ignore_index), HierarchyMetric(data.ignore_index, data.background)
        entropy = AssignmentEntropy()

        def compute(batch: dict[str, Any]) -> tuple[list[Scores], ...]:
            heads = context.model.groupings(batch)
            truth = true_regions(batch).repeat(len(heads), 1, 1)  # as if each head saw images of its own: (A * B, H, W)
            size = (truth.shape[1], truth.shape[2])
            maps = ([one.labels(level, size) for level in range(one.num_levels)] for one in heads)
            levels = [torch.cat(level).cpu() for level in zip(*maps, strict=True)]
            coarsest = torch.cat([one.probabilities(-1, size).argmax(dim=1) for one in heads]).cpu()
            assignment = torch.cat([one.assignments[-1][:, 0] for one in heads]).cpu()
            return rand.scores(coarsest, truth), hierarchy.scores(levels, truth), entropy.scores(assignment, truth)

        for of_rand, of_hierarchy, of_entropy in context.results(compute, self.name):
            rand.add(of_rand)
            hierarchy.add(of_hierarchy)
            entropy.add(of_entropy)
        return rand.compute() | hierarchy.compute() | entropy.compute()


@register_task
class SuperpixelQuality(Task):
    """The superpixels that a network groups, against the true regions."""

    name = "superpixels"
    needs = ("mask",)

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.grouping_network is not None and "superpixels" in model.grouping_network.input_names

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `SuperpixelMetric`."""
        metric = SuperpixelMetric(context.data.ignore_index)
        for scores in context.results(
            lambda batch: metric.scores(batch["superpixels"], true_regions(batch)), self.name
        ):
            metric.add(scores)
        return metric.compute()


@register_task
class FigureGround(Task):
    """The tokens that the class token attends to most, against the objects."""

    name = "figure-ground"
    needs = ("mask",)

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.grouping_network is not None and model.grouping_network.has_class_attention

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `FigureGroundMetric`."""
        model, data = context.model, context.data
        blocks = sum(len(stage.blocks) for stage in model.network.stages)
        block = min(ATTENTION_BLOCK, blocks - 1)
        metric = FigureGroundMetric(data.ignore_index, data.background)

        def compute(batch: dict[str, Any]) -> list[Scores]:
            found = model.call(lambda pixels, **inputs: model.network.class_attention(pixels, block, **inputs), batch)
            token_map = found.grouping.labels(found.level, tuple(batch["mask"].shape[1:])).cpu()
            return metric.scores(foreground_masks(found.weights.float().cpu(), token_map), batch["mask"])

        for scores in context.results(compute, self.name):
            metric.add(scores)
        return metric.compute()


def true_regions(batch: dict[str, Any]) -> Tensor:
    """Return the objects where the data tell them apart, else the classes: (B, H, W) int64."""
    return batch["instances"] if "instances" in batch else batch["mask"]
