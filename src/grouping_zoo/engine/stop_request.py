"""Signals and a dead launcher as a request to stop, which the loop heeds between two updates."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType

if sys.platform == "win32":
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
else:
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Request to stop: while entered, a signal is noted rather than ending the process in mid-update.

    SIGINT (Ctrl-C), SIGTERM (`kill`, SLURM, systemd, torchrun) and SIGHUP (a closed terminal, unless `nohup` has it
    ignored) are noted, and so is the death of the launcher, which may not pass on what ended it. A second SIGINT
    interrupts at once. Outside the main thread, which alone may handle signals, nothing is changed.
    """

    def __init__(self) -> None:
        self._noted = False
        self._launcher = os.getppid() if _has_launcher() else None

    @property
    def requested(self) -> bool:
        """True once the loop must stop after the update under way."""
        return self._noted or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> "StopRequest":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = True


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the stop signals in this thread and for good in the processes that it starts meanwhile.

    A signal to the whole process group would otherwise end the loader's workers, which the trainer needs until it has
    saved its state. What arrives meanwhile is handled on leaving.
    """
    if sys.platform == "win32":
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        # Python's tracker of resources, which other start methods need, unblocks signals as it starts.
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_launcher() -> bool:
    """Return whether the parent process is torchrun or `accelerate launch`, not a shell that may be left."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
