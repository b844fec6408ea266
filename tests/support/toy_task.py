"""A task small enough to train in a second: regression by a network with every kind of state there is.

As a script it is the engine's command line with this task added, also under `torchrun`:
`python toy_task.py RECIPE [KEY=VALUE ...]`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.engine import recipe as recipe_module
from grouping_zoo.engine import training_state
from grouping_zoo.engine.recipe import Recipe, RunConfig, ScheduleConfig, save_recipe

WIDTH = 8


def sample(epoch: int, index: int) -> tuple[Tensor, Tensor]:
    """Features (WIDTH,) and target (1,), augmented by a function of epoch and index."""
    generator = torch.Generator().manual_seed(1000 * epoch + index)
    features = torch.randn(WIDTH, generator=generator)
    return features, features.sin().sum(0, keepdim=True)


class ToyNetwork(nn.Module):
    """Regression; `noisy` adds batch norm and dropout."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(WIDTH, 16)
        self.norm = nn.BatchNorm1d(16) if noisy else nn.Identity()
        self.dropout = nn.Dropout(0.2 if noisy else 0.0)
        self.position = nn.Parameter(torch.zeros(1, 16))
        self.output = nn.Linear(16, 1)

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^position|^hidden", "blocks": [(r"^norm", (0,)), (r"^output", (1,))]}

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(self.norm(self.hidden(x))).relu() + self.position)


class ToyObjective(nn.Module):
    """Squared error, with a head and a buffer outside the network."""

    def __init__(self, model: nn.Module, fail_at: int | None, fail_on_rank: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(1, 1)
        self.fail_at = fail_at if int(os.environ.get("RANK", "0")) == fail_on_rank else None
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("empty_bank", torch.zeros(0, 4))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = (self.head(self.model(batch["x"])) - batch["y"]).square().mean()
        if self.fail_at is not None and self.updates >= self.fail_at:
            loss = loss * torch.nan
        return {"loss": loss, "first_target": batch["y"][0, 0]}

    def after_step(self, progress: float) -> None:
        self.updates += 1
        self.progress.fill_(progress)


class ToyDataset(Dataset[Any]):
    """Map-style; TOY_DELAY seconds a sample make a run long enough to be killed.

    TOY_FAULT="RANK:FAULT" has the loading fail in the second epoch of that process: see `FAULTS`.
    """

    def __len__(self) -> int:
        return 50

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        time.sleep(float(os.environ.get("TOY_DELAY", "0")))
        rank, _, fault = os.environ.get("TOY_FAULT", "").partition(":")
        if fault and key.epoch == 1 and rank == os.environ.get("RANK", "0"):
            FAULTS[fault]()
        return sample(key.epoch, key.index)


def _unreadable() -> None:
    raise ValueError("pictures/cat: expected an image,\ngot none; replace it")


def _undecodable() -> None:
    b"caption \xe9".decode()


def _programming_mistake() -> None:
    raise KeyError("forgotten")


def _out_of_memory() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    "unreadable": _unreadable,
    "undecodable": _undecodable,
    "mistake": _programming_mistake,
    "memory": _out_of_memory,
}


class ToyStream(IterableDataset[Any]):
    """An epoch of 40 samples an iteration, split over workers, that knows its position."""

    def __init__(self) -> None:
        self.epoch, self.position = 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self.position * stride + first < 40:
            self.position += 1
            yield sample(self.epoch, (self.position - 1) * stride + first)
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class ToyTask:
    """See `grouping_zoo.engine.task.Task`."""

    def __init__(self, recipe: "ToyRecipe") -> None:
        self.objective = ToyObjective(ToyNetwork(recipe.toy.noisy), recipe.toy.fail_at, recipe.toy.fail_on_rank)
        self.dataset: Dataset[Any] = ToyStream() if recipe.toy.streaming else ToyDataset()

    @staticmethod
    def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        torch.rand(3)  # must not disturb the training's noise
        x, y = zip(*(sample(999, index) for index in range(20)), strict=True)
        return {"error": float((model(torch.stack(x)) - torch.stack(y)).square().mean())}

    def export(self, model: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "metrics.json").write_text(json.dumps(metrics))

    def load_weights(self, source: str) -> None:
        self.objective.model.load_state_dict(load_file(Path(source) / "model.safetensors"))


@dataclass(kw_only=True)
class ToyConfig:
    """The task's own section."""

    noisy: bool = True
    streaming: bool = False
    fail_at: int | None = None
    fail_on_rank: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ToyRecipe(Recipe):
    """See `Recipe`."""

    toy: ToyConfig = field(default_factory=ToyConfig)

    def build(self) -> ToyTask:
        return ToyTask(self)


TASKS = {"toy": "toy_task:ToyRecipe"}
VOLATILE = ("samples_per_second", "data_wait")


def toy_recipe(output_dir: Path, toy: dict[str, Any] | None = None, **run: Any) -> ToyRecipe:
    """A recipe of 20 steps in epochs of 50 samples, with a state every 4 steps."""
    settings = {"steps": 20, "batch_size": 8, "num_workers": 0, "ema_decay": 0.9, "log_every": 3, "save_every": 4}
    return ToyRecipe(
        task="toy",
        toy=ToyConfig(**(toy or {})),
        schedule=ScheduleConfig(warmup_steps=3),
        run=RunConfig(output_dir=str(output_dir), **(settings | run)),
    )


def log_lines(output_dir: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in VOLATILE} for line in lines]


def state_tensors(state: Path) -> dict[str, Tensor]:
    """All tensors of a training state."""
    return {
        f"{path.stem}{name}": value for path in state.glob("*.safetensors") for name, value in load_file(path).items()
    }


def subprocess_environment(**variables: str) -> dict[str, str]:
    """The environment in which a new process finds this package and this file."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def start(recipe: ToyRecipe, *, processes: int = 1, **environment: str) -> subprocess.Popen[str]:
    """The command line on a recipe, as a process of its own."""
    path = Path(f"{recipe.run.output_dir}.yaml")
    save_recipe(recipe, path)
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, __file__, str(path)],
        env=subprocess_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a process has written something."""
    deadline = time.monotonic() + 240
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _die_while_writing_state(number: int) -> None:
    """Has the process killed, as by kill -9, when all files of its n-th state lie there, short of the renaming."""
    replace, calls = training_state.os.replace, 0

    def killing_replace(source: Path, target: Path) -> None:
        nonlocal calls
        if training_state.STATE_NAME.fullmatch(Path(target).name):
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    training_state.os.replace = killing_replace  # type: ignore[assignment]


if __name__ == "__main__":
    recipe_module.TASKS.update(TASKS)
    if "START_METHOD" in os.environ:
        torch.multiprocessing.set_start_method(os.environ["START_METHOD"])
    if "DIE_WHILE_WRITING_STATE" in os.environ:
        _die_while_writing_state(int(os.environ["DIE_WHILE_WRITING_STATE"]))
    from grouping_zoo.engine.__main__ import main

    main(sys.argv[1:])
