"""Zero-shot segmentation taken apart: what the groups are worth without text, and text without the groups.

Sharma (2023), section 5.4.

Shape legend: B images, S segments, D feature width, M labels of the masks, L classes with a text, (h, w) what the
model sees, (H, W) masks.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from grouping_zoo.evaluation.retrieval import SegmentRetrieval, Segments
from grouping_zoo.evaluation.segmentation import evaluate_segmentation
from grouping_zoo.evaluation.tasks.context import Context, View, already_found
from grouping_zoo.evaluation.tasks.labelling import LabellingTask, at_size, text_segmenter
from grouping_zoo.evaluation.tasks.segments import cluster_segments, finds_segments
from grouping_zoo.evaluation.tasks.subject import Subject
from grouping_zoo.viz.examples import Example, examples_figure
from grouping_zoo.viz.feature_space import MIN_POINTS, feature_space_plot

NEIGHBOURS = (5, 10, 15, 25)  # of Table 2
USUAL_NEIGHBOURS = 10  # the best of Table 2
MAX_PER_CLASS = 1000
SHOWN_SEGMENTS = 1000
VOID = -1


class GroupingOnly(LabellingTask):
    """Visual grouping alone (section 5.4.1): the nearest training segments, not a text, say what a group is.

    As published: a pixel belongs to its most probable final group (Eq. 49); a training segment stands for its classes
    by their share of its pixels, the first 1000 segments of each class are kept; the mean of the neighbours decides
    (Eq. 50, 51). The likeness is the cosine, about which the thesis says nothing. A model whose heads group apart, or
    that makes no groups, is judged by the clusters of its dense features.
    """

    name = "grouping-only"

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return finds_segments(subject)

    def run(self, context: Context) -> dict[str, float]:
        """See `dissected_figures`, by 10 neighbours; "miou/K neighbours" by other numbers of them."""
        subject, data = context.subject, context.data
        count = len(data.mask_names)
        retrieval = SegmentRetrieval(
            already_found, count, soft=True, max_per_class=MAX_PER_CLASS, ignore_index=data.ignore_index
        )

        def segments_and_truth(batch: dict[str, Any]) -> tuple[Any, Tensor]:
            return final_segments(subject, batch), batch["mask"]

        retrieval.fit(context.results(segments_and_truth, "training segments", "train"))

        def compute(batch: dict[str, Any]) -> tuple[Any, ...]:
            segments, truth = final_segments(subject, batch), batch["mask"]
            winners = {k: retrieval.segment_classes(segments.features, k) for k in NEIGHBOURS}  # each (B, S)
            shares = retrieval.class_shares(segments.labels, truth, segments.features.shape[1])  # (B, S, M)
            seen = shares.sum(dim=2) > 0
            labelled = segments.features[seen], shares[seen].argmax(dim=1)
            return segments.labels, winners, truth, labelled, context.shown(batch)

        scores = {k: _MeanIoU(count, data.ignore_index) for k in NEIGHBOURS}
        drawn = DrawnSegments(SHOWN_SEGMENTS, data.seed)

        def found() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
            for labels, winners, truth, labelled, pictures in context.results(compute, self.name):
                drawn.add(*labelled)
                named = {k: winner.gather(1, labels.flatten(1)).view(labels.shape) for k, winner in winners.items()}
                for k, score in scores.items():
                    score.update(named[k], truth)
                yield named[USUAL_NEIGHBOURS], named[USUAL_NEIGHBOURS], truth, pictures

        figures = dissected_figures(context, self.name, found())
        if len(drawn.classes) >= MIN_POINTS:
            context.pictures[f"{self.name}_feature_space"] = lambda: feature_space_plot(
                drawn.features.numpy(), drawn.classes.numpy(), data.mask_names, data.seed
            )
        return figures | {f"miou/{k} neighbours": score.value() for k, score in scores.items()}


class AlignmentOnly(LabellingTask):
    """Alignment with text alone (section 5.4.2): the true segments, each called what the model's texts say of it.

    As published: a segment is all pixels of a class in an image, the background's too; the model's affinities of
    pixels and classes (Eq. 36) are averaged over it (Eq. 52), and the largest mean names it (Eq. 53). The thesis leaves
    open how a segment becomes background: here by Eq. 37 as pixels do, where the best mean is below the threshold,
    which never exceeds the largest mean in the image.
    """

    name = "alignment-only"
    view: View = "whole"

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.towers is not None

    def run(self, context: Context) -> dict[str, float]:
        """See `dissected_figures`; "segment_accuracy" is the share of the segments of classes that get their class.

        It and the mean IoU without background do without the threshold: a segment has the class of its largest mean.
        """
        subject, data = context.subject, context.data
        segmenter = text_segmenter(context)
        own = torch.tensor([label for label in range(len(data.mask_names)) if label != data.background])
        hits: list[Tensor] = []

        def compute(batch: dict[str, Any]) -> tuple[Tensor, ...]:
            truth = batch["mask"]
            scores = subject.call(segmenter.scores, batch).cpu()
            means, present = mean_affinities(scores, truth, len(data.mask_names), data.ignore_index)
            return means, present, truth, context.shown(batch)

        def found() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
            for means, present, truth, pictures in context.results(compute, self.name, view=self.view):
                best, winner = means.max(dim=2)  # (B, M)
                classes = own[winner]
                hits.append((classes == torch.arange(classes.shape[1]))[:, own][present[:, own]])
                named = classes
                if data.background is not None:
                    largest = best.max(dim=1, keepdim=True).values  # segments that are not there have 0
                    named = classes.masked_fill(
                        best < largest.clamp(max=segmenter.background_threshold), data.background
                    )
                place = truth if data.ignore_index is None else truth.masked_fill(truth == data.ignore_index, 0)
                maps = [one.gather(1, place.flatten(1)).view(truth.shape) for one in (named, classes)]
                yield maps[0], maps[1], truth, pictures

        figures = dissected_figures(context, self.name, found())
        return figures | {"segment_accuracy": 100 * float(torch.cat(hits).double().mean())}


def final_segments(subject: Subject, batch: dict[str, Any]) -> Segments:
    """The most probable coarsest group of each pixel and the groups' features, on the CPU; else clusters."""
    if subject.heads != 1:
        return cluster_segments(subject, batch)
    (grouping,) = subject.groupings(batch)
    height, width = batch["pixel_values"].shape[-2:]
    owner = grouping.probabilities(-1, (height, width)).argmax(dim=1)
    return Segments(owner.cpu(), grouping.tokens[-1].float().cpu())


