"""Ablations of zero-shot segmentation: groups named without text, and true segments named by text.

Sharma (2023), section 5.4.

Shape legend: B images, S segments, D feature width, M labels of the masks, L classes with a text, (h, w) what the
model sees, (H, W) masks.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.base import Quantity
from grouping_zoo.evaluation.metrics.segmentation import SegmentationMetric
from grouping_zoo.evaluation.retrieval import SegmentRetrieval
from grouping_zoo.evaluation.tasks.registry import register_task
from grouping_zoo.evaluation.tasks.segments import coarsest_segments, makes_segments
from grouping_zoo.evaluation.tasks.semantic_segmentation import Examples, SegmentationTask, at_size, text_segmenter
from grouping_zoo.viz.feature_space import MIN_POINTS, feature_space_plot

NEIGHBOURS = (5, 10, 15, 25)  # of Table 2
USUAL_NEIGHBOURS = 10  # the best of Table 2
MAX_PER_CLASS = 1000
PLOTTED_SEGMENTS = 1000


class AblationTask(SegmentationTask):
    """A segmentation task that also tells the mean IoU without background.

    "miou_without_background", where the data have one: the mean over the other classes, of their own pixels alone.
    """

    quantities: ClassVar = {"miou_without_background": Quantity("mean IoU without background")}

    def metrics(self, context: EvaluationContext) -> tuple[SegmentationMetric, SegmentationMetric]:
        """Return metrics with and without background."""
        names, ignore_index = context.data.mask_names, context.data.ignore_index
        return SegmentationMetric(names, ignore_index), SegmentationMetric(
            names, ignore_index, left_out=context.data.background
        )

    def values(
        self, context: EvaluationContext, metric: SegmentationMetric, without: SegmentationMetric
    ) -> dict[str, float]:
        """Return the values of `metrics`."""
        has_background = context.data.background is not None
        return metric.compute() | ({"miou_without_background": without.mean_iou()} if has_background else {})


@register_task
class GroupingOnly(AblationTask):
    """Visual grouping alone (section 5.4.1): the nearest training segments, not a text, name a group.

    As published: a pixel belongs to its most probable final group (Eq. 49); a training segment stands for its classes
    by their fraction of its pixels, the first 1000 segments of each class are kept; the mean of the neighbours decides
    (Eq. 50, 51). The likeness is the cosine, about which the thesis says nothing. A model whose heads group apart, or
    that makes no groups, is evaluated by the clusters of its dense features.
    """

    name = "grouping-only"
    learns = True

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return makes_segments(model)

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `AblationTask`, by 10 neighbours; "miou/K neighbours" by other numbers of them."""
        model, data = context.model, context.data
        retrieval = SegmentRetrieval(
            len(data.mask_names), soft=True, max_per_class=MAX_PER_CLASS, ignore_index=data.ignore_index
        )
        for segments, truth in context.results(
            lambda batch: (coarsest_segments(model, batch), batch["mask"]), "training segments", "train"
        ):
            retrieval.update(segments, truth)

        def compute(batch: dict[str, Any]) -> tuple[Any, ...]:
            segments, truth = coarsest_segments(model, batch), batch["mask"]
            named = {k: retrieval.classify(segments, k) for k in NEIGHBOURS}
            fractions = retrieval.class_fractions(segments, truth)  # (B, S, M)
            seen = fractions.sum(dim=2) > 0
            labelled = segments.features[seen], fractions[seen].argmax(dim=1)
            return named, truth, labelled, context.example_images(batch)

        metric, without = self.metrics(context)
        by_neighbours = {k: SegmentationMetric(data.mask_names, data.ignore_index) for k in NEIGHBOURS}
        examples, sample = Examples(data.mask_names), SegmentSample(PLOTTED_SEGMENTS, data.seed)
        for named, truth, labelled, images in context.results(compute, self.name):
            for one in (metric, without):
                one.update(named[USUAL_NEIGHBOURS], truth)
            for k, one in by_neighbours.items():
                one.update(named[k], truth)
            sample.update(*labelled)
            examples.update(images, named[USUAL_NEIGHBOURS], truth)
        context.plots[f"{self.name}_examples"] = examples.draw
        if len(sample.classes) >= MIN_POINTS:
            context.plots[f"{self.name}_feature_space"] = lambda: feature_space_plot(
                sample.features.numpy(), sample.classes.numpy(), data.mask_names, data.seed
            )
        curve = {f"miou/{k} neighbours": one.mean_iou() for k, one in by_neighbours.items()}
        return self.values(context, metric, without) | curve


