"""Files that a command writes: all of them or none."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when all is written, and vanish on an error."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        for file in sorted(Path(unfinished).iterdir()):
            os.replace(file, folder / file.name)


def check_folder(option: str, folder: Path) -> None:
    """Checks, before any work is done, that a folder can be written or made.

    Raises:
        ValueError: if it, or what it would lie in, is a file or must not be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: expected a folder, got the file {existing}; choose another name")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: expected a folder to write to, got {folder}, which is read-only; choose another")


def as_json(record: dict[str, Any]) -> str:
    """Plain data as JSON for people, without NaN, which is no JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
