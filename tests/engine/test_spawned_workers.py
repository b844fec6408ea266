"""Workers as macOS and Windows start them (spawn), and Linux from Python 3.14 on (forkserver)."""

import os
import signal
from pathlib import Path

import pytest

from grouping_zoo.engine.loop import train
from grouping_zoo.engine.training_state import latest_state
from toy_task import log_lines, start, state_tensors, toy_recipe, wait_for


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_started_workers_give_the_same_run_and_outlive_a_signal_to_the_group(tmp_path: Path, method: str) -> None:
    streaming = {"streaming": method == "forkserver"}
    recipe = toy_recipe(tmp_path / "run", streaming, num_workers=1, save_every=20, log_every=1)
    process = start(recipe, START_METHOD=method, TOY_DELAY="0.05")
    wait_for(tmp_path / "run" / "log.jsonl", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert "error" not in errors
    assert "Traceback" not in errors
    assert process.returncode == 130
    state = latest_state(tmp_path / "run")
    assert state is not None
    assert state.name < "step-00000020"
    train(recipe, progress_bar=False)
    train(toy_recipe(tmp_path / "whole", streaming, num_workers=1, save_every=20, log_every=1), progress_bar=False)
    tensors = [state_tensors(tmp_path / name / "state" / "step-00000020") for name in ("run", "whole")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(bool((tensors[0][name] == value).all()) for name, value in tensors[1].items())
    assert log_lines(tmp_path / "run") == log_lines(tmp_path / "whole")
