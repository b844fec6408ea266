import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from grouping_zoo.engine import training_state
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.training_state import WRITING, latest_state
from toy_task import ToyObjective, log_lines, start, state_tensors, toy_recipe

FINAL = "step-00000020"


def assert_same_run(resumed: Path, uninterrupted: Path) -> None:
    """Weights, averages, optimizer, buffers, random state and log are equal bit for bit."""
    first, second = (state_tensors(output / "state" / FINAL) for output in (resumed, uninterrupted))
    assert any("/ema" in name for name in first)
    assert any("/optimizer" in name for name in first)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert log_lines(resumed) == log_lines(uninterrupted)
    checkpoints = [(output / "checkpoint" / "model.safetensors").read_bytes() for output in (resumed, uninterrupted)]
    assert checkpoints[0] == checkpoints[1]
    # Nothing half-written stays.
    assert not [path for path in resumed.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that interrupted ones must equal."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(toy_recipe(output, validate_every=5), progress_bar=False)
    return output


def stop_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch, recipe: Any) -> None:
    """Trains until an error before the update of that number."""
    forward, calls = ToyObjective.forward, 0

    def failing(self: ToyObjective, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == step * recipe.run.accumulation_steps:
            raise error
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ToyObjective, "forward", failing)
        with pytest.raises(type(error)):
            train(recipe, progress_bar=False)


def wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopped_by_an_exception_in_mid_epoch(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    stop_at(12, RuntimeError("power cut"), monkeypatch, recipe)
    assert latest_state(tmp_path / "run").name == "step-00000008"
    # Lines after the state, which the resumed run writes anew.
    assert log_lines(tmp_path / "run")[-1]["step"] == 10
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_resumed_twice_with_other_harmless_settings(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(6, RuntimeError("power cut"), monkeypatch, toy_recipe(tmp_path / "run", validate_every=5, num_workers=2))
    stop_at(6, RuntimeError("power cut"), monkeypatch, toy_recipe(tmp_path / "run", validate_every=5, num_workers=1))
    train(toy_recipe(tmp_path / "run", validate_every=5, save_every=7, keep_checkpoints=1), progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_killed_in_mid_epoch(tmp_path: Path, uninterrupted: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    process = start(recipe, TOY_DELAY="0.05")
    wait_for(tmp_path / "run" / "state" / "step-00000008", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "checkpoint").exists()
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_killed_while_a_state_is_written(tmp_path: Path, uninterrupted: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    process = start(recipe, DIE_WHILE_WRITING_STATE="3")
    assert process.wait() == -signal.SIGKILL
    names = sorted(path.name for path in (tmp_path / "run" / "state").iterdir())
    assert names == [f"{WRITING}step-00000012", "step-00000004", "step-00000008"]
    assert latest_state(tmp_path / "run").name == "step-00000008"
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_interrupted_by_the_keyboard(tmp_path: Path, uninterrupted: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5, num_workers=1)
    process = start(recipe, TOY_DELAY="0.05")
    wait_for(tmp_path / "run" / "state" / "step-00000004", process)
    # As a terminal does: to the loader's workers as well.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert "Traceback" not in process.stderr.read()
    assert latest_state(tmp_path / "run").name > "step-00000004"
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_stopped_while_an_old_state_is_deleted(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(training_state.shutil, "rmtree", delete_half)
        with pytest.raises(RuntimeError):
            train(recipe, progress_bar=False)
    assert latest_state(tmp_path / "run").name == "step-00000012"
    assert all((path / "shared.json").exists() for path in (tmp_path / "run" / "state").glob("step-*"))
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def delete_half(path: Path) -> None:
    (path / "shared.json").unlink()
    raise RuntimeError("power cut")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_stream_goes_on_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, accumulation_steps: int
) -> None:
    settings = {"num_workers": num_workers, "accumulation_steps": accumulation_steps}
    train(toy_recipe(tmp_path / "whole", {"streaming": True}, **settings), progress_bar=False)
    recipe = toy_recipe(tmp_path / "run", {"streaming": True}, **settings)
    stop_at(11, RuntimeError("power cut"), monkeypatch, recipe)
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    # Several epochs went by, each with samples of its own.
    targets = [line["first_target"] for line in log_lines(tmp_path / "whole")]
    assert len(set(targets)) == len(targets)


def test_stream_refuses_another_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(6, RuntimeError("power cut"), monkeypatch, toy_recipe(tmp_path / "run", {"streaming": True}))
    with pytest.raises(ValueError, match=r"run\.num_workers: expected 0.*got 1; set run\.num_workers=0"):
        train(toy_recipe(tmp_path / "run", {"streaming": True}, num_workers=1), progress_bar=False)


def test_finished_run_is_not_trained_again(tmp_path: Path, uninterrupted: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    first = train(recipe, progress_bar=False)
    assert train(recipe, progress_bar=False) == first
    assert_same_run(tmp_path / "run", uninterrupted)


def test_settings_that_alter_the_training_are_refused(uninterrupted: Path) -> None:
    recipe = toy_recipe(uninterrupted, {"noisy": False}, steps=30)
    with pytest.raises(ValueError, match=r"run\.steps: 20 -> 30; toy\.noisy: True -> False") as error:
        train(recipe, progress_bar=False)
    assert "validate_every" not in str(error.value)


def test_other_number_of_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(tmp_path / "run")
    stop_at(6, RuntimeError("power cut"), monkeypatch, recipe)
    path = latest_state(tmp_path / "run") / "shared.json"
    structure = json.loads(path.read_text())
    next(pair for pair in structure["dict"] if pair[0] == "processes")[1] = 2
    path.write_text(json.dumps(structure))
    with pytest.raises(ValueError, match=r"processes: expected 2, .*got 1; .*--num_processes 2"):
        train(recipe, progress_bar=False)


def test_resume_never_refuses_to_bury_a_run(uninterrupted: Path) -> None:
    before = sorted(uninterrupted.rglob("*"))
    with pytest.raises(ValueError, match=r"run\.resume: expected auto"):
        train(toy_recipe(uninterrupted, resume="never"), progress_bar=False)
    assert sorted(uninterrupted.rglob("*")) == before


def test_half_a_log_line_is_dropped(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    stop_at(6, RuntimeError("power cut"), monkeypatch, recipe)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)
