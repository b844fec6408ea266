"""Users' mistakes as one line on the error stream."""

import builtins
import contextlib
import os
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from safetensors import SafetensorError
from torch import OutOfMemoryError, distributed

from grouping_zoo.start_up import raise_on_interrupt

USER_ERROR_EXIT_CODE = 2
CLOSED_PIPE_EXIT_CODE = 141
"""The exit code that a shell reports of a program ended by SIGPIPE."""

USER_ERRORS = (
    ValueError,
    FloatingPointError,
    ModuleNotFoundError,
    OSError,
    SafetensorError,
    MemoryError,
    OutOfMemoryError,
)
WORKER_DIED = "DataLoader worker (pid"
RAISED_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback")
LOST_CONNECTION = re.compile(r"gloo/transport|NCCL error|NCCL communicator was aborted")
LAST_WORDS_SECONDS = 2.0


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn the errors that a user can mend into `error: ...` on one line and exit code 2, without a traceback.

    `ValueError`, `FloatingPointError`, `ModuleNotFoundError` (an optional dependency that is not installed), `OSError`
    (missing files, permissions, full disks), `SafetensorError`, too little memory and the death of a loader worker are
    such errors; anything else is a fault of the program and keeps its traceback. Of what a loader worker raised, its
    own message is shown. Of several processes each tells what it alone knows: what all of them raise is told once, and
    that another process is gone is told only if that one left no word. A closed standard output, as after `| head`,
    ends in silence.

    Raises:
        SystemExit: with code 2 in place of such an error, 141 on a closed standard output.
    """
    raise_on_interrupt()
    try:
        yield
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            raise SystemExit(CLOSED_PIPE_EXIT_CODE) from None
        launch = _Launch()
        message = _message(error)
        if message is None and LOST_CONNECTION.search(str(error)):
            if launch.has_told():
                raise SystemExit(USER_ERROR_EXIT_CODE) from None
            message = f"another process of the launch ended without a word, perhaps for want of memory: {error}"
        is_first = launch.tell(message or str(error))
        if message is None:
            raise
        if is_first:
            with contextlib.suppress(OSError):  # a closed terminal
                # Another process may be drawing its progress bar on the line.
                start = "\n" if os.environ.get("RANK", "0") != "0" else ""
                print(f"{start}error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_EXIT_CODE) from None


class _Launch:
    """Processes that were launched together, which note in their common store what was told; none else by itself."""

    def __init__(self) -> None:
        self.store: distributed.Store | None = None
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or host is None or port is None:
            return
        # If the process that keeps the store is gone, everybody tells what it knows.
        with contextlib.suppress(OSError, RuntimeError):
            socket.create_connection((host, int(port)), timeout=LAST_WORDS_SECONDS).close()
            self.store = distributed.TCPStore(
                host, int(port), is_master=False, timeout=timedelta(seconds=LAST_WORDS_SECONDS)
            )

    def tell(self, message: str) -> bool:
        """Note what is told, and return whether nobody told it before."""
        if self.store is None:
            return True
        self.store.set("grouping_zoo/told", "")
        return self.store.add(f"grouping_zoo/told/{message}", 1) == 1

    def has_told(self) -> bool:
        """Return whether any process told anything, or does so within two seconds."""
        end = time.monotonic() + LAST_WORDS_SECONDS
        while self.store is not None and time.monotonic() < end:
            if self.store.check(["grouping_zoo/told"]):
                return True
            time.sleep(0.05)
        return False


def _message(error: Exception) -> str | None:
    """Text of an error for users; None of a fault of the program."""
    text = str(error)
    if isinstance(error, RuntimeError) and text.startswith(WORKER_DIED):
        return f"a process that loads data died, perhaps for want of memory: {text}; use fewer workers"
    # torch re-raises what a worker raised with its traceback as text; as a RuntimeError where it cannot be made anew.
    if found := RAISED_IN_WORKER.match(text):
        name = found[1]
        kind = vars(builtins).get(name, type(error))
        *_, text = re.split(rf"^(?:[\w.]+\.)?{name}: ", text, flags=re.MULTILINE)
        return text if issubclass(kind, USER_ERRORS) else None
    return (text or type(error).__name__) if isinstance(error, USER_ERRORS) else None


def _stdout_is_closed() -> bool:
    """Return whether nobody reads the standard output; what it still holds is dropped then."""
    if sys.platform == "win32":  # which has no such error
        return False
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if closed:
        # Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return closed
