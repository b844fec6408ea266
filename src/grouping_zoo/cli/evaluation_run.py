"""A run of `grouping-zoo eval` or `compare`: models evaluated as the options ask, printed and written."""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import (
    EvaluatedModel,
    plain_timm_source,
    timm_model,
    transformers_model,
    untrained,
)
from grouping_zoo.evaluation.report import Column, as_csv, defined, table
from grouping_zoo.evaluation.tasks import TASKS, Task, check_names, check_presets, fitting_tasks
from grouping_zoo.evaluation.tasks.semantic_segmentation import EXTRA_METRICS, SegmentationTask, all_background
from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints
from grouping_zoo.inference.opening import check_device, open_model
from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings
from grouping_zoo.output_files import all_or_nothing, check_folder, write_json
from grouping_zoo.version import __version__

CHECKPOINT, UNTRAINED, FLOOR = "checkpoint", "untrained", "all background"
MAX_SIZE = 4096  # that models see of an image: more is a slip, and would fill the memory
Columns = Mapping[str, Column]


class EvaluationRun:
    """Models evaluated as a command's options ask, and what comes out.

    Args:
        options: see `add_evaluation_arguments`.

    Raises:
        ValueError: on options that contradict each other, or data that cannot be opened.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        if options.stride and not options.window:
            raise ValueError("--stride: expected only with --window, got it alone; add --window")
        for option, folder in (("--out", options.out), ("--cache", options.cache)):
            if folder is not None:
                check_folder(option, folder)
        if options.size is not None and options.size > MAX_SIZE:
            raise ValueError(f"--size: expected at most {MAX_SIZE} pixels, got {options.size}; lower it")
        check_names("--task", options.task or (), TASKS)
        check_names("--metric", options.metric, EXTRA_METRICS)
        check_presets(options.preset)
        for task in options.preset:
            if options.task is not None and task not in options.task:
                raise ValueError(f"--preset: expected for a task of --task, got one for {task}; add it to --task")
        check_device(options.device)
        self.options = options
        self.ranks = Ranks(options.device)
        self.data = EvaluationSet(
            spec=options.data,
            split=options.split,
            train_split=options.train_split,
            images=options.images,
            train_images=options.train_images,
            seed=options.seed,
        )
        self.skipped: dict[str, str] = {}
        self.plots: dict[str, Callable[[], Image.Image]] = {}
        self.settings: dict[str, Any] = {}

    def open(self, name: str) -> EvaluatedModel:
        """Open a model.

        Raises:
            ValueError: if there is none of that name, or an option is not for it.
        """
        device = self.ranks.device
        if (source := plain_timm_source(name)) is not None:
            model = timm_model(name, source, device)
        else:
            model = transformers_model(name, *open_model(name, str(device)), device)
        for option in ("threshold", "masks", "window"):
            if model.towers is None and getattr(self.options, option) is not None:
                raise ValueError(f"--{option}: is for models with text, which {name} is not; leave it out")
        own = {known.casefold() for known in model.class_names or ()}
        unknown = [known for known in self.data.class_names if known.casefold() not in own]
        if model.towers is not None and own and unknown and self.ranks.is_main:
            print(f"note: {name} was not made for {', '.join(unknown[:8])}; its metrics may be low", file=sys.stderr)
        return model

    def tasks(self, model: EvaluatedModel, only_fitting: bool = False) -> list[Task]:
        """Return the tasks that are asked for, or those of them that fit."""
        wanted = self.options.task
        if not only_fitting:
            return fitting_tasks(model, self.data, wanted)
        return [task for task in fitting_tasks(model, self.data) if wanted is None or task.name in wanted]

    def column(self, model: EvaluatedModel, tasks: Sequence[Task], *, show: bool) -> Column:
        """Return the metrics of a model; `show` also keeps its plots and settings."""
        context = self.context(model)
        column = defined({task.name: task.run(context) for task in tasks})
        self.skipped |= context.skipped
        if show:
            self.plots |= {f"{slug(model.name)}_{name}": draw for name, draw in context.plots.items()}
            presets = {f"{task} preset": preset for task, preset in context.presets.items()}
            self.settings[model.name] = {"size": list(context.size), **context.zero_shot, **presets}
        return column

    def columns(self, model: EvaluatedModel, tasks: Sequence[Task]) -> Columns:
        """Return the metrics of a checkpoint, of the untrained model, and the least that a segmentation has to beat."""
        columns = {CHECKPOINT: self.column(model, tasks, show=True)}
        if self.options.untrained or model.name in packaged_checkpoints():
            columns[UNTRAINED] = self.column(untrained(model, self.options.seed), tasks, show=False)
        context = self.context(model)
        crops = {task.name: task.crop for task in tasks if isinstance(task, SegmentationTask)}
        floors = {crop: all_background(context, crop) for crop in sorted(set(crops.values()))}
        if any(floors.values()):
            columns[FLOOR] = defined({name: floors[crop] for name, crop in crops.items()})
        return columns

    def context(self, model: EvaluatedModel) -> EvaluationContext:
        """Return the surroundings of the tasks."""
        options, zero_shot = self.options, {}
        if model.towers is not None:
            config = model.model.config
            zero_shot = segmenter_settings(
                config,
                background_threshold=options.threshold,
                masks=options.masks,
                window=options.window,
                stride=options.stride,
            ) | {"templates": prompt_templates(config)}
        return EvaluationContext(
            model=model,
            data=self.data,
            ranks=self.ranks,
            size=model.image_size if options.size is None else (options.size, options.size),
            zero_shot=zero_shot,
            metrics=tuple(options.metric),
            presets=options.preset,
            cache=options.cache,
            workers=options.workers,
            progress=True,
        )

    def print_table(self, title: str, columns: Columns) -> None:
        """Print metrics, on the main process."""
        if self.ranks.is_main:
            print(f"{title} on {self.data.spec}, seed {self.data.seed}")
            print(table(columns))
            if settings := self.settings.get(title):
                print(", ".join(f"{name} {value}" for name, value in settings.items()))

    def finish(self, results: Mapping[str, Columns]) -> None:
        """Name the images that could not be read, and write the files, on the main process."""
        if not self.ranks.is_main:
            return
        if self.skipped:
            print(f"skipped, because they could not be read: {len(self.skipped)}", file=sys.stderr)
            print(*(f"  {name}: {reason}" for name, reason in self.skipped.items()), sep="\n", file=sys.stderr)
        if self.options.out is None:
            return
        record = {
            "version": __version__,
            "data": self.data.settings,
            "models": {name: {"settings": self.settings.get(name, {}), "metrics": results[name]} for name in results},
            "skipped": self.skipped,
        }
        with all_or_nothing(self.options.out) as folder:
            write_json(folder / "metrics.json", record)
            (folder / "metrics.csv").write_text(as_csv(results), encoding="utf-8")
            for name, draw in self.plots.items():
                draw().save(folder / f"{name}.png")


def slug(name: str) -> str:
    """Return a model's name as files are called: the last part of a path."""
    return re.sub(r"[^\w.-]+", "_", Path(name).name)
