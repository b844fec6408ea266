"""`grouping-zoo compare`: the metrics of several checkpoints side by side."""

import argparse
import functools

from grouping_zoo.cli.evaluate import add_evaluation_arguments, launched_again
from grouping_zoo.cli.evaluation_run import CHECKPOINT, Columns, EvaluationRun, slug
from grouping_zoo.evaluation.report import differences, parts
from grouping_zoo.viz.charts import bar_plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("models", nargs="+", metavar="NAME_OR_DIR", help="two or more; the first is what others beat")
    add_evaluation_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Print the metrics of all models and their differences from the first, and write them if asked."""
    if launched_again():
        return
    names = list(dict.fromkeys(options.models))
    if len(names) < 2:
        raise ValueError(f"compare: expected two or more different checkpoints, got {', '.join(names)}; name another")
    evaluation = EvaluationRun(options)
    models = [evaluation.open(name) for name in names]
    fitting = [evaluation.tasks(model) for model in models]
    tasks = [task for task in fitting[0] if all(task in others for others in fitting)]
    if not tasks:
        listed = "; ".join(f"{n}: {', '.join(t.name for t in f)}" for n, f in zip(names, fitting, strict=True))
        raise ValueError(f"compare: expected checkpoints with a task in common, got {listed}; compare others")
    columns = {model.name: evaluation.column(model, tasks, show=True) for model in models}
    first, *others = names
    less = {f"{name} - {first}": differences(columns[name], columns[first]) for name in others}
    evaluation.print_table("comparison", _short_names({**columns, **less}))
    _plot_comparison(evaluation, columns, less)
    evaluation.finish(
        {name: {CHECKPOINT: column} for name, column in columns.items()}
        | {name: {"difference": column} for name, column in less.items()}
    )


def _plot_comparison(evaluation: EvaluationRun, columns: Columns, less: Columns) -> None:
    """Plot each class' IoU as bars, and its differences."""
    for task in next(iter(columns.values())):
        for kind, shown, label in (("classes", columns, "IoU, %"), ("differences", less, "difference of IoU, %")):
            bars = {name: parts(column, task, "iou") for name, column in _short_names(shown).items()}
            if any(bars.values()):
                evaluation.plots[f"comparison_{task}_{kind}"] = functools.partial(bar_plot, bars, label)


def _short_names(columns: Columns) -> Columns:
    """Name columns by the last parts of paths, as long as these differ."""
    short = [" - ".join(slug(part) for part in name.split(" - ")) for name in columns]
    return columns if len(set(short)) < len(short) else dict(zip(short, columns.values(), strict=True))
