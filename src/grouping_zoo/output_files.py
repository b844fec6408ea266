"""Files of a result: all of them are written or none."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_STEM_BYTES = 223  # file systems take names of 255 bytes; the longest ending is "_head10_level4_labels.png"
UNFINISHED = ".unfinished-"
LEFTOVER_SECONDS = 3600  # a folder of unfinished files that has not changed for so long is a killed process's


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when all are written, and vanish on an error.

    Raises:
        ValueError: if a folder has the name of one of the files; nothing has moved then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as unfinished:
        yield Path(unfinished)
        files = sorted(Path(unfinished).iterdir())
        for file in files:
            if (folder / file.name).is_dir():
                raise ValueError(f"{folder / file.name}: expected to write a file, got a folder; remove or rename it")
        for file in files:
            os.replace(file, folder / file.name)


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished with it
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def check_folder(option: str, folder: Path) -> None:
    """Check, before any work is done, that a folder can be written or made.

    Raises:
        ValueError: if it, or what it would lie in, is a file or must not be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: expected a folder, got the file {existing}; choose another name")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: expected a folder to write to, got {folder}, which is read-only; choose another")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write plain data as JSON for people, without NaN, which is no JSON."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 has lone surrogates here; backslashreplace writes them as JSON's own escapes.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def output_stem(stem: str, number: int = 1) -> str:
    """Start of the names of an image's files, which with `number` above 1 differs from that of others of its name.

    Args:
        stem: the image's name without its ending; a very long one is cut so that endings fit after it.
        number: 1 for the first image of this name.
    """
    addition = f"-{number}" if number > 1 else ""
    encoded = os.fsencode(stem)
    room = MAX_STEM_BYTES - len(addition)
    # A name is cut between its letters; what is not UTF-8 in a name that has to be cut is left out.
    return (stem if len(encoded) <= room else encoded[:room].decode(errors="ignore")) + addition
