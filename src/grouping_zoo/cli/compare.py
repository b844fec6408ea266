"""`grouping-zoo compare`: the figures of several checkpoints side by side."""

import argparse
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from grouping_zoo.cli.evaluate import CHECKPOINT, Judge, add_judging_arguments, launched_again, slug

if TYPE_CHECKING:
    from grouping_zoo.evaluation.report import Column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("models", nargs="+", metavar="NAME_OR_DIR", help="two or more; the first is what others beat")
    add_judging_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the figures of all models and their differences from the first, and writes them if asked."""
    if launched_again():
        return
    from grouping_zoo.evaluation.report import differences

    names = list(dict.fromkeys(options.models))
    if len(names) < 2:
        raise ValueError(f"compare: expected two or more different checkpoints, got {', '.join(names)}; name another")
    judge = Judge(options)
    subjects = [judge.open(name) for name in names]
    fitting = [judge.tasks(subject) for subject in subjects]
    tasks = [task for task in fitting[0] if all(task in others for others in fitting)]
    if not tasks:
        listed = "; ".join(f"{n}: {', '.join(t.name for t in f)}" for n, f in zip(names, fitting, strict=True))
        raise ValueError(f"compare: expected checkpoints with a task in common, got {listed}; compare others")
    columns = {name: judge.column(one, tasks, show=True) for name, one in zip(names, subjects, strict=True)}
    first, *others = names
    less = {f"{name} - {first}": differences(columns[name], columns[first]) for name in others}
    judge.print_table("comparison", _titled({**columns, **less}))
    _add_charts(judge, columns, less)
    judge.finish(
        {name: {CHECKPOINT: column} for name, column in columns.items()}
        | {name: {"difference": column} for name, column in less.items()}
    )


def _titled(columns: "Mapping[str, Column]") -> "Mapping[str, Column]":
    """The columns by the last parts of paths, as long as these differ."""
    short = [" - ".join(slug(part) for part in name.split(" - ")) for name in columns]
    return columns if len(set(short)) < len(short) else dict(zip(short, columns.values(), strict=True))


def _add_charts(judge: Judge, columns: "Mapping[str, Column]", less: "Mapping[str, Column]") -> None:
    """Bars of each class' IoU, and of its differences."""
    from grouping_zoo.evaluation.report import parts
    from grouping_zoo.viz.charts import bar_plot

    for task in next(iter(columns.values())):
        for kind, shown, label in (("classes", columns, "IoU, %"), ("differences", less, "difference of IoU, %")):
            bars = {name: parts(column, task, "iou") for name, column in _titled(shown).items()}
            if any(bars.values()):
                judge.pictures[f"comparison_{task}_{kind}"] = functools.partial(bar_plot, bars, label)