def mean_affinities(scores: Tensor, truth: Tensor, num_labels: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Mean over each true segment, all pixels of one label in an image (Eq. 52).

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


def dissected_figures(
    context: Context, task: str, found: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]
) -> dict[str, float]:
    """The figures that both analyses have, and a picture of examples.

    Args:
        context: the data.
        task: what it is called.
        found: for each batch the labels (B, H, W), those that count where the background does not, the truth, and the
            images to show.

    Returns:
        see `evaluate_segmentation`; "miou_without_background", where the data have one: the mean over the other
        classes, of their own pixels alone.
    """
    data = context.data
    shown: list[Example] = []
    without = _MeanIoU(len(data.mask_names), data.ignore_index, data.background)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for labels, of_classes, truth, pictures in found:
            without.update(of_classes, truth)
            rows = zip(pictures.permute(0, 2, 3, 1).numpy(), labels.numpy(), truth.numpy(), strict=False)
            shown.extend(Example(image, {"found": one, "truth": true}) for image, one, true in rows)
            yield labels, truth

    figures = evaluate_segmentation(already_found, pairs(), data.mask_names, ignore_index=data.ignore_index)
    context.pictures[f"{task}_examples"] = lambda: examples_figure(shown, data.mask_names)
    return figures | ({} if data.background is None else {"miou_without_background": without.value()})


class DrawnSegments:
    """Segments drawn by chance, each with the same chance, from batches that are seen once.

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
        self.lots = torch.empty(0)
        self.features = torch.empty(0)
        self.classes = torch.empty(0, dtype=torch.int64)

    def add(self, features: Tensor, classes: Tensor) -> None:
        """Features (n, D) and classes (n,) of a batch's segments."""
        lots = torch.cat([self.lots, torch.rand(len(classes), generator=self.generator)])
        kept = lots.argsort(stable=True)[: self.count]
        self.lots = lots[kept]
        self.features = torch.cat([self.features.view(-1, features.shape[1]), features])[kept]
        self.classes = torch.cat([self.classes, classes])[kept]


class _MeanIoU:
    """Mean IoU as `evaluate_segmentation` takes it, where one pass over the images has several predictions.

    Args:
        num_labels: M.
        ignore_index: true label of pixels that do not count.
        without: a label that counts neither as a class nor as a pixel's truth.
    """

    def __init__(self, num_labels: int, ignore_index: int | None, without: int | None = None) -> None:
        left_out = [label for label in (ignore_index, without) if label is not None]
        self.left_out = torch.tensor(left_out, dtype=torch.int64)
        self.without = without
        self.per_class = MulticlassJaccardIndex(
            num_labels, average="none", ignore_index=VOID, validate_args=False, zero_division=float("nan")
        )

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        self.per_class.update(prediction, truth.masked_fill(torch.isin(truth, self.left_out), VOID))

    def value(self) -> float:
        iou = 100 * self.per_class.compute()
        counted = torch.arange(len(iou)) != (VOID if self.without is None else self.without)
        return float(iou[counted].nanmean())
