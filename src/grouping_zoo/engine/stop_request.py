"""Ctrl-C and termination as a request that the loop heeds between two updates."""

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """While entered, notes SIGINT and SIGTERM in `requested` rather than break off in mid-update.

    A second SIGINT interrupts at once. Outside the main thread, which alone may handle signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
