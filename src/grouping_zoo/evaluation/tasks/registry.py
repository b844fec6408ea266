"""Evaluation tasks by name: what they share, and which fit a model and data."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.base import QUANTITIES, Quantity


class Task(ABC):
    """One kind of evaluation.

    Attributes:
        name: of the command line, recipes and tables.
        needs: what the images must come with, "label" or "mask"; one of them is enough.
        learns: whether it learns from the training images.
        presets: settings that it trains something by, by name; none where it does not.
        quantities: title and unit of the values that no metric declares.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    learns: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Any]] = {}
    quantities: ClassVar[Mapping[str, Quantity]] = {}

    @abstractmethod
    def fits(self, model: EvaluatedModel) -> bool:
        """Return whether the model can do it."""

    @abstractmethod
    def run(self, context: EvaluationContext) -> dict[str, float]:
        """Return values by name, those of one class, level or setting as "name/class"."""


TASKS: dict[str, Task] = {}
"""The registered tasks, in the order of tables."""
TaskClass = TypeVar("TaskClass", bound=type[Task])


def register_task(cls: TaskClass) -> TaskClass:
    """Add a task to those that the command and recipes know; a decorator of its class.

    Raises:
        ValueError: if another task has its name.
    """
    if cls.name in TASKS:
        raise ValueError(f"task: expected a name that is free, got {cls.name!r}; choose another one")
    TASKS[cls.name] = cls()
    QUANTITIES.update(cls.quantities)
    return cls


def check_presets(presets: Mapping[str, str]) -> None:
    """Check the choice of a preset for each task.

    Raises:
        ValueError: for a task without presets, or an unknown one, with those there are.
    """
    known = {task.name: list(task.presets) for task in TASKS.values() if task.presets}
    for task, name in presets.items():
        if task not in known:
            raise ValueError(f"preset: expected one for {' or '.join(known)}, got {task}={name}; leave it out")
        if name not in known[task]:
            raise ValueError(f"preset: expected for {task} one of {', '.join(known[task])}, got {name!r}")


def check_names(setting: str, names: Sequence[str], known: Collection[str]) -> None:
    """Check names of tasks or metrics.

    Raises:
        ValueError: for an unknown one, with those there are.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"{setting}: expected some of {', '.join(known)}, got {name!r}")


def fitting_tasks(model: EvaluatedModel, data: EvaluationSet, names: Sequence[str] | None = None) -> list[Task]:
    """Return the tasks that a model can be evaluated by on some data.

    Args:
        model: the model.
        data: the images.
        names: those that are asked for; all that fit if omitted.

    Raises:
        ValueError: for an unknown name, or a task that does not fit, with those that do.
    """
    check_names("task", names or (), TASKS)
    fitting = {name: task for name, task in TASKS.items() if set(task.needs) & data.knows and task.fits(model)}
    for name in names or ():
        if name not in fitting:
            needs = TASKS[name].needs
            reason = (
                f"{model.name} is no model for it"
                if set(needs) & data.knows
                else f"the images of {data.spec} have no {' or '.join(needs)}"
            )
            raise ValueError(f"task: {name} does not fit: {reason}; choose from {', '.join(fitting) or 'other data'}")
    if not fitting:
        raise ValueError(f"data: expected images with labels or masks for {model.name}, got none in {data.spec}")
    return [fitting[name] for name in names or fitting]
