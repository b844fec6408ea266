import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from grouping_zoo.engine import cpu_launch
from grouping_zoo.engine.__main__ import main
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.training_state import latest_state
from toy_task import log_lines, start, state_tensors, subprocess_environment, toy_recipe, wait_for


def test_two_processes_equal_one_on_the_joint_batch(tmp_path: Path) -> None:
    # Noise and batch norm differ between processes by design.
    two = start(toy_recipe(tmp_path / "two", {"noisy": False}, log_every=1, accumulation_steps=2), processes=2)
    train(toy_recipe(tmp_path / "one", {"noisy": False}, log_every=1, accumulation_steps=2), progress_bar=False)
    _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    one_log, two_log = (log_lines(tmp_path / name) for name in ("one", "two"))
    assert len(two_log) == 20
    for key in ("loss", "grad_norm", "validation/error"):
        found = [line[key] for line in two_log if key in line]
        assert found == pytest.approx([line[key] for line in one_log if key in line], rel=1e-6, abs=1e-6)
    states = [latest_state(tmp_path / name) for name in ("one", "two")]
    assert sorted(path.name for path in states[1].glob("*.json")) == [
        "process-00000.json",
        "process-00001.json",
        "shared.json",
    ]
    one, both = (state_tensors(state) for state in states)
    same = [name for name in one if name.startswith(("shared/objective", "shared/ema"))]
    torch.testing.assert_close(
        {name: both[name] for name in same}, {name: one[name] for name in same}, rtol=0, atol=1e-6
    )
    # A state of two processes is no state of one.
    with pytest.raises(ValueError, match="processes: expected 2"):
        train(toy_recipe(tmp_path / "two", {"noisy": False}, accumulation_steps=2), progress_bar=False)


def test_one_process_with_a_non_finite_loss_stops_all(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", {"fail_at": 6, "fail_on_rank": 1})
    process = start(recipe, processes=2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert errors.count("error: loss: expected a finite number, got nan at step 7") == 1
    state = latest_state(tmp_path / "run")
    assert state is not None
    assert state.name == "step-00000004"


def test_the_reason_of_a_later_process_worker_is_told_once(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", num_workers=1)
    process = start(recipe, processes=2, TOY_FAULT="1:unreadable")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
        "error: pictures/cat: expected an image, got none; replace it"
    ]
    assert "gloo" not in errors


def test_the_processes_of_a_killed_launcher_stop_with_their_state_saved(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(toy_recipe(output, save_every=20, num_workers=1), processes=2, TOY_DELAY="0.1")
    wait_for(output / "log.jsonl", process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while (output / "run.lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    state = latest_state(output)
    assert state is not None
    assert state.name < "step-00000020"
    assert not (output / "checkpoint").exists()


LAUNCH = """
import os, signal, subprocess, sys, time
from grouping_zoo.engine import cpu_launch
from torch.distributed.elastic.multiprocessing import SignalException

def torchrun(arguments):
    def end(number, frame):
        raise SignalException("", signal.Signals(number))
    signal.signal(signal.SIGTERM, end)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

cpu_launch.torchrun = torchrun
cpu_launch.launch(2, [])
"""


def test_a_launch_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    # The shell is in accelerate's place: killed, it passes nothing on.
    shell = ["sh", "-c", f"{sys.executable} {script}; true"]
    process = subprocess.Popen(shell, env=subprocess_environment(), stderr=subprocess.PIPE, text=True)
    assert process.communicate(timeout=60)[1] == ""  # which the launch held open
    assert process.returncode == -signal.SIGKILL


def test_accelerate_launch_on_the_cpu_starts_as_many_processes_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # accelerate itself starts one process, with these variables and this command line above it.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    command = [
        "python",
        "accelerate",
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "-m",
        "grouping_zoo.engine",
        "a_recipe",
    ]
    parent = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    started: list[list[str]] = []
    monkeypatch.setattr(cpu_launch, "torchrun", started.append)
    main(["a_recipe", "run.steps=3"])
    assert started == [["--nproc-per-node=2", "-m", "grouping_zoo.engine", "a_recipe", "run.steps=3"]]


def test_several_processes_that_cannot_be_told_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="expected the processes that the launcher was asked for, got 1"):
        train(toy_recipe(tmp_path / "run"), progress_bar=False)
