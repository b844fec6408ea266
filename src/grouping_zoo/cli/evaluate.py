"""`grouping-zoo eval`: all figures of checkpoints, beside the untrained models."""

import argparse
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grouping_zoo.cli.parsing import (
    add_device_argument,
    add_label_arguments,
    count,
    folder,
    name_list,
    process_count,
    seed,
)
from grouping_zoo.output_files import all_or_nothing, check_folder, write_json
from grouping_zoo.version import __version__

if TYPE_CHECKING:
    from PIL import Image

    from grouping_zoo.evaluation.report import Column
    from grouping_zoo.evaluation.tasks import Task
    from grouping_zoo.evaluation.tasks.context import Context
    from grouping_zoo.evaluation.tasks.subject import Subject

CHECKPOINT, UNTRAINED, FLOOR = "checkpoint", "untrained", "all background"
MAX_SIZE = 4096  # that models see of an image: more is a slip, and would fill the memory
Pictures = dict[str, Callable[[], "Image.Image"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("models", nargs="*", metavar="NAME_OR_DIR", help="checkpoint folders, packaged or hub names")
    parser.add_argument("--all", action="store_true", help="every checkpoint that comes with the package")
    parser.add_argument(
        "--untrained", action="store_true", help="the untrained models beside; always for packaged checkpoints"
    )
    add_judging_arguments(parser)


def add_judging_arguments(parser: argparse.ArgumentParser) -> None:
    """On what, by which tasks and how models are judged."""
    parser.add_argument("--task", type=name_list, metavar="NAME,NAME,...", help="by which; default: all that fit")
    parser.add_argument(
        "--data",
        default="scenes",
        metavar="SET",
        help="scenes, digits, photos, voc:DIR, context:DIR, coco-object:DIR, coco-stuff:DIR, ade20k:DIR, lip:DIR, "
        "parts:DIR, densepose:DIR, folder:DIR or hub:NAME (%(default)s)",
    )
    parser.add_argument("--split", default="validation", metavar="NAME", help="to judge on (%(default)s)")
    parser.add_argument("--train-split", default="train", metavar="NAME", help="for neighbours, probes (%(default)s)")
    parser.add_argument("--images", type=count, metavar="N", help="to judge on; default: 500 scenes, all of other sets")
    parser.add_argument("--train-images", type=count, metavar="N", help="default: 1000 scenes, all of other sets")
    parser.add_argument("--seed", type=seed, default=0, help="of scenes, draws, untrained models (%(default)s)")
    parser.add_argument("--out", type=folder, metavar="DIR", help="figures.json, figures.csv and pictures go here")
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
    """Prints the figures, and writes them if asked; over several processes where they were launched."""
    if launched_again():
        return
    judge = Judge(options)
    names = _models(options)
    results: dict[str, dict[str, Column]] = {}
    for name in names:
        subject = judge.open(name)
        tasks = judge.tasks(subject, only_fitting=options.all)
        if tasks:
            results[name] = _columns(judge, subject, tasks)
            judge.print_table(name, results[name])
    if not results:
        raise ValueError(f"--task: {', '.join(options.task)} fits none of {', '.join(names)}; leave it out")
    judge.finish(results)


def launched_again() -> bool:
    """Starts the processes that `accelerate launch --cpu` leaves to others, and says whether it did."""
    from grouping_zoo.engine.cpu_launch import launch, processes_asked_for, started_alone_by_accelerate

    if started_alone_by_accelerate() and (processes := processes_asked_for()):
        launch(processes, sys.argv[1:], module="grouping_zoo.cli")
        return True
    return False


class Judge:
    """Judges models as a command's options ask, and shows what comes out.

    Args:
        options: see `add_judging_arguments`.

    Raises:
        ValueError: on options that contradict each other, or data that cannot be opened.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from grouping_zoo.evaluation.distributed import Processes
        from grouping_zoo.evaluation.tasks import check_presets, check_tasks
        from grouping_zoo.evaluation.tasks.data import EvaluationSet
        from grouping_zoo.inference.opening import check_device

        if options.stride and not options.window:
            raise ValueError("--stride: expected only with --window, got it alone; add --window")
        for option, path in (("--out", options.out), ("--cache", options.cache)):
            if path is not None:
                check_folder(option, path)
        if options.size is not None and options.size > MAX_SIZE:
            raise ValueError(f"--size: expected at most {MAX_SIZE} pixels, got {options.size}; lower it")
        check_tasks(options.task or ())
        check_presets(options.preset)
        for task in options.preset:
            if options.task is not None and task not in options.task:
                raise ValueError(f"--preset: expected for a task of --task, got one for {task}; add it to --task")
        check_device(options.device)
        self.options = options
        self.processes = Processes(options.device)
        self.data = EvaluationSet(
            spec=options.data,
            split=options.split,
            train_split=options.train_split,
            images=options.images,
            train_images=options.train_images,
            seed=options.seed,
        )
        self.skipped: dict[str, str] = {}
        self.pictures: Pictures = {}
        self.settings: dict[str, Any] = {}

    def open(self, name: str) -> "Subject":
        """Opens a model.

        Raises:
            ValueError: if there is none of that name, or an option is not for it.
        """
        from grouping_zoo.evaluation.tasks.subject import plain_timm_source, timm_subject, transformers_subject
        from grouping_zoo.inference.opening import open_model

        device = self.processes.device
        if (source := plain_timm_source(name)) is not None:
            subject = timm_subject(name, source, device)
        else:
            subject = transformers_subject(name, *open_model(name, str(device)), device)
        for option in ("threshold", "masks", "window"):
            if subject.towers is None and getattr(self.options, option) is not None:
                raise ValueError(f"--{option}: is for models with text, which {name} is not; leave it out")
        own = {known.casefold() for known in subject.class_names or ()}
        foreign = [known for known in self.data.class_names if known.casefold() not in own]
        if subject.towers is not None and own and foreign and self.processes.is_first:
            print(f"note: {name} was not made for {', '.join(foreign[:8])}; its figures may be low", file=sys.stderr)
        return subject

    def tasks(self, subject: "Subject", only_fitting: bool = False) -> "list[Task]":
        """The tasks that are asked for, or those of them that fit."""
        from grouping_zoo.evaluation.tasks import fitting_tasks

        wanted = self.options.task
        if not only_fitting:
            return fitting_tasks(subject, self.data, wanted)
        return [task for task in fitting_tasks(subject, self.data) if wanted is None or task.name in wanted]

    def column(self, subject: "Subject", tasks: "Sequence[Task]", *, show: bool) -> "Column":
        """The figures of a model; `show` also keeps its pictures."""
        from grouping_zoo.evaluation.report import defined

        context = self.context(subject)
        figures = defined({task.name: task.run(context) for task in tasks})
        self.skipped |= context.skipped
        if show:
            self.pictures |= {f"{slug(subject.name)}_{name}": draw for name, draw in context.pictures.items()}
            presets = {f"{task} preset": preset for task, preset in context.presets.items()}
            self.settings[subject.name] = {"size": list(context.size), **context.settings, **presets}
        return figures

    def context(self, subject: "Subject") -> "Context":
        """What the tasks are given."""
        from grouping_zoo.evaluation.tasks.context import Context
        from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings

        options, settings = self.options, {}
        if subject.towers is not None:
            config = subject.model.config
            settings = segmenter_settings(
                config,
                background_threshold=options.threshold,
                masks=options.masks,
                window=options.window,
                stride=options.stride,
            ) | {"templates": prompt_templates(config)}
        return Context(
            subject=subject,
            data=self.data,
            processes=self.processes,
            size=subject.image_size if options.size is None else (options.size, options.size),
            settings=settings,
            presets=options.preset,
            cache=options.cache,
            workers=options.workers,
            progress=True,
        )

    def print_table(self, title: str, columns: "Mapping[str, Column]") -> None:
        """Prints figures, on the first process."""
        from grouping_zoo.evaluation.report import table

        if self.processes.is_first:
            print(f"{title} on {self.data.spec}, seed {self.data.seed}")
            print(table(columns))
            if settings := self.settings.get(title):
                print(", ".join(f"{name} {value}" for name, value in settings.items()))

    def finish(self, results: "Mapping[str, Mapping[str, Column]]") -> None:
        """Names the images that could not be read, and writes the files, on the first process."""
        from grouping_zoo.evaluation.report import as_csv

        if not self.processes.is_first:
            return
        if self.skipped:
            print(f"skipped, because they could not be read: {len(self.skipped)}", file=sys.stderr)
            print(*(f"  {name}: {reason}" for name, reason in self.skipped.items()), sep="\n", file=sys.stderr)
        if self.options.out is None:
            return
        record = {
            "version": __version__,
            "data": dataclasses.asdict(self.data),
            "models": {name: {"settings": self.settings.get(name, {}), "figures": results[name]} for name in results},
            "skipped": self.skipped,
        }
        with all_or_nothing(self.options.out) as unfinished:
            write_json(unfinished / "figures.json", record)
            (unfinished / "figures.csv").write_text(as_csv(results), encoding="utf-8")
            for name, draw in self.pictures.items():
                draw().save(unfinished / f"{name}.png")


def slug(name: str) -> str:
    """A model's name as files are called: the last part of a path."""
    return re.sub(r"[^\w.-]+", "_", Path(name).name)


def _models(options: argparse.Namespace) -> list[str]:
    from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints

    if bool(options.models) == options.all:
        raise ValueError("eval: expected NAME_OR_DIR or --all, got neither or both; see grouping-zoo list for names")
    return list(packaged_checkpoints()) if options.all else list(dict.fromkeys(options.models))


def _columns(judge: Judge, subject: "Subject", tasks: "Sequence[Task]") -> "dict[str, Column]":
    """The checkpoint's figures, those of the untrained model, and the least that a segmentation has to beat."""
    from grouping_zoo.evaluation.report import defined
    from grouping_zoo.evaluation.tasks.labelling import LabellingTask, all_background
    from grouping_zoo.evaluation.tasks.subject import untrained
    from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints

    columns = {CHECKPOINT: judge.column(subject, tasks, show=True)}
    if judge.options.untrained or subject.name in packaged_checkpoints():
        columns[UNTRAINED] = judge.column(untrained(subject, judge.options.seed), tasks, show=False)
    context = judge.context(subject)
    views = {task.name: task.view for task in tasks if isinstance(task, LabellingTask)}
    floors = {view: all_background(context, view) for view in sorted(set(views.values()))}
    if any(floors.values()):
        columns[FLOOR] = defined({name: floors[view] for name, view in views.items()})
    _add_charts(judge, subject.name, columns)
    return columns


def _add_charts(judge: Judge, name: str, columns: "Mapping[str, Column]") -> None:
    """Bars of each class' IoU, and curves over the levels of a hierarchy and the numbers of neighbours."""
    from grouping_zoo.evaluation.report import parts
    from grouping_zoo.viz.charts import bar_plot, curve_plot

    for task in columns[CHECKPOINT]:
        by_class = {which: values for which, column in columns.items() if (values := parts(column, task, "iou"))}
        if by_class:
            judge.pictures[f"{slug(name)}_{task}_classes"] = functools.partial(bar_plot, by_class, "IoU, %")
    models = {which: column for which, column in columns.items() if which != FLOOR}
    if "hierarchy" in columns[CHECKPOINT]:
        levels = {which: _pairs(column, "hierarchy", "segments", "covering") for which, column in models.items()}
        judge.pictures[f"{slug(name)}_hierarchy_levels"] = lambda: curve_plot(
            levels, "segments", "covering of the true regions, %", logarithmic=True
        )
    if "knn" in columns[CHECKPOINT]:
        neighbours = {
            which: [(float(part.split()[0]), value) for part, value in parts(column, "knn", "accuracy").items()]
            for which, column in models.items()
        }
        judge.pictures[f"{slug(name)}_knn_neighbours"] = lambda: curve_plot(
            neighbours, "neighbours", "accuracy, %", logarithmic=True
        )


def _pairs(column: "Column", task: str, x: str, y: str) -> list[tuple[float, float]]:
    from grouping_zoo.evaluation.report import parts

    across, up = parts(column, task, x), parts(column, task, y)
    return [(across[part], up[part]) for part in across]


def _presets(text: str) -> dict[str, str]:
    chosen = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if not all(chosen.values()):
        raise argparse.ArgumentTypeError(f"expected TASK=NAME such as linear=cast-in1k, got {text!r}")
    return chosen
