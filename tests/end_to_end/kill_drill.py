"""Kill trainings at random moments, resume them, and compare what they end with, bit for bit. Run by hand:

    python tests/end_to_end/kill_drill.py --kills 60
    python tests/end_to_end/kill_drill.py --kills 10 --recipe cast_nano_scenes run.steps=12 run.save_every=2

Each training is killed a few times and resumed after each; then it must end like the one that nobody touched. A kill is
a signal to the first process alone or to its whole group; with two processes also to one of those that torchrun
started, or to torchrun by SIGKILL, which then passes nothing on. A toy training on one process is forked from this
one, which has imported everything; else the imports would take longer than the training.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import toy_task
from grouping_zoo.engine import recipe as recipe_module
from grouping_zoo.engine.__main__ import main as engine_main
from grouping_zoo.engine.recipe import save_recipe
from grouping_zoo.engine.training_state import latest_state
from toy_task import log_lines, state_tensors, subprocess_environment, toy_recipe

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KILLS_PER_RUN = 4
LONGEST_SECONDS = 300
TOY_DELAY = "0.02"


class Kind(NamedTuple):
    """How a training is killed."""

    number: signal.Signals
    target: str
    processes: int

    def __str__(self) -> str:
        return f"{self.number.name} to {self.target}, {self.processes} process{'es' * (self.processes > 1)}"


class Forked:
    """The toy training as a copy of this process, in a session of its own; the part of `Popen` that is used here."""

    def __init__(self, recipe: str, error: Path) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code: object = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(error, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 2)
            os.environ["TOY_DELAY"] = TOY_DELAY
            engine_main([recipe])
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        os._exit(code if isinstance(code, int) else 0)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code


class Drill:
    """One training, started as often as needed."""

    def __init__(self, folder: Path, options: argparse.Namespace, processes: int, streaming: bool) -> None:
        self.output, self.processes, self.error = folder, processes, folder.with_suffix(".err")
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        self.command = [sys.executable, *(launcher if processes > 1 else [])]
        self.forked = processes == 1 and options.recipe is None
        if options.recipe is None:
            recipe = toy_recipe(folder, {"streaming": streaming}, steps=40, save_every=2, num_workers=2, batch_size=4)
            save_recipe(recipe, folder.with_suffix(".yaml"))
            self.command += [toy_task.__file__, str(folder.with_suffix(".yaml"))]
        else:
            self.command += ["-m", "grouping_zoo.engine", options.recipe, *options.settings]
            self.command += [f"run.output_dir={folder}"]

    def start(self) -> "subprocess.Popen[bytes] | Forked":
        if self.forked:
            return Forked(self.command[-1], self.error)
        with self.error.open("ab") as error:
            return subprocess.Popen(
                self.command,
                env=subprocess_environment(TOY_DELAY=TOY_DELAY),
                stdout=subprocess.DEVNULL,
                stderr=error,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Train to the end; processes of a killed launcher may hold the folder for a while."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while (code := self.start().wait(LONGEST_SECONDS)) != 0:
            if "where one is running" not in self.error.read_text() or time.monotonic() > deadline:
                raise RuntimeError(f"exit code {code}: {self.error.read_text()[-2000:]}")

    def kill(self, kind: Kind, seconds: float) -> bool:
        """Start, wait for progress, then for so many seconds, and kill; return whether it had not ended before."""
        before = self._progress()
        process = self.start()
        deadline = time.monotonic() + LONGEST_SECONDS
        while self._progress() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        try:
            target = process.pid
            if kind.target == "rank":
                target = random.choice([child.pid for child in psutil.Process(process.pid).children()])
            if process.poll() is None:
                (os.killpg if kind.target == "group" else os.kill)(target, kind.number)
        except (psutil.NoSuchProcess, ProcessLookupError, IndexError):
            pass  # it ended meanwhile
        return process.wait(LONGEST_SECONDS) != 0

    def _progress(self) -> tuple[int, int]:
        log = self.output / "log.jsonl"
        return (log.stat().st_size, log.stat().st_mtime_ns) if log.exists() else (0, 0)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the final states, checkpoints and logs of two runs."""
    first, second = (state_tensors(latest_state(output)) for output in (one, other))
    names = [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first or name not in second or not bool((first[name] == second[name]).all())
    ]
    weights = [(output / "checkpoint" / "model.safetensors").read_bytes() for output in (one, other)]
    names += ["checkpoint"] if weights[0] != weights[1] else []
    names += ["log"] if log_lines(one) != log_lines(other) else []
    left = [path.name for path in other.rglob("*") if path.name.startswith(".") or path.suffix in (".writing", ".lock")]
    return names + left


def kinds() -> list[Kind]:
    """All ways to kill, in a random order."""
    one = [Kind(number, target, 1) for number in SIGNALS for target in ("process", "group")]
    two = [Kind(number, target, 2) for number in SIGNALS for target in ("launcher", "rank")]
    return random.sample(one + two, len(one + two))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=float, default=3, help="trainings on one process for each on two")
    parser.add_argument("--recipe", help="packaged recipe in place of the toy task")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE for the recipe")
    options = parser.parse_args()
    random.seed(options.seed)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the trainings would ignore it
    torch.set_num_threads(1)  # threads would not survive the forking
    recipe_module.TASKS.update(toy_task.TASKS)
    tried, survived = Counter[Kind](), Counter[Kind]()
    with tempfile.TemporaryDirectory() as folder:
        references: dict[tuple[int, bool], Path] = {}
        queue: dict[int, list[Kind]] = {1: [], 2: []}
        while tried.total() < options.kills:
            if not (queue[1] and queue[2]):
                queue = {processes: [kind for kind in kinds() if kind.processes == processes] for processes in (1, 2)}
            processes, streaming = random.choices([1, 2], [options.one, 1])[0], random.random() < 0.3
            name = f"{processes}-{'stream' if streaming else 'map'}"
            if (processes, streaming) not in references:
                reference = Drill(Path(folder) / f"reference-{name}", options, processes, streaming)
                reference.finish()
                references[processes, streaming] = reference.output
            drill = Drill(Path(folder) / f"{name}-{tried.total()}", options, processes, streaming)
            killed: list[Kind] = []
            while queue[processes] and len(killed) < KILLS_PER_RUN and tried.total() + len(killed) < options.kills:
                if not drill.kill(queue[processes][0], random.random() ** 2):
                    break
                killed.append(queue[processes].pop(0))
            drill.finish()
            found = differences(references[processes, streaming], drill.output)
            tried.update(killed)
            survived.update([] if found else killed)
            print(f"{tried.total()} kills, {name}: {', '.join(map(str, killed))}: {found or 'equal'}", flush=True)
            if "Traceback" in (text := drill.error.read_text()) and processes == 1:
                print(text[-3000:], flush=True)
    for kind in sorted(tried):
        print(f"{kind}: {survived[kind]} of {tried[kind]} survived")
    print(f"all: {survived.total()} of {tried.total()} survived")
    raise SystemExit(survived.total() != tried.total())


if __name__ == "__main__":
    main()
