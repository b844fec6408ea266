"""Recipes: all settings of a training run, as checked dataclasses read from YAML.

A recipe file may name another one as its `base:` and give only the settings that differ: a setting replaces the base's,
a mapping such as `model_args` as a whole.
"""

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

from grouping_zoo.engine.old_recipes import with_current_keys
from grouping_zoo.engine.task import Task
from grouping_zoo.settings import require

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
    """Not of biases, other one-dimensional parameters and those that the network's `no_weight_decay()` names."""
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
        decay, norm, betas = self.layer_decay, self.clip_grad_norm, self.betas
        require(self, "optimizer.learning_rate", self.learning_rate > 0, "a number above 0")
        require(self, "optimizer.weight_decay", self.weight_decay >= 0, "0 or more")
        in_range = betas is None or all(0 <= beta < 1 for beta in betas)
        require(self, "optimizer.betas", in_range, "two numbers from 0 to below 1")
        require(self, "optimizer.layer_decay", decay is None or 0 < decay <= 1, "null or a factor above 0, at most 1")
        require(self, "optimizer.clip_grad_norm", norm is None or norm > 0, "null or a norm above 0")


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
        lowest, steps = self.min_learning_rate, self.decay_steps
        for name in ("warmup_steps", "warmup_learning_rate"):
            require(self, f"schedule.{name}", getattr(self, name) >= 0, "0 or more")
        allowed = lowest == 0 or (self.name == "cosine" and lowest > 0)
        require(self, "schedule.min_learning_rate", allowed, "0 or more, and 0 unless schedule.name=cosine")
        if self.name in ("step", "exponential"):
            allowed, expected = steps is not None and steps > 0, "at least 1"
        else:
            allowed, expected = steps is None, "null"
        require(self, "schedule.decay_steps", allowed, f"{expected} with schedule.name={self.name}")
        require(self, "schedule.decay_rate", 0 < self.decay_rate <= 1, "a factor above 0, at most 1")


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
        parts, every, ema = self.accumulation_steps, self.validate_every, self.ema_decay
        for name in ("steps", "batch_size", "accumulation_steps", "log_every", "save_every", "keep_checkpoints"):
            require(self, f"run.{name}", getattr(self, name) >= 1, "at least 1")
        require(self, "run.seed", 0 <= self.seed < 2**32, f"0 to {2**32 - 1}")
        require(self, "run.num_workers", self.num_workers >= 0, "0 or more")
        require(self, "run.output_dir", not Path(self.output_dir).is_file(), "a folder, not a file")
        require(self, "run.batch_size", self.batch_size % parts == 0, f"a multiple of run.accumulation_steps={parts}")
        require(self, "run.validate_every", every is None or every >= 1, "null or at least 1")
        require(self, "run.ema_decay", ema is None or 0 <= ema < 1, "null or a number from 0 to below 1")


@dataclass(kw_only=True)
class Recipe:
    """A whole training run; each task adds its own sections and builds its `Task`."""

    task: str
    """A name in `TASKS`."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig

    def __post_init__(self) -> None:
        shorter = self.schedule.warmup_steps < self.run.steps
        require(self.schedule, "schedule.warmup_steps", shorter, f"fewer than run.steps={self.run.steps}")

    def build(self) -> Task:
        """Build the objective and the data. The random state is seeded; nothing may be written yet."""
        raise NotImplementedError


def recipe_path(name: str) -> Path:
    """Path of the packaged recipe of a name: in an installed package, or in the repository around an editable one.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    folders = [Path(str(files("grouping_zoo"))) / "hub_configs", Path(__file__).parents[3] / "hub_configs"]
    recipes = {path.parent.name: path for folder in folders for path in sorted(folder.glob("*/recipe.yaml"))}
    if name not in recipes:
        raise ValueError(f"recipe: expected a YAML file or a packaged recipe{_suggest(name, recipes)}")
    return recipes[name]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with its `base:` recipe and that one's, if it names one.

    Args:
        name_or_path: a YAML file, or the name of a packaged recipe.
        overrides: settings that replace the file's: "run.steps=100", "--run.steps=100" or "--run.steps", "100".

    Raises:
        ValueError: for an unknown key, a wrong type or value, an unknown name, or bases in a circle; it names the
            setting.
        FileNotFoundError: if there is no such file.
    """
    path = _locate(str(name_or_path))
    sources = _with_bases(path)
    task = next((settings["task"] for _, settings in sources if "task" in settings), None)
    if task is None:
        raise ValueError(f"{path}: task: expected one of {sorted(TASKS)}, got nothing; add a line `task: NAME`")
    cls = _recipe_class(task)
    for source, settings in sources:
        if settings.get("task", task) != task:
            raise ValueError(f"{source}: task: expected {task} as in {path}, got {settings['task']}; use another base")
        _refuse_unknown(str(source), settings, cls)
    options = list(_as_options(overrides))
    for option in options:
        _refuse_unknown("override", _nested(option.partition("=")[0].removeprefix("--")), cls)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    parser.add_argument("--base")
    parser.add_argument("--recipe_file", action="config")
    try:
        # Of two files that give a setting the later one counts.
        files = [f"--recipe_file={yaml.safe_dump(settings)}" for _, settings in reversed(sources)]
        parsed = parser.parse_args([*files, *options])
    except argparse.ArgumentError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    del parsed["recipe_file"], parsed["base"]
    if parsed["task"] != task:
        raise ValueError(f"task: expected {task} as in {path}, got {parsed['task']}; use another recipe")
    return cls(**vars(parser.instantiate(parsed)))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML that `load_recipe` reads back equal."""
    path.write_text(yaml.safe_dump(recipe_settings(recipe), sort_keys=False), encoding="utf-8")


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested dicts and lists."""
    return _without_tuples(dataclasses.asdict(recipe))


def _suggest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
    return f", got {name!r}; {hint}"


def _locate(name_or_path: str, folder: Path = Path()) -> Path:
    """File of a packaged recipe, or of a path, which starts at a folder if it is relative."""
    is_path = Path(name_or_path).name != name_or_path or name_or_path.endswith((".yaml", ".yml"))
    path = folder / name_or_path if is_path else recipe_path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"recipe: expected a YAML file, got {path}, which does not exist; check the path")
    return path


def _with_bases(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Files and settings of a recipe, of its base, of the base's base and so on."""
    sources = [(path, _read_yaml(path))]
    while (base := sources[-1][1].pop("base", None)) is not None:
        source = sources[-1][0]
        try:
            found = _locate(str(base), source.parent)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{source}: base: {str(error).removeprefix('recipe: ')}") from None
        if any(found.samefile(known) for known, _ in sources):
            raise ValueError(
                f"{source}: base: expected a recipe that is not based on this one, got {base}; break the circle"
            )
        sources.append((found, _read_yaml(found)))
    return sources


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a YAML mapping of settings, got {type(settings).__name__}")
    return with_current_keys(settings)


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
    """Refuse keys that no dataclass of the recipe knows; settings that are plain dicts take any key."""
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
