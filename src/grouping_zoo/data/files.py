"""Files that others name: by rows of a table, by annotations, by addresses. None of them is trusted."""

import io
import json
import os
import re
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from huggingface_hub import HfFileSystem

from grouping_zoo.data.limits import MAX_FILE_BYTES
from grouping_zoo.version import __version__

TIMEOUT_SECONDS = 60.0
REMOTE = re.compile(r"(?:https?|hf)://[^\s]+")


def file_inside(name: Any, folder: Path) -> Path:
    """Return the path of a file that a table or an annotation names.

    A link in the folder may lead elsewhere: whoever made the link meant it.

    Args:
        name: path in the folder.
        folder: that it must not leave.

    Raises:
        ValueError: if it is no text, or leads out of the folder.
    """
    if not isinstance(name, str) or "\0" in name or not name:
        raise ValueError(f"file: expected a path in {folder}, got {_short(name)}; correct the entry")
    inside = Path(os.path.normpath(name))
    if inside.is_absolute() or ".." in inside.parts or "://" in name:
        raise ValueError(f"file: expected a path in {folder}, got {_short(name)}, which leads out of it; correct it")
    return folder / inside


def file_in_one_of(name: str, folders: Sequence[Path]) -> Path:
    """Return an absolute path that must lie in one of some folders.

    Raises:
        ValueError: if it lies in none of them.
    """
    path = Path(os.path.normpath(name))
    if not any(path.is_relative_to(os.path.abspath(folder)) for folder in folders):
        raise ValueError(f"file: expected one of the data set's own, got {_short(name)}, which leads out of it")
    return path


def read_remote(address: str) -> IO[bytes]:
    """Read a file that a row of a stream names by its address.

    Args:
        address: http://, https:// or hf://, and no other: file systems that are chained with "::" may run what their
            files say.

    Raises:
        ValueError: for another address, a file above `MAX_FILE_BYTES`, or one that cannot be read.
    """
    if not REMOTE.fullmatch(address) or "::" in address:
        raise ValueError(f"file: expected an address of http, https or hf, got {_short(address)}; correct the entry")
    try:
        content = _of_hub(address) if address.startswith("hf:") else _of_web(address)
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"file {_short(address)}: expected to read it, got: {reason}; check the address") from error
    return io.BytesIO(checked_size(content, address))


def _of_web(address: str) -> bytes:
    """A file of the web, cut one byte above the limit; a redirection may not lead to the files of this machine."""
    request = urllib.request.Request(address, headers={"User-Agent": f"grouping-zoo/{__version__}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return response.read(MAX_FILE_BYTES + 1)


def _of_hub(address: str) -> bytes:
    """A file of the hub, cut likewise."""
    with HfFileSystem().open(address, "rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def checked_size(content: bytes, name: str) -> bytes:
    """Return the content of an image file, if it is not too large.

    Raises:
        ValueError: if it is.
    """
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"file {_short(name)}: expected at most {MAX_FILE_BYTES} bytes, got more; remove it")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a file.

    Raises:
        ValueError: if it is larger than `max_bytes`, or not UTF-8.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path}: expected at most {max_bytes} bytes, got {size}; split the file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got other bytes ({error}); convert the file") from None


def parse_json(text: str | bytes, name: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{name}: expected JSON, got one that is nested too deeply; correct it") from None
    except ValueError as error:  # a JSONDecodeError or UnicodeDecodeError
        raise ValueError(f"{name}: expected JSON, got text that fails with {error}; correct it") from None


def _short(value: Any) -> str:
    """A value in an error message, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
