"""Ctrl-C while the package is imported, which takes seconds before a command can handle it."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

INTERRUPTED_EXIT_CODE = 130


def end_quietly_on_interrupt() -> None:
    """Let Ctrl-C end this process without a traceback, if Python was started for a command of this package.

    The process ends on the spot: an exception would pass through half-imported libraries, some of which swallow it.
    """
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, once everything is imported."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    # While Python looks for the module of `python -m MODULE`, "-m" stands in the module's place.
    started_as_module = sys.argv[:1] == ["-m"] and any(word.startswith("grouping_zoo.") for word in sys.orig_argv)
    return started_as_module or Path(sys.argv[0] if sys.argv else "").stem == "grouping-zoo"


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED_EXIT_CODE)


end_quietly_on_interrupt()
