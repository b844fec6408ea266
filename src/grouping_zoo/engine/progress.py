"""Progress bar on the error stream, whose reader may go before the training ends."""

import contextlib
import sys
from typing import Any

from tqdm import tqdm


def open_bar(total: int, initial: int, shown: bool) -> "tqdm[Any]":
    """A bar over updates that never breaks the training it shows, as into `| head` or a closed terminal."""
    return tqdm(total=total, initial=initial, unit="step", disable=not shown, file=_Forgiving(sys.stderr))


class _Forgiving:
    """A text stream that drops what can no longer be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
