"""Metrics as a table for people, and as rows for other programs.

A column is what one model, or the same model untrained, gave: {task: {metric: value}}. The metric of one class, level
or setting is called "metric/part".
"""

import csv
import io
import math
from collections.abc import Mapping

from grouping_zoo.evaluation.metrics.base import quantity

Column = Mapping[str, Mapping[str, float]]

MAX_PARTS = 30  # of a metric that the table shows; the rest is for other programs
MIN_WIDTH = 11


def defined(column: Column) -> dict[str, dict[str, float]]:
    """Leave out values of classes that occur neither in truth nor in prediction, which are no numbers."""
    return {
        task: {name: value for name, value in metrics.items() if not math.isnan(value)}
        for task, metrics in column.items()
    }


def differences(column: Column, reference: Column) -> dict[str, dict[str, float]]:
    """Subtract a column from another one, where both have a metric."""
    return {
        task: {name: value - reference[task][name] for name, value in metrics.items() if name in reference[task]}
        for task, metrics in column.items()
        if task in reference
    }


def parts(column: Column, task: str, metric: str) -> dict[str, float]:
    """Return the values of "metric/part" by part."""
    prefix = f"{metric}/"
    return {name[len(prefix) :]: value for name, value in column.get(task, {}).items() if name.startswith(prefix)}


def table(columns: Mapping[str, Column]) -> str:
    """Write the metrics task by task; a dash where a column has none."""
    tasks = list(dict.fromkeys(task for column in columns.values() for task in column))
    lines: list[tuple[str, list[str]]] = []
    for task in tasks:
        lines.append((task, []))
        for name in _shown(columns, task):
            values = [column.get(task, {}).get(name) for column in columns.values()]
            lines.append((f"  {_title(name)}", [_written(name, value) for value in values]))
    width = max(len(title) for title, _ in lines)
    widths = [max(len(name), MIN_WIDTH) for name in columns]
    header = (" " * width, list(columns))
    return "\n".join(
        "  ".join([title.ljust(width), *(cell.rjust(size) for cell, size in zip(cells, widths, strict=False))]).rstrip()
        for title, cells in [header, *lines]
    )


def as_csv(results: Mapping[str, Mapping[str, Column]]) -> str:
    """Write one line a metric.

    Args:
        results: model -> which ("checkpoint", "untrained", ...) -> its column.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["model", "column", "task", "metric", "value"])
    for model, columns in results.items():
        for which, column in columns.items():
            for task, metrics in column.items():
                writer.writerows([model, which, task, name, repr(value)] for name, value in metrics.items())
    return lines.getvalue()


def _shown(columns: Mapping[str, Column], task: str) -> list[str]:
    """Return the metrics of a task in the table, those of parts after all others."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column.get(task, {})))
    counts: dict[str, int] = {}
    for name in names:
        base = name.partition("/")[0]
        counts[base] = counts.get(base, 0) + ("/" in name)
    shown = [name for name in names if "/" not in name or counts[name.partition("/")[0]] <= MAX_PARTS]
    return sorted(shown, key=lambda name: "/" in name)


def _title(name: str) -> str:
    title, unit = quantity(name)
    part = name.partition("/")[2]
    if part:
        title = f"  {title} at level {part}" if part.isdecimal() else f"  {title} {part}"
    return f"{title}, {unit}" if unit else title


def _written(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if quantity(name).unit == "%" else f"{value:.3g}"
