"""Lock on the folder of a run: two trainings in one folder would mix their logs, states and checkpoints."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_NAME = "run.lock"
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases if this process dies. The folder is made if missing.

    Raises:
        ValueError: if another process holds it.
        OSError: if the folder cannot be written.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    descriptor = _open_locked(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file
            path.unlink()
        os.close(descriptor)
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                logger.warning("%s: this file system has no locks; let only one training write there", path.parent)
                return descriptor
            os.close(descriptor)
            if error.errno not in HELD:
                raise
            raise ValueError(
                f"run.output_dir: expected a folder that no other training uses, got {path.parent}, where one is "
                f"running; wait for it, end it, or use another run.output_dir"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        # Its last holder deleted the file between the two calls.
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # A record lock, as forked loader workers inherit a `flock` and hold it after the trainer's death.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
