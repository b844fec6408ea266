"""Validation during training: tasks of `grouping-zoo eval`, with the numbers that its checkpoint would get."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.report import defined
from grouping_zoo.evaluation.tasks import TASKS, check_names, fitting_tasks
from grouping_zoo.evaluation.tasks.semantic_segmentation import EXTRA_METRICS


@dataclass(kw_only=True)
class EvaluationConfig:
    """Tasks of `grouping-zoo eval` by which the network is validated, on the images that the command takes."""

    tasks: list[str] = field(default_factory=list)
    """As `--task`: knn, top1, segmentation, zero-shot-seg, ...; empty for no validation. Their metrics are logged as
    validation/TASK/METRIC, in the command's units."""
    metrics: list[str] = field(default_factory=list)
    """As `--metric`: metrics that cost minutes."""
    data: str | None = None
    """As `--data`: scenes, photos, voc:DIR, ...; null for the data set of the training."""
    split: str = "validation"
    """Held-out split."""
    train_split: str = "train"
    """Split of the images that tasks such as knn learn from."""
    images: int | None = None
    """Held-out images, drawn by chance; null for 500 scenes, all of other data sets."""
    train_images: int | None = None
    """Training images, likewise; null for 1000 scenes, all of other data sets."""

    def __post_init__(self) -> None:
        check_names("evaluation.tasks", self.tasks, TASKS)
        check_names("evaluation.metrics", self.metrics, EXTRA_METRICS)
        for name in ("images", "train_images"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"evaluation.{name}: expected null or at least 1, got {count}; set null for all")


class Validation:
    """The tasks of a recipe.

    Args:
        config: its section.
        training_data: the data set of the training, None where no task can be run on it.
        workers: processes that read images.
        zero_shot: see `EvaluationContext`.

    Raises:
        ValueError: if there are tasks, but no data.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        training_data: str | None,
        workers: int,
        zero_shot: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.workers = workers
        self.zero_shot = zero_shot or {}
        spec = config.data or training_data
        if config.tasks and spec is None:
            raise ValueError(
                "evaluation.data: expected a data set of `grouping-zoo eval --data`, as the training data have neither "
                "labels nor masks, got null; set scenes or voc:DIR, for example"
            )
        self.data = EvaluationSet(
            spec=spec or "scenes",
            split=config.split,
            train_split=config.train_split,
            images=config.images,
            train_images=config.train_images,
        )

    def check(self, model: EvaluatedModel) -> None:
        """Open the data, so that a mistake in the settings does not end the training that leads there.

        Raises:
            ValueError: if a task does not fit model and data.
        """
        if self.config.tasks:
            tasks = fitting_tasks(model, self.data, self.config.tasks)
            if any(task.learns for task in tasks):
                self.data.source("train", model.image_size, single=True)

    def __call__(self, model: EvaluatedModel) -> dict[str, float]:
        """Return the metrics by "TASK/METRIC", the same on all processes, which share the work."""
        if not self.config.tasks:
            return {}
        context = EvaluationContext(
            model=model,
            data=self.data,
            ranks=Ranks(model.device),
            size=model.image_size,
            zero_shot=self.zero_shot,
            metrics=tuple(self.config.metrics),
            workers=self.workers,
        )
        tasks = fitting_tasks(model, self.data, self.config.tasks)
        found = defined({task.name: task.run(context) for task in tasks})
        return {f"{task}/{name}": value for task, metrics in found.items() for name, value in metrics.items()}


def card_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Name metrics as the table of a model card does: "TASK METRIC"."""
    return {name.replace("/", " ", 1): value for name, value in metrics.items()}
