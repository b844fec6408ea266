"""The groups themselves, whatever they mean: against the true regions, objects or parts."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouping_zoo.evaluation.figure_ground import evaluate_figure_ground
from grouping_zoo.evaluation.grouping_metrics import (
    adjusted_rand_index,
    assignment_entropies,
    segmentation_covering,
    variation_of_information,
)
from grouping_zoo.evaluation.hierarchy import evaluate_hierarchy, hierarchy_labels
from grouping_zoo.evaluation.superpixel_quality import evaluate_superpixels
from grouping_zoo.evaluation.tasks.context import Context, already_found
from grouping_zoo.evaluation.tasks.segments import cluster_segments
from grouping_zoo.evaluation.tasks.subject import Subject

ATTENTION_BLOCK = 8  # CAST's 9th, where a network has so many


class Hierarchy:
    """All levels of the groups against the true regions, and the coarsest level as a partition.

    Heads that group apart are judged one by one; the figures are their mean.
    """

    name = "hierarchy"
    needs = ("mask",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.heads > 0

    def run(self, context: Context) -> dict[str, float]:
        """See `evaluate_hierarchy`; "rand_index" of the coarsest groups, and the entropies of their assignment."""
        subject, data = context.subject, context.data
        rand: list[float] = []
        entropies: list[Tensor] = []

        def compute(batch: dict[str, Any]) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
            truth = true_regions(batch)
            size = (truth.shape[1], truth.shape[2])
            heads = subject.groupings(batch)
            # As if each head saw images of its own: (A * B, H, W).
            levels = [
                torch.cat(maps).cpu() for maps in zip(*(hierarchy_labels(one, size) for one in heads), strict=True)
            ]
            coarsest = torch.cat([one.probabilities(-1, size).argmax(dim=1) for one in heads]).cpu()
            last = torch.cat([one.assignments[-1] for one in heads])
            return levels, coarsest, truth.repeat(len(heads), 1, 1), torch.stack(assignment_entropies(last), -1).cpu()

        def levels_and_truth() -> Iterator[tuple[Any, Tensor]]:
            for levels, coarsest, truth, entropy in context.results(compute, self.name):
                entropies.append(entropy.flatten(0, 1))
                for groups, regions in labelled(coarsest, truth, data.ignore_index):
                    rand.append(adjusted_rand_index(groups, regions, data.ignore_index))
                yield levels, truth

        figures = evaluate_hierarchy(
            already_found, levels_and_truth(), ignore_index=data.ignore_index, background=data.background
        )
        del figures["images"]
        marginal, conditional = torch.cat(entropies).double().mean(dim=0).tolist()
        nats = {"marginal_entropy": marginal, "conditional_entropy": conditional}
        return {"rand_index": float(np.mean(rand)), **figures, **nats}


class SuperpixelQuality:
    """The superpixels that a network groups, against the true regions."""

    name = "superpixels"
    needs = ("mask",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.tensors.superpixel_method is not None

    def run(self, context: Context) -> dict[str, float]:
        """See `evaluate_superpixels`."""
        found = context.results(lambda batch: (batch["superpixels"], true_regions(batch)), self.name)
        return evaluate_superpixels(already_found, found, ignore_index=context.data.ignore_index)


class Clustering:
    """Clusters of each image's dense features as its segments: what a network without groups knows of them."""

    name = "clustering"
    needs = ("mask",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return hasattr(subject.network, "forward_intermediates")

    def run(self, context: Context) -> dict[str, float]:
        """Covering of the true regions, adjusted Rand index, and variation of information in bits."""
        ignore = context.data.ignore_index
        figures = []
        found = context.results(
            lambda batch: (cluster_segments(context.subject, batch).labels, true_regions(batch)), self.name
        )
        for groups, truth in found:
            for segments, regions in labelled(groups, truth, ignore):
                covering = segmentation_covering(segments, regions, ignore).of_truth
                rand = adjusted_rand_index(segments, regions, ignore)
                figures.append((covering, rand, sum(variation_of_information(segments, regions, ignore))))
        if not figures:
            raise ValueError("--data: expected an image with a labelled pixel, got none; is the split empty?")
        names = ("segmentation_covering", "rand_index", "variation_of_information")
        return dict(zip(names, np.mean(figures, axis=0).tolist(), strict=True))


class FigureGround:
    """The tokens that the class token attends to most, against the objects."""

    name = "figure-ground"
    needs = ("mask",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return hasattr(subject.network, "class_attention")

    def run(self, context: Context) -> dict[str, float]:
        """See `evaluate_figure_ground`."""
        network, data = context.subject.network, context.data
        blocks = sum(len(stage.blocks) for stage in network.stages)
        block = min(ATTENTION_BLOCK, blocks - 1)

        def compute(batch: dict[str, Any]) -> tuple[Any, Tensor]:
            found = context.subject.call(lambda *args, **inputs: network.class_attention(*args, block, **inputs), batch)
            size = (batch["mask"].shape[1], batch["mask"].shape[2])
            token_map = found.grouping.labels(found.level, size).cpu()
            return (found.weights.float().cpu(), token_map), batch["mask"]

        background = -1 if data.background is None else data.background
        figures = evaluate_figure_ground(
            already_found,
            context.results(compute, self.name),
            background=background,
            ignore_index=data.ignore_index,
        )
        del figures["images"]
        return figures


def true_regions(batch: dict[str, Any]) -> Tensor:
    """The objects where the data tell them apart, else the classes: (B, H, W) int64."""
    return batch["instances"] if "instances" in batch else batch["mask"]


def labelled(groups: Tensor, truth: Tensor, ignore_index: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The label maps of each image that has a labelled pixel."""
    for found, true in zip(groups, truth, strict=True):
        if ignore_index is None or bool((true != ignore_index).any()):
            yield found, true
