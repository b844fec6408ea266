"""Tasks about the class of every pixel: by text, by the model's own head, or by the most similar training segments."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from grouping_zoo.evaluation.context import CropMode, EvaluationContext
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.boundary import BoundaryMetric
from grouping_zoo.evaluation.metrics.segmentation import SegmentationMetric
from grouping_zoo.evaluation.retrieval import SegmentRetrieval
from grouping_zoo.evaluation.tasks.classification import matched_classes, text_features
from grouping_zoo.evaluation.tasks.registry import Task, register_task
from grouping_zoo.evaluation.tasks.segments import finest_segments, makes_segments
from grouping_zoo.inference.zero_shot import ZeroShotSegmenter
from grouping_zoo.viz.examples import Example, examples_figure

EXTRA_METRICS = {"boundary": BoundaryMetric}
"""Metrics of a segmentation that cost minutes, and are computed only when asked for by name."""


class SegmentationTask(Task):
    """A task whose answer is a class for every pixel.

    Attributes:
        crop: part of an image that the model sees.
    """

    needs = ("mask",)
    crop: ClassVar[CropMode] = "center"

    def evaluate(self, context: EvaluationContext, predict: Callable[[dict[str, Any]], Tensor]) -> dict[str, float]:
        """Evaluate a prediction by `SegmentationMetric` and the metrics that are asked for, and plot examples.

        Args:
            context: the images.
            predict: batch -> labels (B, h, w) int64 on the CPU, brought to the masks' size by the nearest label.
        """
        data = context.data
        metric = SegmentationMetric(data.mask_names, data.ignore_index)
        extra = [EXTRA_METRICS[name](data.mask_names, data.ignore_index) for name in context.metrics]
        examples = Examples(data.mask_names)

        def compute(batch: dict[str, Any]) -> tuple[Any, ...]:
            truth = batch["mask"]
            prediction = at_size(predict(batch), truth.shape[-2:])
            scores = [one.scores(prediction, truth) for one in extra]
            return prediction, truth, scores, context.example_images(batch)

        for prediction, truth, scores, images in context.results(compute, self.name, crop=self.crop):
            metric.update(prediction, truth)
            for one, of_batch in zip(extra, scores, strict=True):
                one.add(of_batch)
            examples.update(images, prediction, truth)
        context.plots[f"{self.name}_examples"] = examples.draw
        values = metric.compute()
        for one in extra:
            values |= one.compute()
        return values


@register_task
class ZeroShotSegmentation(SegmentationTask):
    """The classes of the data by their names alone."""

    name = "zero-shot-seg"
    crop = "whole"

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.towers is not None

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `SegmentationTask.evaluate`."""
        model, data = context.model, context.data
        segmenter = text_segmenter(context)
        background = -1 if data.background is None else data.background
        classes = [label for label in range(len(data.mask_names)) if label != background]
        numbers = torch.tensor([background, *classes])
        return self.evaluate(context, lambda batch: numbers[model.call(segmenter, batch).cpu()])


@register_task
class HeadSegmentation(SegmentationTask):
    """The classes of the model's own segmentation head."""

    name = "segmentation"

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.num_outputs > 0 and model.predicts_pixels

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `SegmentationTask.evaluate`.

        Raises:
            ValueError: if the head does not have a class of the data.
        """
        columns = matched_classes(context.model, context.data.mask_names)

        def predict(batch: dict[str, Any]) -> Tensor:
            logits = context.model.outputs(batch)[:, columns].float()
            size = batch["pixel_values"].shape[-2:]
            return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1).cpu()

        return self.evaluate(context, predict)


@register_task
class Retrieval(SegmentationTask):
    """The majority class of the 20 training segments that are most similar to a segment."""

    name = "retrieval"
    learns = True

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return makes_segments(model)

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `SegmentationTask.evaluate`."""
        model, data = context.model, context.data
        retrieval = SegmentRetrieval(len(data.mask_names), ignore_index=data.ignore_index)
        for segments, truth in context.results(
            lambda batch: (finest_segments(model, batch), batch["mask"]), "training segments", "train"
        ):
            retrieval.update(segments, truth)
        return self.evaluate(context, lambda batch: retrieval.classify(finest_segments(model, batch)))


def text_segmenter(context: EvaluationContext) -> ZeroShotSegmenter:
    """Return zero-shot segmentation by the names of the data's classes, as the context sets it."""
    assert context.model.towers is not None
    settings = {key: value for key, value in context.zero_shot.items() if key != "templates"}
    if context.data.background is None:
        settings["background_threshold"] = 0.0
    return ZeroShotSegmenter(model=context.model.towers, text=text_features(context), **settings)


def all_background(context: EvaluationContext, crop: CropMode) -> dict[str, float]:
    """Evaluate a prediction that calls every pixel background: the least that a segmentation has to beat.

    Nothing where the data have no background.
    """
    background = context.data.background
    if background is None:
        return {}
    metric = SegmentationMetric(context.data.mask_names, context.data.ignore_index)
    for truth in context.results(lambda batch: batch["mask"], "all background", crop=crop):
        metric.update(torch.full_like(truth, background), truth)
    return metric.compute()


def at_size(labels: Tensor, size: Iterable[int]) -> Tensor:
    """Bring label maps (B, h, w) to another size, by the nearest label."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    return F.interpolate(labels[:, None].double(), size=tuple(size), mode="nearest-exact")[:, 0].long()


class Examples:
    """The first images of a set beside their label maps.

    Args:
        names: of the labels.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.examples: list[Example] = []

    def update(self, images: Tensor, prediction: Tensor, truth: Tensor) -> None:
        """Keep n images (n, 3, H, W) uint8 with the first n label maps of a batch (B, H, W)."""
        rows = zip(images.permute(0, 2, 3, 1).numpy(), prediction.numpy(), truth.numpy(), strict=False)
        self.examples.extend(Example(image, {"found": found, "truth": true}) for image, found, true in rows)

    def draw(self) -> Image.Image:
        """Return a row for each image."""
        return examples_figure(self.examples, self.names)
