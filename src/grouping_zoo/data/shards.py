"""Rows of webdataset shards: tar files whose members with one key, as 000.jpg and 000.txt, make a sample."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import StreamingDownloadManager

from grouping_zoo.data.files import parse_json
from grouping_zoo.data.images import EXTENSIONS
from grouping_zoo.data.limits import MAX_CAPTION_LENGTH, MAX_FILE_BYTES

TEXT, JSON = ".txt", ".json"
MAX_JSON_BYTES = 100 * MAX_CAPTION_LENGTH


def read_shards(shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of shards, one after the other.

    A member's key is its path up to the first dot of its name, what follows tells its kind. Members of other kinds
    are passed over.

    Args:
        shards: paths or URLs of tar files.

    Yields:
        "key", "image" with "path" and "bytes" or None, and "caption": bytes of a text, what a JSON member says, or
        None. A member that is too large, or JSON that is none, counts as missing.

    Raises:
        tarfile.TarError: in a damaged shard.
    """
    for shard in shards:
        row: dict[str, Any] = {}
        for path, file in StreamingDownloadManager().iter_archive(shard):
            folder, slash, name = path.rpartition("/")
            stem, _, kind = name.partition(".")
            key = folder + slash + stem
            if row and row["key"] != key:
                yield row
                row = {}
            row = row or {"key": key, "image": None, "caption": None}
            _take(row, path, f".{kind.lower()}", file)
        if row:
            yield row


def _take(row: dict[str, Any], path: str, kind: str, file: Any) -> None:
    """Add a member to its row: the first image, a text before what a JSON member says."""
    if kind in EXTENSIONS and row["image"] is None:
        row["image"] = {"path": path, "bytes": file.read(MAX_FILE_BYTES + 1)}
    elif kind == TEXT:
        row["caption"] = file.read(4 * MAX_CAPTION_LENGTH + 1)
    elif kind == JSON and row["caption"] is None:
        content = file.read(MAX_JSON_BYTES + 1)
        try:
            row["caption"] = parse_json(content, path)
        except ValueError:
            row["caption"] = None
