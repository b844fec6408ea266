"""Evaluation tasks; importing a module registers its tasks, in the order of tables."""

from grouping_zoo.evaluation.tasks import classification  # isort: skip  # noqa: F401
from grouping_zoo.evaluation.tasks import semantic_segmentation  # isort: skip  # noqa: F401
from grouping_zoo.evaluation.tasks import dense_transfer  # isort: skip  # noqa: F401
from grouping_zoo.evaluation.tasks import ablation  # isort: skip  # noqa: F401
from grouping_zoo.evaluation.tasks import grouping  # isort: skip  # noqa: F401
from grouping_zoo.evaluation.tasks.registry import (
    TASKS,
    Task,
    check_names,
    check_presets,
    fitting_tasks,
    register_task,
)

__all__ = ["TASKS", "Task", "check_names", "check_presets", "fitting_tasks", "register_task"]
