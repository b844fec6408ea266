"""Figures as a table for people, and as rows for other programs.

A column is what one model, or the same model untrained, gave: {task: {figure: value}}. A figure of one class, level or
setting is called "figure/part".
"""

import csv
import io
import math
from collections.abc import Mapping

Column = Mapping[str, Mapping[str, float]]

TITLES = {
    "classification": "best class is in the image",
    "miou": "mean IoU",
    "miou_without_background": "mean IoU without background",
    "iou": "IoU",
    "rand_index": "adjusted Rand index",
    "boundary_f": "boundary F-measure",
    "covering_f1": "covering by F1",
    "region_f1": "F1 of regions",
    "jaccard": "Jaccard, each image's best head",
    "jaccard_one_head": "Jaccard, best head",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}
# What is not in per cent.
UNITS = {
    "learning_rate": "",
    "segments": "",
    "superpixels": "",
    "marginal_entropy": "nats",
    "conditional_entropy": "nats",
    "variation_of_information": "bits",
}
MAX_PARTS = 30  # of a figure that the table shows; the rest is for other programs
MIN_WIDTH = 11


def defined(column: Column) -> dict[str, dict[str, float]]:
    """Without figures of classes that occur neither in truth nor in prediction, which are no numbers."""
    return {
        task: {name: value for name, value in figures.items() if not math.isnan(value)}
        for task, figures in column.items()
    }


def differences(column: Column, reference: Column) -> dict[str, dict[str, float]]:
    """A column less another one, where both have a figure."""
    return {
        task: {name: value - reference[task][name] for name, value in figures.items() if name in reference[task]}
        for task, figures in column.items()
        if task in reference
    }


def parts(column: Column, task: str, figure: str) -> dict[str, float]:
    """The values of "figure/part" by part."""
    prefix = f"{figure}/"
    return {name[len(prefix) :]: value for name, value in column.get(task, {}).items() if name.startswith(prefix)}


def table(columns: Mapping[str, Column]) -> str:
    """The figures, task by task; a dash where a column has none."""
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
    """One line a figure.

    Args:
        results: model -> which ("checkpoint", "untrained", ...) -> its column.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["model", "column", "task", "figure", "value"])
    for model, columns in results.items():
        for which, column in columns.items():
            for task, figures in column.items():
                writer.writerows([model, which, task, name, repr(value)] for name, value in figures.items())
    return lines.getvalue()


def _shown(columns: Mapping[str, Column], task: str) -> list[str]:
    """The figures of a task in the table, those of parts after all others."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column.get(task, {})))
    counts: dict[str, int] = {}
    for name in names:
        base = name.partition("/")[0]
        counts[base] = counts.get(base, 0) + ("/" in name)
    shown = [name for name in names if "/" not in name or counts[name.partition("/")[0]] <= MAX_PARTS]
    return sorted(shown, key=lambda name: "/" in name)


def _title(name: str) -> str:
    base, _, part = name.partition("/")
    unit = UNITS.get(base, "%")
    words = TITLES.get(base, base.replace("_", " "))
    if part:
        words = f"  {words} at level {part}" if part.isdecimal() else f"  {words} {part}"
    return f"{words}, {unit}" if unit else words


def _written(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    unit = UNITS.get(name.partition("/")[0], "%")
    return f"{value:.1f}" if unit == "%" else f"{value:.3g}"