@register_task
class AlignmentOnly(AblationTask):
    """Alignment with text alone (section 5.4.2): the true segments, each called what the model's texts say of it.

    As published: a segment is all pixels of a class in an image, the background's too; the model's affinities of
    pixels and classes (Eq. 36) are averaged over it (Eq. 52), and the largest mean names it (Eq. 53). The thesis leaves
    open how a segment becomes background: here by Eq. 37 as pixels do, where the best mean is below the threshold,
    which never exceeds the largest mean in the image.
    """

    name = "alignment-only"
    crop = "whole"

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.towers is not None

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `AblationTask`; "segment_accuracy" is the fraction of the segments of classes that get their class.

        It and the mean IoU without background do without the threshold: a segment has the class of its largest mean.
        """
        data = context.data
        segmenter = text_segmenter(context)
        own = torch.tensor([label for label in range(len(data.mask_names)) if label != data.background])

        def compute(batch: dict[str, Any]) -> tuple[Tensor, ...]:
            truth = batch["mask"]
            scores = context.model.call(segmenter.scores, batch).cpu()
            means, present = mean_affinities(scores, truth, len(data.mask_names), data.ignore_index)
            best, winner = means.max(dim=2)  # (B, M)
            classes = own[winner]
            hits = (classes == torch.arange(classes.shape[1]))[:, own][present[:, own]]
            named = classes
            if data.background is not None:
                largest = best.max(dim=1, keepdim=True).values  # segments that are not there have 0
                named = classes.masked_fill(best < largest.clamp(max=segmenter.background_threshold), data.background)
            place = truth if data.ignore_index is None else truth.masked_fill(truth == data.ignore_index, 0)
            maps = [one.gather(1, place.flatten(1)).view(truth.shape) for one in (named, classes)]
            return maps[0], maps[1], truth, hits, context.example_images(batch)

        (metric, without), examples, accuracy = self.metrics(context), Examples(data.mask_names), []
        for labels, of_classes, truth, hits, images in context.results(compute, self.name, crop=self.crop):
            metric.update(labels, truth)
            without.update(of_classes, truth)
            accuracy.append(hits)
            examples.update(images, labels, truth)
        context.plots[f"{self.name}_examples"] = examples.draw
        segment_accuracy = 100 * float(torch.cat(accuracy).double().mean())
        return self.values(context, metric, without) | {"segment_accuracy": segment_accuracy}


def mean_affinities(scores: Tensor, truth: Tensor, num_labels: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Average scores over each true segment, all pixels of one label in an image (Eq. 52).

    Args:
        scores: (B, L, h, w) float; a pixel of the truth has those of the nearest one here.
        truth: (B, H, W) int64.
        num_labels: M.
        ignore_index: label of pixels that do not count.

    Returns:
        the means (B, M, L), 0 where an image has no such segment, and whether it has it, (B, M) bool.
    """
    height, width = scores.shape[-2:]
    cells = at_size(torch.arange(height * width).view(1, height, width), truth.shape[-2:])[0]  # (H, W)
    means = scores.new_zeros(len(scores), num_labels, scores.shape[1])
    present = torch.zeros(len(scores), num_labels, dtype=torch.bool)
    for number, mask in enumerate(truth):
        valid = torch.ones_like(mask, dtype=torch.bool) if ignore_index is None else mask != ignore_index
        labels, segment = mask[valid].unique(return_inverse=True)
        # How often a segment has each cell: a sum over pixels without the scores at the size of the masks.
        places = segment * (height * width) + cells[valid]
        counts = torch.bincount(places, minlength=len(labels) * height * width).to(scores.dtype)
        counts = counts.view(len(labels), height * width)
        means[number, labels] = counts @ scores[number].flatten(1).T / counts.sum(dim=1, keepdim=True)
        present[number, labels] = True
    return means, present


class SegmentSample:
    """A uniform sample of segments, from batches that are seen once.

    Args:
        count: how many are kept.
        seed: of the draw.

    Attributes:
        features: (n, D).
        classes: (n,) int64.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)
        self.keys = torch.empty(0)
        self.features = torch.empty(0)
        self.classes = torch.empty(0, dtype=torch.int64)

    def update(self, features: Tensor, classes: Tensor) -> None:
        """Take features (n, D) and classes (n,) of a batch's segments."""
        keys = torch.cat([self.keys, torch.rand(len(classes), generator=self.generator)])
        kept = keys.argsort(stable=True)[: self.count]
        self.keys = keys[kept]
        self.features = torch.cat([self.features.view(-1, features.shape[1]), features])[kept]
        self.classes = torch.cat([self.classes, classes])[kept]
