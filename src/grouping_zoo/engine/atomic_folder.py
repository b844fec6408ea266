"""Folders that are replaced as a whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `folder` on leaving; on an error all stays as it was.

    Where `folder` is a symbolic link, what it points to is replaced.
    """
    restore_folder(folder)
    folder, writing, old = _names(folder)
    writing.mkdir(parents=True)
    try:
        yield writing
        if folder.exists():
            os.replace(folder, old)
        os.replace(writing, folder)
        delete(old)
    except BaseException:
        restore_folder(folder)
        raise


def restore_folder(folder: Path) -> None:
    """Bring back a folder whose replacement was interrupted between two renamings; delete what else it left."""
    folder, writing, old = _names(folder)
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    delete(old)
    delete(writing)


def delete(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; none is none too many."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _names(folder: Path) -> tuple[Path, Path, Path]:
    """The folder itself, what it is written as, and what its predecessor is kept as meanwhile."""
    folder = folder.resolve()
    return folder, folder.with_name(f".{folder.name}.writing"), folder.with_name(f".{folder.name}.old")
