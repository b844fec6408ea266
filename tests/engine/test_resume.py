import json
import logging
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from grouping_zoo.engine import atomic_folder
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.training_state import DIGESTS_NAME, WRITING, latest_state, read_tree, write_tree
from toy_task import ToyDataset, ToyObjective, ToyTask, log_lines, start, state_tensors, toy_recipe, wait_for

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_stopped_by_a_signal_to_all_its_processes(tmp_path: Path, uninterrupted: Path, number: signal.Signals) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5, save_every=20, num_workers=2)
    process = start(recipe, TOY_DELAY="0.05")
    wait_for(tmp_path / "run" / "log.jsonl", process)
    # As terminals and cluster managers do: to the loader's workers as well.
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "error" not in errors
    state = latest_state(tmp_path / "run")
    assert state is not None
    assert state.name < FINAL
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_stopped_while_an_old_state_is_deleted(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(atomic_folder.shutil, "rmtree", delete_half)
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
    (path.parent / DIGESTS_NAME).unlink()
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


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGES = {
    "flipped bit of a tensor": lambda state: flip(state / "shared.safetensors"),
    "flipped bit of the random state": lambda state: flip(state / "process-00000.safetensors"),
    "flipped bit of the digests": lambda state: flip(state / DIGESTS_NAME),
    "another number in the JSON": lambda state: replace(state / "shared.json", "0.001", "0.002"),
    "truncated": lambda state: os.truncate(state / "shared.safetensors", 1000),
    "truncated JSON": lambda state: os.truncate(state / "shared.json", 100),
    "empty digests": lambda state: os.truncate(state / DIGESTS_NAME, 0),
    "file missing": lambda state: (state / "process-00000.safetensors").unlink(),
    "all files missing": lambda state: [path.unlink() for path in list(state.iterdir())],
    "file in place of the folder": lambda state: (shutil.rmtree(state), state.write_text("")),
}
DAMAGES_OF_STATES_WITHOUT_DIGESTS = {
    "empty tensors": lambda state: os.truncate(state / "shared.safetensors", 0),
    "JSON list": lambda state: (state / "shared.json").write_text("[1]"),
    "JSON null": lambda state: (state / "process-00000.json").write_text("null"),
    "nested JSON": lambda state: (state / "shared.json").write_text("[" * 100_000),
    "not UTF-8": lambda state: (state / "shared.json").write_bytes(b"\xff"),
    "other kind": lambda state: replace(state / "shared.json", '"dict"', '"bict"'),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the states of steps 4 and 8."""
    output = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(11, RuntimeError("power cut"), patch, toy_recipe(output, validate_every=5))
    return output


@pytest.mark.parametrize("damage", DAMAGES | DAMAGES_OF_STATES_WITHOUT_DIGESTS)
def test_a_damaged_state_is_told_and_the_one_before_it_taken(
    damage: str, tmp_path: Path, interrupted: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    states = tmp_path / "run" / "state"
    if damage in DAMAGES_OF_STATES_WITHOUT_DIGESTS:
        for path in states.glob(f"*/{DIGESTS_NAME}"):
            path.unlink()
    (DAMAGES | DAMAGES_OF_STATES_WITHOUT_DIGESTS)[damage](states / "step-00000008")
    with caplog.at_level(logging.WARNING):
        train(toy_recipe(tmp_path / "run", validate_every=5), progress_bar=False)
    (line,) = caplog.messages
    assert line.startswith(f"damaged training state: {states}/step-00000008 (")
    assert line.endswith(f"; going on from {states}/step-00000004")
    assert_same_run(tmp_path / "run", uninterrupted)


def test_if_all_states_are_damaged_it_is_said_what_to_delete(tmp_path: Path, interrupted: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    recipe, states = toy_recipe(tmp_path / "run", validate_every=5), tmp_path / "run" / "state"
    for path in states.glob("*/shared.safetensors"):
        flip(path)
    before = sorted(states.rglob("*"))
    with pytest.raises(ValueError, match=rf"step-00000008 \(.*; .*step-00000004 \(.* or delete {states} to train anew"):
        train(recipe, progress_bar=False)
    assert sorted(states.rglob("*")) == before
    shutil.rmtree(states)
    train(recipe, progress_bar=False)


def test_a_state_without_digests_resumes(tmp_path: Path, interrupted: Path, uninterrupted: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    for path in (tmp_path / "run").rglob(DIGESTS_NAME):
        path.unlink()
    train(toy_recipe(tmp_path / "run", validate_every=5), progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_state_that_does_not_fit_the_network_names_the_folder_to_delete(tmp_path: Path, interrupted: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    state = tmp_path / "run" / "state" / "step-00000008"
    (state / DIGESTS_NAME).unlink()
    shared = read_tree(state / "shared")
    shared["objective"]["head.weight"] = torch.zeros(2, 2)
    write_tree(state / "shared", shared)
    with pytest.raises(ValueError, match=r"size mismatch for head\.weight.*; delete that folder"):
        train(toy_recipe(tmp_path / "run", validate_every=5), progress_bar=False)


def test_digests_are_those_of_sha256sum(interrupted: Path) -> None:
    state = latest_state(interrupted)
    assert state is not None
    subprocess.run(["sha256sum", "--check", "--strict", DIGESTS_NAME], cwd=state, check=True, capture_output=True)


def test_data_that_changed_are_told(
    tmp_path: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    monkeypatch.setattr(ToyDataset, "__len__", lambda self: 40)
    monkeypatch.setattr(ToyDataset, "fingerprint", lambda self: "other files", raising=False)
    with caplog.at_level(logging.WARNING):
        train(toy_recipe(tmp_path / "run", validate_every=5), progress_bar=False)
    (line,) = caplog.messages  # the interrupted run knew no fingerprint
    assert line.startswith("data: samples was 50 when the run was interrupted, and is 40 now")
    described = read_tree(latest_state(tmp_path / "run") / "shared")["data"]
    assert described == {"samples": 40, "fingerprint": "other files"}


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """Has files end at 4 kB from the call on, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_error_and_loses_nothing(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[], None]
) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    after_step = ToyObjective.after_step

    def fill(self: ToyObjective, progress: float) -> None:
        after_step(self, progress)
        if self.updates == 10:
            full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(ToyObjective, "after_step", fill)
        with pytest.raises(OSError, match=r"training state: .*step-00000012 cannot be written.*is .*step-00000008"):
            train(recipe, progress_bar=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".")]
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_checkpoint_that_cannot_be_written_is_one_error_and_loses_nothing(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(tmp_path / "run", validate_every=5)

    def fail(self: ToyTask, model: torch.nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        (folder / "half").touch()
        raise SafetensorError("Error while serializing: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "export", fail)
        with pytest.raises(OSError, match=r"checkpoint: .* cannot be written .*No space left.*are in .*step-00000020"):
            train(recipe, progress_bar=False)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".") or path.name == "half"]
    train(recipe, progress_bar=False)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_what_killed_processes_left_is_swept(tmp_path: Path, uninterrupted: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    os.rename(output / "checkpoint", output / ".checkpoint.old")  # killed between two renamings
    for name in (".checkpoint.writing", f"state/{WRITING}step-00000004", "state/.deleting-step-00000008"):
        (output / name).mkdir()
        (output / name / "half").touch()
    for name in ("log.writing", "recipe.writing"):
        (output / name).touch()
    train(toy_recipe(output, validate_every=5), progress_bar=False)
    assert_same_run(output, uninterrupted)
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint", "log.jsonl", "recipe.yaml", "state"]
