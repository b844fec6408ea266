import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset

from grouping_zoo import start_up
from grouping_zoo.user_errors import report_user_errors
from toy_task import subprocess_environment


def told(action: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user is told."""
    with pytest.raises(SystemExit) as end, report_user_errors():
        action()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def fail(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_a_damaged_safetensors_file_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(fail(SafetensorError("No space left")), capsys) == "error: No space left"


def test_an_error_without_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(fail(ValueError()), capsys) == "error: ValueError"


class Failing(Dataset[Any]):
    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        self.action()


def read(action: Callable[[], None], workers: int) -> Callable[[], None]:
    return lambda: next(iter(DataLoader(Failing(action), num_workers=workers)))


def chained() -> None:
    try:
        raise ValueError("inner: ValueError: one")
    except ValueError:
        raise ValueError("images/cat.jpg: expected an image,\ngot ValueError: none; replace it") from None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("action", "line"),
    [
        (chained, "error: images/cat.jpg: expected an image, got ValueError: none; replace it"),
        (lambda: Path("no/such/file").read_text(), "error: [Errno 2] No such file or directory: 'no/such/file'"),
        (
            lambda: b"\xe9 ".decode(),
            "error: 'utf-8' codec can't decode byte 0xe9 in position 0: invalid continuation byte",
        ),
        (fail(SafetensorError("damaged")), "error: damaged"),
    ],
    ids=["ValueError", "FileNotFoundError", "UnicodeDecodeError", "SafetensorError"],
)
def test_what_a_worker_raised_is_told_as_without_one(
    action: Callable[[], None], line: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(read(action, workers), capsys) == line


def test_a_mistake_of_the_program_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="Original Traceback"), report_user_errors():
        read(fail(KeyError("bug")), 1)()
    with pytest.raises(RuntimeError, match="Original Traceback"), report_user_errors():
        read(fail(RuntimeError("bug")), 1)()


def test_the_death_of_a_worker_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = told(read(lambda: os.kill(os.getpid(), signal.SIGKILL), 1), capsys)
    assert line.startswith("error: a process that loads data died, perhaps for want of memory: DataLoader worker (pid")
    assert line.endswith("use fewer workers")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.TCPStore:
    """The common store of a launch of two processes."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


LOST = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def test_processes_tell_the_same_once_and_the_rest_each(
    store: torch.distributed.TCPStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(fail(ValueError("all know")), capsys) == "error: all know"
    for error in (ValueError("all know"), LOST):
        with pytest.raises(SystemExit), report_user_errors():
            raise error
        assert capsys.readouterr().err == ""
    assert told(fail(ValueError("one knows")), capsys) == "error: one knows"


def test_a_lost_process_that_left_no_word_is_told(
    store: torch.distributed.TCPStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(fail(LOST), capsys).startswith("error: another process of the launch ended without a word")


def test_a_mistake_of_the_program_in_one_process_is_a_word(store: torch.distributed.TCPStore) -> None:
    with pytest.raises(KeyError), report_user_errors():
        raise KeyError("bug")
    with pytest.raises(SystemExit), report_user_errors():
        raise LOST


def test_without_the_store_everybody_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        assert told(fail(ValueError("all know")), capsys) == "error: all know"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_standard_output_ends_in_silence(
    lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end, report_user_errors():
            print("a line\n" * lines)
        # As Python does at its end.
        stdout.flush()
    assert end.value.code == 141
    assert capsys.readouterr().err == ""


def test_a_broken_pipe_elsewhere_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(fail(BrokenPipeError(32, "Broken pipe")), capsys) == "error: [Errno 32] Broken pipe"


@pytest.mark.parametrize("command", [["-m", "grouping_zoo.engine"], ["-m", "grouping_zoo.cli"]])
def test_ctrl_c_during_the_imports_is_quiet(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, *command, "--help"],
        env=subprocess_environment(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize("argv", [["-c"], [""], [], ["train.py"], ["-m"]])
def test_a_program_that_imports_the_package_keeps_its_own_ctrl_c(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "another.package"])
    start_up.end_quietly_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_raises_again_once_all_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/grouping-zoo"])
    start_up.end_quietly_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is start_up._end
    with report_user_errors():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
