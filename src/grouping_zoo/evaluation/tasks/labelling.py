"""A class for every pixel: by text, by the model's own head, or by the most similar training segments."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grouping_zoo.evaluation.boundaries import evaluate_boundaries
from grouping_zoo.evaluation.retrieval import SegmentRetrieval
from grouping_zoo.evaluation.segmentation import evaluate_segmentation
from grouping_zoo.evaluation.tasks.context import Context, View, already_found
from grouping_zoo.evaluation.tasks.recognition import matched_classes, text_features
from grouping_zoo.evaluation.tasks.segments import find_segments, finds_segments
from grouping_zoo.evaluation.tasks.subject import Subject
from grouping_zoo.inference.zero_shot import ZeroShotSegmenter
from grouping_zoo.viz.examples import Example, examples_figure


class LabellingTask:
    """What these tasks share.

    Attributes:
        view: what of an image is seen.
    """

    needs = ("mask",)
    view: View = "centre"


class ZeroShotSegmentation(LabellingTask):
    """The classes of the data by their names alone."""

    name = "zero-shot-seg"
    view: View = "whole"

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.towers is not None

    def run(self, context: Context) -> dict[str, float]:
        """See `label_figures`."""
        subject, data = context.subject, context.data
        segmenter = text_segmenter(context)
        background = -1 if data.background is None else data.background
        classes = [label for label in range(len(data.mask_names)) if label != background]
        numbers = torch.tensor([background, *classes])
        return label_figures(
            context, self.name, lambda batch: numbers[subject.call(segmenter, batch).cpu()], view=self.view
        )


class HeadSegmentation(LabellingTask):
    """The classes of the model's own segmentation head."""

    name = "segmentation"

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return len(subject.output_shape) == 4

    def run(self, context: Context) -> dict[str, float]:
        """See `label_figures`.

        Raises:
            ValueError: if the head lacks a class of the data.
        """
        subject, names = context.subject, context.data.mask_names
        columns = matched_classes(subject, subject.output_shape[1], names)

        def predict(batch: dict[str, Any]) -> Tensor:
            logits = subject.outputs(batch)[:, columns].float()
            size = batch["pixel_values"].shape[-2:]
            return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1).cpu()

        return label_figures(context, self.name, predict, self.view)


class Retrieval(LabellingTask):
    """The majority class of the 20 training segments that are most similar to a segment."""

    name = "retrieval"

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return finds_segments(subject)

    def run(self, context: Context) -> dict[str, float]:
        """See `label_figures`."""
        data = context.data
        retrieval = SegmentRetrieval(already_found, len(data.mask_names), ignore_index=data.ignore_index)

        def segments_and_truth(batch: dict[str, Any]) -> tuple[Any, Tensor]:
            return find_segments(context.subject, batch), batch["mask"]

        retrieval.fit(context.results(segments_and_truth, "training segments", "train"))

        def predict(batch: dict[str, Any]) -> Tensor:
            segments: Any = find_segments(context.subject, batch)
            return retrieval(segments)

        return label_figures(context, self.name, predict, self.view)


def text_segmenter(context: Context) -> ZeroShotSegmenter:
    """Zero-shot segmentation by the names of the data's classes, as the context sets it."""
    assert context.subject.towers is not None
    settings = {key: value for key, value in context.settings.items() if key != "templates"}
    if context.data.background is None:
        settings["background_threshold"] = 0.0
    return ZeroShotSegmenter(model=context.subject.towers, text=text_features(context), **settings)


def label_figures(
    context: Context, task: str, predict: Callable[[dict[str, Any]], Tensor], view: View
) -> dict[str, float]:
    """Mean and per-class IoU, pixel accuracy and boundary F-measure in one pass over the images.

    Args:
        context: the images.
        task: what it is called.
        predict: batch -> labels (B, h, w) int64 on the CPU, brought to the masks' size by the nearest label.
        view: what of an image is seen.

    Returns:
        see `evaluate_segmentation` and `evaluate_boundaries`, per cent.
    """
    data = context.data
    names = data.mask_names
    boundaries = _BoundaryMeans(names, data.ignore_index)
    shown: list[Example] = []

    def compute(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        return predict(batch), batch["mask"], context.shown(batch)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for prediction, truth, pictures in context.results(compute, task, view=view):
            labels = at_size(prediction, truth.shape[-2:])
            boundaries.update(labels, truth)
            rows = zip(pictures.permute(0, 2, 3, 1).numpy(), prediction.numpy(), truth.numpy(), strict=False)
            shown.extend(Example(image, {"found": found, "truth": true}) for image, found, true in rows)
            yield labels, truth

    figures = evaluate_segmentation(already_found, pairs(), names, ignore_index=data.ignore_index)
    context.pictures[f"{task}_examples"] = lambda: examples_figure(shown, names)
    return {**figures, **boundaries.means()}


def all_background(context: Context, view: View) -> dict[str, float]:
    """The figures of a prediction that calls every pixel background: the least that a segmentation has to beat.

    None where the data have no background.
    """
    background, names = context.data.background, context.data.mask_names
    if background is None:
        return {}
    pairs = context.results(
        lambda batch: (torch.full_like(batch["mask"], background), batch["mask"]), "all background", view=view
    )
    return evaluate_segmentation(already_found, pairs, names, ignore_index=context.data.ignore_index)


def at_size(labels: Tensor, size: Iterable[int]) -> Tensor:
    """Label maps (B, h, w) at another size, by the nearest label."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    return F.interpolate(labels[:, None].double(), size=tuple(size), mode="nearest-exact")[:, 0].long()


class _BoundaryMeans:
    """`evaluate_boundaries` image by image, so that one pass over the images is enough."""

    def __init__(self, names: list[str], ignore_index: int | None) -> None:
        self.names = names
        self.ignore_index = ignore_index
        self.scores: dict[str, list[float]] = {f"boundary_f/{name}": [] for name in names}

    def update(self, predictions: Tensor, truths: Tensor) -> None:
        for prediction, truth in zip(predictions.split(1), truths.split(1), strict=True):
            if self.ignore_index is not None and bool((truth == self.ignore_index).all()):
                continue
            figures = evaluate_boundaries(
                already_found, [(prediction, truth)], self.names, ignore_index=self.ignore_index
            )
            for name, scores in self.scores.items():
                if not np.isnan(figures[name]):
                    scores.append(figures[name])

    def means(self) -> dict[str, float]:
        classes = {name: float(np.mean(scores)) for name, scores in self.scores.items() if scores}
        return {"boundary_f": float(np.mean(list(classes.values())))}
