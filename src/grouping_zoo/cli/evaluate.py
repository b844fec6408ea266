"""`grouping-zoo eval`: all metrics of checkpoints, beside the untrained models."""

import argparse
import functools
import sys

from grouping_zoo.cli.evaluation_run import CHECKPOINT, FLOOR, Columns, EvaluationRun, slug
from grouping_zoo.cli.parsing import (
    add_device_argument,
    add_label_arguments,
    count,
    folder,
    name_list,
    process_count,
    seed,
)
from grouping_zoo.data.sets import set_names
from grouping_zoo.engine.cpu_launch import launch, processes_asked_for, started_alone_by_accelerate
from grouping_zoo.evaluation.report import Column, parts
from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints
from grouping_zoo.viz.charts import bar_plot, curve_plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("models", nargs="*", metavar="NAME_OR_DIR", help="checkpoint folders, packaged or hub names")
    parser.add_argument("--all", action="store_true", help="every checkpoint that comes with the package")
    parser.add_argument(
        "--untrained", action="store_true", help="the untrained models beside; always for packaged checkpoints"
    )
    add_evaluation_arguments(parser)


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `eval` and `compare` share."""
    parser.add_argument("--task", type=name_list, metavar="NAME,NAME,...", help="by which; default: all that fit")
    parser.add_argument(
        "--metric",
        type=name_list,
        default=[],
        metavar="NAME,...",
        help="metrics of segmentation that cost minutes and are left out by default: boundary",
    )
    parser.add_argument(
        "--data",
        default="scenes",
        metavar="SET",
        help=f"{set_names()} (%(default)s)",
    )
    parser.add_argument("--split", default="validation", metavar="NAME", help="to evaluate on (%(default)s)")
    parser.add_argument("--train-split", default="train", metavar="NAME", help="for neighbours, probes (%(default)s)")
    parser.add_argument("--images", type=count, metavar="N", help="to evaluate on; default: 500 scenes, else all")
    parser.add_argument("--train-images", type=count, metavar="N", help="default: 1000 scenes, all of other sets")
    parser.add_argument("--seed", type=seed, default=0, help="of scenes, draws, untrained models (%(default)s)")
    parser.add_argument("--out", type=folder, metavar="DIR", help="metrics.json, metrics.csv and plots go here")
    parser.add_argument("--cache", type=folder, metavar="DIR", help="keep image features here, to compute them once")
    parser.add_argument(
        "--preset",
        type=_presets,
        default={},
        metavar="TASK=NAME,...",
        help="published settings to train by: linear=cast-in1k, cast-in100 or pgt-in1k; dense-transfer=cast-voc or "
        "pgt-ade20k; default: linear=sweep,dense-transfer=scenes",
    )
    parser.add_argument("--size", type=count, metavar="N", help="shorter side that the models see; default: their own")
    parser.add_argument(
        "--workers", type=process_count, default=0, metavar="N", help="processes that read images (%(default)s)"
    )
    add_device_argument(parser)
    text = parser.add_argument_group("models with text (GroupViT)")
    add_label_arguments(text)
    text.add_argument("--window", type=count, metavar="N", help="side of a sliding window; default: none")
    text.add_argument("--stride", type=count, metavar="N", help="step of the window; default: half of it")


def run(options: argparse.Namespace) -> None:
    """Print the metrics, and write them if asked; over several processes where they were launched."""
    if launched_again():
        return
    evaluation = EvaluationRun(options)
    if bool(options.models) == options.all:
        raise ValueError("eval: expected NAME_OR_DIR or --all, got neither or both; see grouping-zoo list for names")
    names = list(packaged_checkpoints()) if options.all else list(dict.fromkeys(options.models))
    results: dict[str, Columns] = {}
    for name in names:
        model = evaluation.open(name)
        tasks = evaluation.tasks(model, only_fitting=options.all)
        if tasks:
            results[name] = evaluation.columns(model, tasks)
            _plot_columns(evaluation, name, results[name])
            evaluation.print_table(name, results[name])
    if not results:
        raise ValueError(f"--task: {', '.join(options.task)} fits none of {', '.join(names)}; leave it out")
    evaluation.finish(results)


def launched_again() -> bool:
    """Start the processes that `accelerate launch --cpu` leaves to others, and return whether it did."""
    if started_alone_by_accelerate() and (processes := processes_asked_for()):
        launch(processes, sys.argv[1:], module="grouping_zoo.cli")
        return True
    return False


def _plot_columns(evaluation: EvaluationRun, name: str, columns: Columns) -> None:
    """Plot each class' IoU as bars, and curves over the levels of a hierarchy and the numbers of neighbours."""
    for task in columns[CHECKPOINT]:
        by_class = {which: values for which, column in columns.items() if (values := parts(column, task, "iou"))}
        if by_class:
            evaluation.plots[f"{slug(name)}_{task}_classes"] = functools.partial(bar_plot, by_class, "IoU, %")
    models = {which: column for which, column in columns.items() if which != FLOOR}
    if "hierarchy" in columns[CHECKPOINT]:
        levels = {which: _points(column, "hierarchy", "segments", "covering") for which, column in models.items()}
        evaluation.plots[f"{slug(name)}_hierarchy_levels"] = lambda: curve_plot(
            levels, "segments", "covering of the true regions, %", logarithmic=True
        )
    if "knn" in columns[CHECKPOINT]:
        neighbours = {
            which: [(float(part.split()[0]), value) for part, value in parts(column, "knn", "accuracy").items()]
            for which, column in models.items()
        }
        evaluation.plots[f"{slug(name)}_knn_neighbours"] = lambda: curve_plot(
            neighbours, "neighbours", "accuracy, %", logarithmic=True
        )


def _points(column: Column, task: str, x: str, y: str) -> list[tuple[float, float]]:
    across, up = parts(column, task, x), parts(column, task, y)
    return [(across[part], up[part]) for part in across]


def _presets(text: str) -> dict[str, str]:
    chosen = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if not all(chosen.values()):
        raise argparse.ArgumentTypeError(f"expected TASK=NAME such as linear=cast-in1k, got {text!r}")
    return chosen
