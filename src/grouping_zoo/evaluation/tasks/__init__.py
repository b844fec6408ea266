"""What a model can be judged by, one command for all: each task names the models that it fits, and gives figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from grouping_zoo.evaluation.tasks.context import Task
from grouping_zoo.evaluation.tasks.data import EvaluationSet
from grouping_zoo.evaluation.tasks.dissection import AlignmentOnly, GroupingOnly
from grouping_zoo.evaluation.tasks.grouping import Clustering, FigureGround, Hierarchy, SuperpixelQuality
from grouping_zoo.evaluation.tasks.labelling import HeadSegmentation, Retrieval, ZeroShotSegmentation
from grouping_zoo.evaluation.tasks.recognition import (
    LinearProbe,
    NearestNeighbours,
    TopAccuracy,
    ZeroShotClassification,
)
from grouping_zoo.evaluation.tasks.subject import Subject
from grouping_zoo.evaluation.tasks.transfer import DenseTransfer

TASKS: tuple[Task, ...] = (
    TopAccuracy(),
    NearestNeighbours(),
    LinearProbe(),
    ZeroShotClassification(),
    ZeroShotSegmentation(),
    HeadSegmentation(),
    DenseTransfer(),
    Retrieval(),
    GroupingOnly(),
    AlignmentOnly(),
    Clustering(),
    Hierarchy(),
    SuperpixelQuality(),
    FigureGround(),
)

PRESETS: dict[str, Mapping[str, Any]] = {task.name: task.presets for task in (LinearProbe(), DenseTransfer())}
"""The tasks that train something by settings that can be chosen, and these by name."""


def check_presets(presets: Mapping[str, str]) -> None:
    """Checks the choice of a preset for each task.

    Raises:
        ValueError: for a task without presets, or an unknown one, with those there are.
    """
    for task, name in presets.items():
        if task not in PRESETS:
            raise ValueError(f"--preset: expected one for {' or '.join(PRESETS)}, got {task}={name}; leave it out")
        if name not in PRESETS[task]:
            raise ValueError(f"--preset: expected for {task} one of {', '.join(PRESETS[task])}, got {name!r}")


def check_tasks(names: Sequence[str]) -> None:
    """Checks names of tasks.

    Raises:
        ValueError: for an unknown one, with those there are.
    """
    known = [task.name for task in TASKS]
    for name in names:
        if name not in known:
            raise ValueError(f"--task: expected some of {', '.join(known)}, got {name!r}")


def fitting_tasks(subject: Subject, data: EvaluationSet, names: Sequence[str] | None = None) -> list[Task]:
    """The tasks that a model can be judged by on some data.

    Args:
        subject: the model.
        data: the images.
        names: those that are asked for; all that fit if omitted.

    Raises:
        ValueError: for an unknown name, or a task that does not fit, with those that do.
    """
    check_tasks(names or ())
    fitting = [task for task in TASKS if set(task.needs) & data.knows and task.fits(subject)]
    of_name = {task.name: task for task in fitting}
    reasons = {task.name: _reason(task, subject, data) for task in TASKS}
    for name in names or ():
        if name not in of_name:
            raise ValueError(
                f"--task: {name} does not fit: {reasons[name]}; choose from {', '.join(of_name) or 'other data'}"
            )
    if not fitting:
        raise ValueError(f"--data: expected images with labels or masks for {subject.name}, got none in {data.spec}")
    return [of_name[name] for name in names] if names else fitting


def _reason(task: Task, subject: Subject, data: EvaluationSet) -> str:
    if not set(task.needs) & data.knows:
        return f"the images of {data.spec} have no {' or '.join(task.needs)}"
    return f"{subject.name} is no model for it"
