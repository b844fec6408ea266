"""Tasks about whole images: their class by frozen features, by the model's own head, or by text."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from grouping_zoo.evaluation.context import CropMode, EvaluationContext
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.knn import knn_scores
from grouping_zoo.evaluation.linear_probe import LINEAR_PROBES, linear_probe
from grouping_zoo.evaluation.metrics.base import Quantity
from grouping_zoo.evaluation.metrics.classification import PresentClassAccuracy, TopKAccuracy, top_k_accuracy
from grouping_zoo.evaluation.tasks.registry import Task, register_task
from grouping_zoo.inference.zero_shot import class_embeddings, classify
from grouping_zoo.viz.charts import confusion_plot

NEIGHBOURS = 20
CURVE = (1, 5, 10, 20, 50)


@register_task
class TopAccuracy(Task):
    """The classes of the model's own head."""

    name = "top1"
    needs = ("label",)

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.num_outputs > 0 and not model.predicts_pixels

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `TopKAccuracy`.

        Raises:
            ValueError: if the head does not have a class of the data.
        """
        model, names = context.model, context.data.class_names
        columns = matched_classes(model, names)
        metric, predictions, labels = TopKAccuracy(), [], []

        def compute(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return model.outputs(batch).float().cpu()[:, columns], batch["label"]

        for scores, truth in context.results(compute, self.name, crop="classification"):
            metric.update(scores, truth)
            predictions.append(scores.argmax(dim=1))
            labels.append(truth)
        plot_confusion(context, self.name, torch.cat(predictions), torch.cat(labels))
        return metric.compute()


@register_task
class NearestNeighbours(Task):
    """DINO's weighted vote of the nearest training images."""

    name = "knn"
    needs = ("label",)
    learns = True

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.gives_features

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """Return the accuracy of 20 neighbours, and of other numbers of them."""
        classes = len(context.data.class_names)
        train, (features, labels) = context.features("train"), context.features("test")
        scores = {k: knn_scores(*train, features, neighbours=k, num_classes=classes) for k in (*CURVE, NEIGHBOURS)}
        plot_confusion(context, self.name, scores[NEIGHBOURS].argmax(dim=1), labels)
        curve = {f"accuracy/{k} neighbours": top_k_accuracy(scores[k], labels) for k in CURVE}
        return {"accuracy": top_k_accuracy(scores[NEIGHBOURS], labels), **curve}


@register_task
class LinearProbe(Task):
    """A linear classifier of frozen features, by default with a learning rate chosen on held-out training images."""

    name = "linear"
    needs = ("label",)
    learns = True
    presets = LINEAR_PROBES
    quantities: ClassVar = {"learning_rate": Quantity("learning rate", "")}

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.gives_features

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """Return the accuracy, and the learning rate that was taken."""
        train, test = context.features("train"), context.features("test")
        settings = self.presets[context.presets.get(self.name, "sweep")]
        classes = len(context.data.class_names)
        return linear_probe(*train, *test, settings=settings, num_classes=classes, seed=context.data.seed)


@register_task
class ZeroShotClassification(Task):
    """The class whose name fits an image best; of an image with several classes each one is right."""

    name = "zero-shot-cls"
    needs = ("label", "mask")

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.towers is not None

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `PresentClassAccuracy`."""
        model, data = context.model, context.data
        towers, text = model.towers, text_features(context)
        assert towers is not None
        metric = PresentClassAccuracy()

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            probabilities = model.call(lambda pixels, **inputs: classify(towers, pixels, text, **inputs), batch).cpu()
            return probabilities, present_classes(batch, len(data.class_names), data.background, data.ignore_index)

        crop: CropMode = "center" if "mask" in data.knows else "classification"
        for probabilities, present in context.results(compute, self.name, crop=crop):
            metric.update(probabilities, present)
        return metric.compute()


def text_features(context: EvaluationContext) -> Tensor:
    """Return (L, D) features of the data's class names by the checkpoint's prompts."""
    model = context.model
    assert model.towers is not None and model.tokenize is not None  # noqa: PT018
    return class_embeddings(model.towers, model.tokenize, context.data.class_names, context.zero_shot["templates"])


def present_classes(
    batch: dict[str, Tensor], num_classes: int, background: int | None, ignore_index: int | None
) -> Tensor:
    """Return which classes are in each image, by its mask or else its label: (B, L) bool."""
    if "mask" not in batch:
        return torch.nn.functional.one_hot(batch["label"], num_classes).bool()
    present = torch.zeros(len(batch["mask"]), num_classes, dtype=torch.bool)
    for row, mask in zip(present, batch["mask"], strict=True):
        for label in set(mask.unique().tolist()) - {background, ignore_index}:
            row[label - (background is not None and label > background)] = True
    return present


def matched_classes(model: EvaluatedModel, names: Sequence[str]) -> list[int]:
    """Return the output for each of the data's classes: by name, or one by one where the checkpoint names none.

    Raises:
        ValueError: if a class has no output.
    """
    own = model.class_names
    if own is None:
        if model.num_outputs != len(names):
            raise ValueError(
                f"data: expected the {model.num_outputs} classes of {model.name}, which does not name them, got "
                f"{len(names)}; evaluate it on the data it was trained for"
            )
        return list(range(model.num_outputs))
    places = {name.casefold(): index for index, name in enumerate(own)}
    missing = [name for name in names if name.casefold() not in places]
    if missing:
        raise ValueError(
            f"data: expected classes that {model.name} knows ({_few(own)}), got also {_few(missing)}; evaluate it on "
            "the data it was trained for"
        )
    return [places[name.casefold()] for name in names]


def plot_confusion(context: EvaluationContext, task: str, predictions: Tensor, labels: Tensor) -> None:
    """Add a plot of which classes are taken for which."""
    names = context.data.class_names
    count = len(names)
    matrix = torch.bincount(labels * count + predictions, minlength=count**2).view(count, count).numpy()
    context.plots[f"{task}_confusion"] = lambda: confusion_plot(matrix, names)


def _few(names: Sequence[str], count: int = 8) -> str:
    more = f", ... ({len(names)})" if len(names) > count else ""
    return ", ".join(names[:count]) + more
