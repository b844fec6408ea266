"""Whole images: their class by frozen features, by the model's own head, or by text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grouping_zoo.evaluation.recognition import LINEAR_PROBES, knn_scores, linear_probe, top_k_accuracy
from grouping_zoo.evaluation.segmentation import present_class_accuracy
from grouping_zoo.evaluation.tasks.context import Context, View
from grouping_zoo.evaluation.tasks.subject import Subject
from grouping_zoo.inference.zero_shot import class_embeddings, classify
from grouping_zoo.viz.charts import confusion_plot

NEIGHBOURS = 20
CURVE = (1, 5, 10, 20, 50)
TOP = 5


class NearestNeighbours:
    """DINO's weighted vote of the nearest training images."""

    name = "knn"
    needs = ("label",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.gives_features

    def run(self, context: Context) -> dict[str, float]:
        """Accuracy of 20 neighbours, and of other numbers of them."""
        names = context.data.class_names
        train, test = context.features("train"), context.features("test")
        scores = {k: knn_scores(*train, test[0], neighbours=k, num_classes=len(names)) for k in (*CURVE, NEIGHBOURS)}
        figures = {"accuracy": top_k_accuracy(scores[NEIGHBOURS], test[1])}
        show_confusion(context, self.name, scores[NEIGHBOURS].argmax(dim=1), test[1], names)
        return figures | {f"accuracy/{k} neighbours": top_k_accuracy(scores[k], test[1]) for k in CURVE}


class LinearProbe:
    """A linear classifier of frozen features, by default with a learning rate chosen on held-out training images."""

    name = "linear"
    presets = LINEAR_PROBES
    needs = ("label",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.gives_features

    def run(self, context: Context) -> dict[str, float]:
        """Accuracy, and the learning rate that was taken."""
        train, test = context.features("train"), context.features("test")
        settings = self.presets[context.presets.get(self.name, "sweep")]
        names = context.data.class_names
        return linear_probe(*train, *test, settings=settings, num_classes=len(names), seed=context.data.seed)


class TopAccuracy:
    """The classes of the model's own head."""

    name = "top1"
    needs = ("label",)

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return len(subject.output_shape) == 2

    def run(self, context: Context) -> dict[str, float]:
        """Top-1 and top-5 accuracy.

        Raises:
            ValueError: if the head lacks a class of the data.
        """
        subject, names = context.subject, context.data.class_names
        columns = matched_classes(subject, subject.output_shape[1], names)
        found = context.results(
            lambda batch: (subject.outputs(batch).float().cpu()[:, columns], batch["label"]),
            self.name,
            view="class",
        )
        logits, labels = (torch.cat(values) for values in zip(*found, strict=True))
        show_confusion(context, self.name, logits.argmax(dim=1), labels, names)
        return _top_figures(logits, labels)


class ZeroShotClassification:
    """The class whose name fits an image best; of an image with several classes each one is right."""

    name = "zero-shot-cls"
    needs = ("label", "mask")

    def fits(self, subject: Subject) -> bool:
        """See `Task`."""
        return subject.towers is not None

    def run(self, context: Context) -> dict[str, float]:
        """Share of images whose best class is there."""
        subject, data = context.subject, context.data
        assert subject.towers is not None
        towers, text = subject.towers, text_features(context)

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            probabilities = subject.call(lambda pixels: classify(towers, pixels, text), batch).cpu()
            return probabilities, present_classes(batch, len(data.class_names), data.background, data.ignore_index)

        view: View = "centre" if "mask" in data.knows else "class"
        found = context.results(compute, self.name, view=view)
        probabilities, present = (torch.cat(values) for values in zip(*found, strict=True))
        some = present.any(dim=1)  # an image of background alone has no right answer
        if not some.any():
            raise ValueError("--data: expected images with a class, got none; is the split empty?")
        return {"classification": present_class_accuracy(probabilities[some], present[some])}


def text_features(context: Context) -> Tensor:
    """(L, D) features of the data's class names by the checkpoint's prompts."""
    subject = context.subject
    assert subject.towers is not None
    templates = context.settings["templates"]
    return class_embeddings(subject.towers, subject.tokenize, context.data.class_names, templates)


def present_classes(
    batch: dict[str, Tensor], num_classes: int, background: int | None, ignore_index: int | None
) -> Tensor:
    """Which classes are in each image, by its mask or else its label: (B, L) bool."""
    if "mask" not in batch:
        return torch.nn.functional.one_hot(batch["label"], num_classes).bool()
    present = torch.zeros(len(batch["mask"]), num_classes, dtype=torch.bool)
    for row, mask in zip(present, batch["mask"], strict=True):
        for label in set(mask.unique().tolist()) - {background, ignore_index}:
            row[label - (background is not None and label > background)] = True
    return present


def matched_classes(subject: Subject, num_outputs: int, names: Sequence[str]) -> list[int]:
    """The output of each of the data's classes: by name, or one by one where the checkpoint names none.

    Raises:
        ValueError: if a class has no output.
    """
    own = subject.class_names
    if own is None:
        if num_outputs != len(names):
            raise ValueError(
                f"--data: expected the {num_outputs} classes of {subject.name}, which does not name them, got "
                f"{len(names)}; judge it on the data it was trained for"
            )
        return list(range(num_outputs))
    places = {name.casefold(): index for index, name in enumerate(own)}
    missing = [name for name in names if name.casefold() not in places]
    if missing:
        raise ValueError(
            f"--data: expected classes that {subject.name} knows ({_few(own)}), got also {_few(missing)}; judge it on "
            "the data it was trained for"
        )
    return [places[name.casefold()] for name in names]


def show_confusion(context: Context, task: str, predictions: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    """Adds a picture of which classes are taken for which."""
    count = len(names)
    matrix = torch.bincount(labels * count + predictions, minlength=count**2).view(count, count).numpy()
    context.pictures[f"{task}_confusion"] = lambda: confusion_plot(matrix, names)


def _top_figures(scores: Tensor, labels: Tensor) -> dict[str, float]:
    figures = {"top1": top_k_accuracy(scores, labels)}
    return figures | ({f"top{TOP}": top_k_accuracy(scores, labels, TOP)} if scores.shape[1] > TOP else {})


def _few(names: Sequence[str], count: int = 8) -> str:
    more = f", ... ({len(names)})" if len(names) > count else ""
    return ", ".join(names[:count]) + more
