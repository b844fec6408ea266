"""Users' mistakes as one line on the error stream."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR_EXIT_CODE = 2


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turns the errors that a user can mend into `error: ...` on one line and exit code 2, without a traceback.

    `ValueError`, `FloatingPointError`, `ModuleNotFoundError` (an optional dependency that is not installed) and
    `OSError` (missing files, permissions, full disks) are such errors; anything else is a fault of the program and
    keeps its traceback. Of several processes only the first one prints.

    Raises:
        SystemExit: with code 2, in place of such an error.
    """
    try:
        yield
    except (ValueError, FloatingPointError, ModuleNotFoundError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(USER_ERROR_EXIT_CODE) from None
