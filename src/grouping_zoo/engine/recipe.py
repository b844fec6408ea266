"""Recipes: everything that decides a training run, as checked dataclasses read from YAML."""

import argparse
import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import timm.optim
import yaml

from grouping_zoo.engine.task import Task

TASKS: dict[str, str] = {
    "dino": "grouping_zoo.engine.dino:DINORecipe",
    "image_text": "grouping_zoo.engine.image_text:ImageTextRecipe",
    "moco_v3": "grouping_zoo.engine.moco_v3:MoCoV3Recipe",
    "supervised": "grouping_zoo.engine.supervised:SupervisedRecipe",
}
"""Task name -> "module:Recipe class"."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """How the parameters are updated."""

    name: str = "adamw"
    """Any of timm's optimizers."""
    learning_rate: float = 1e-3
    """Peak learning rate, for the batch size as it is: nothing scales it."""
    weight_decay: float = 0.05
    """Spares biases, all one-dimensional parameters and what the network's `no_weight_decay()` names."""
    betas: tuple[float, float] | None = None
    """Decay rates of the running averages; null leaves the optimizer's own."""
    layer_decay: float | None = None
    """Each layer's learning rate as a factor of that of the layer above it; null for one rate everywhere."""
    clip_grad_norm: float | None = None
    """Largest norm of the whole gradient; null does not clip."""

    def __post_init__(self) -> None:
        known = [str(name) for name in timm.optim.list_optimizers()]
        if self.name not in known:
            raise ValueError(f"optimizer.name: expected one of timm's optimizers{_suggest(self.name, known)}")
        if self.betas is not None and not timm.optim.get_optimizer_info(self.name).has_betas:
            raise ValueError(f"optimizer.betas: expected null, as {self.name} has none, got {self.betas}; leave it out")
        _require(self.learning_rate > 0, "optimizer.learning_rate", "a number above 0", self.learning_rate)
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "0 or more", self.weight_decay)
        _require(
            self.betas is None or all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas",
            "two numbers from 0 to below 1",
            self.betas,
        )
        _require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            "optimizer.layer_decay",
            "null or a factor above 0, at most 1",
            self.layer_decay,
        )
        _require(
            self.clip_grad_norm is None or self.clip_grad_norm > 0,
            "optimizer.clip_grad_norm",
            "null or a norm above 0",
            self.clip_grad_norm,
        )


@dataclass(kw_only=True)
class ScheduleConfig:
    """The learning rate over the updates."""

    name: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    """Cosine falls to `min_learning_rate` at the last update; step multiplies by `decay_rate` every `decay_steps`
    updates, exponential does so gradually; constant stays."""
    warmup_steps: int = 0
    """Updates of linear rise from `warmup_learning_rate`."""
    warmup_learning_rate: float = 0.0
    """Learning rate of the first update, where there is a warm-up."""
    min_learning_rate: float = 0.0
    """End of the cosine."""
    decay_steps: int | None = None
    """Updates between two steps of `step`, or for one `decay_rate` of `exponential`."""
    decay_rate: float = 0.1
    """Factor of `step` and `exponential`."""

    def __post_init__(self) -> None:
        decays = self.name in ("step", "exponential")
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", "0 or more", self.warmup_steps)
        _require(
            self.warmup_learning_rate >= 0, "schedule.warmup_learning_rate", "0 or more", self.warmup_learning_rate
        )
        _require(
            self.min_learning_rate == 0 or (self.name == "cosine" and self.min_learning_rate > 0),
            "schedule.min_learning_rate",
            "0 or more, and 0 unless schedule.name=cosine",
            self.min_learning_rate,
        )
        _require(
            (self.decay_steps is not None and self.decay_steps > 0) if decays else self.decay_steps is None,
            "schedule.decay_steps",
            f"{'at least 1' if decays else 'null'} with schedule.name={self.name}",
            self.decay_steps,
        )
        _require(0 < self.decay_rate <= 1, "schedule.decay_rate", "a factor above 0, at most 1", self.decay_rate)


@dataclass(kw_only=True)
class RunConfig:
    """Length, size, numerics and bookkeeping of a run."""

    output_dir: str
    """Folder of the log, the training states and the checkpoint; all processes must see it."""
    steps: int
    """Updates in all."""
    batch_size: int
    """Samples of one update, over all processes and micro-batches."""
    accumulation_steps: int = 1
    """Micro-batches that the batch is split into to save memory; contrastive losses and batch norm see one
    micro-batch at a time."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """fp16 scales the loss."""
    seed: int = 0
    """Of the initial weights, the data order, the augmentation and the network's noise."""
    num_workers: int = 2
    """Loader processes of each training process; 0 loads in the training process."""
    ema_decay: float | None = None
    """Decay of the averaged network, which then is the one evaluated and exported; null for none."""
    log_every: int = 10
    """Updates between two lines of `log.jsonl`."""
    validate_every: int | None = None
    """Updates between two evaluations; null evaluates at the end only."""
    save_every: int = 1000
    """Updates between two training states; the last update saves one too."""
    keep_checkpoints: int = 2
    """Newest training states kept."""
    tracker: Literal["tensorboard"] | None = None
    """Where the log goes besides `log.jsonl`."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues the newest training state in `output_dir`, if there is one: same data order, optimizer, averages
    and noise, as if never interrupted. never starts anew, and refuses to where there is one."""
    init_from: str | None = None
    """Checkpoint whose weights, and nothing else, a new run starts from."""
    find_unused_parameters: bool = False
    """Needed over several processes where some parameters take no part in a step's loss."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation_steps", "log_every", "save_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"run.{name}", "at least 1", getattr(self, name))
        _require(0 <= self.seed < 2**32, "run.seed", f"0 to {2**32 - 1}", self.seed)
        _require(self.num_workers >= 0, "run.num_workers", "0 or more", self.num_workers)
        _require(not Path(self.output_dir).is_file(), "run.output_dir", "a folder, not a file", self.output_dir)
        _require(
            self.batch_size % self.accumulation_steps == 0,
            "run.batch_size",
            f"a multiple of run.accumulation_steps={self.accumulation_steps}",
            self.batch_size,
        )
        _require(
            self.validate_every is None or self.validate_every >= 1,
            "run.validate_every",
            "null or at least 1",
            self.validate_every,
        )
        _require(
            self.ema_decay is None or 0 <= self.ema_decay < 1,
            "run.ema_decay",
            "null or a number from 0 to below 1",
            self.ema_decay,
        )


@dataclass(kw_only=True)
class Recipe:
    """A whole training run; each task adds its own sections and builds its `Task`."""

    task: str
    """A name in `TASKS`."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig

    def __post_init__(self) -> None:
        _require(
            self.schedule.warmup_steps < self.run.steps,
            "schedule.warmup_steps",
            f"fewer than run.steps={self.run.steps}",
            self.schedule.warmup_steps,
        )

    def build(self) -> Task:
        """Makes the objective and the data. The random state is seeded; nothing may be written yet."""
        raise NotImplementedError


