import errno
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from grouping_zoo.engine import output_lock
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.output_lock import locked
from toy_task import start, toy_recipe


def test_second_training_in_a_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        second = start(toy_recipe(tmp_path / "run"))
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2
        assert errors == (
            f"error: run.output_dir: expected a folder that no other training uses, got {tmp_path / 'run'}, where one "
            "is running; wait for it, end it, or use another run.output_dir\n"
        )
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]


def hold(folder: Path, ready: int) -> None:
    """Hold the lock, as a trainer with a loader worker that outlives it."""
    os.setsid()
    with locked(folder):
        if os.fork():
            os.write(ready, b"1")
        time.sleep(60)


def test_a_killed_holder_leaves_the_folder_free_though_its_children_live_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            hold(tmp_path / "run", writer)
        finally:
            os._exit(1)
    os.read(reader, 1)
    with pytest.raises(ValueError, match="where one is running"), locked(tmp_path / "run"):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / "run.lock").exists()
    os.killpg(holder, signal.SIGKILL)  # the child still lived
    os.close(reader)
    os.close(writer)


def test_a_folder_that_nothing_was_written_to_is_not_left_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_lock, "_lock", unsupported)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "run"):
        assert "has no locks" in caplog.text


def test_a_lock_file_deleted_by_its_last_holder_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, calls = output_lock._lock, 0

    def delete_first(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / "run.lock").unlink()
        lock(descriptor)

    monkeypatch.setattr(output_lock, "_lock", delete_first)
    with locked(tmp_path):
        assert (tmp_path / "run.lock").exists()
    assert calls == 2


def test_an_output_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        train(toy_recipe(tmp_path / "file" / "run"), progress_bar=False)