def recipe_path(name: str) -> Path:
    """The packaged recipe of that name: in an installed package, or in the repository around an editable one.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    folders = [Path(str(files("grouping_zoo"))) / "hub_configs", Path(__file__).parents[3] / "hub_configs"]
    recipes = {path.parent.name: path for folder in folders for path in sorted(folder.glob("*/recipe.yaml"))}
    if name not in recipes:
        raise ValueError(f"recipe: expected a YAML file or a packaged recipe{_suggest(name, recipes)}")
    return recipes[name]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        name_or_path: a YAML file, or the name of a packaged recipe.
        overrides: settings that replace the file's: "run.steps=100", "--run.steps=100" or "--run.steps", "100".

    Raises:
        ValueError: for an unknown key, a wrong type or value, or an unknown name; it names the setting.
        FileNotFoundError: if there is no such file.
    """
    text = str(name_or_path)
    is_path = Path(text).name != text or text.endswith((".yaml", ".yml"))
    path = Path(text) if is_path else recipe_path(text)
    if not path.is_file():
        raise FileNotFoundError(f"recipe: expected a YAML file, got {path}, which does not exist; check the path")
    settings = _read_yaml(path)
    if "task" not in settings:
        raise ValueError(f"{path}: task: expected one of {sorted(TASKS)}, got nothing; add a line `task: NAME`")
    cls = _recipe_class(settings["task"])
    options = list(_as_options(overrides))
    _refuse_unknown(str(path), settings, cls)
    for option in options:
        _refuse_unknown("override", _nested(option.partition("=")[0].removeprefix("--")), cls)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    parser.add_argument("--recipe_file", action="config")
    try:
        parsed = parser.parse_args([f"--recipe_file={path}", *options])
    except argparse.ArgumentError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    del parsed["recipe_file"]
    if parsed["task"] != settings["task"]:
        raise ValueError(f"task: expected {settings['task']} as in {path}, got {parsed['task']}; use another recipe")
    return cls(**vars(parser.instantiate(parsed)))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML that `load_recipe` reads back equal."""
    path.write_text(yaml.safe_dump(recipe_settings(recipe), sort_keys=False), encoding="utf-8")


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested dicts and lists."""
    return _without_tuples(dataclasses.asdict(recipe))


def _require(condition: bool, setting: str, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{setting}: expected {expected}, got {got}; change {setting}")


def _suggest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
    return f", got {name!r}; {hint}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a YAML mapping of settings, got {type(settings).__name__}")
    return settings


def _recipe_class(task: Any) -> type[Recipe]:
    if task not in TASKS:
        raise ValueError(f"task: expected a known task{_suggest(str(task), TASKS)}")
    module, _, name = TASKS[task].partition(":")
    return getattr(importlib.import_module(module), name)


def _as_options(overrides: Sequence[str]) -> Iterator[str]:
    """All three ways to write an override, as "--key=value"."""
    remaining = iter(overrides)
    for override in remaining:
        key, equals, value = override.partition("=")
        if not equals and key.startswith("--"):
            value = next(remaining, "")
        if not key.strip("-") or not value:
            raise ValueError(f"override: expected KEY=VALUE such as run.steps=100, got {override!r}")
        yield f"--{key.removeprefix('--')}={value}"


def _nested(dotted: str) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    return {first: _nested(rest) if rest else None}


def _refuse_unknown(source: str, settings: Mapping[str, Any], cls: Any, prefix: str = "") -> None:
    """Refuses keys that no dataclass of the recipe knows; settings that are plain dicts take any key."""
    hints = typing.get_type_hints(cls)
    known = [entry.name for entry in dataclasses.fields(cls)]
    for key, value in settings.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"{source}: {prefix}{key} is no setting; {remedy}")
        sections = [hint for hint in _alternatives(hints[key]) if dataclasses.is_dataclass(hint)]
        if len(sections) == 1 and isinstance(value, Mapping):
            _refuse_unknown(source, value, sections[0], f"{prefix}{key}.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(entry) for key, entry in value.items()}
    return [_without_tuples(entry) for entry in value] if isinstance(value, (list, tuple)) else value
