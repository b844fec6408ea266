"""Sources of images with captions: a table beside a folder of images, a data set of the hub, or a stream of shards."""

import csv
import functools
import glob
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
from PIL import Image
from torch.utils.data import Dataset

from grouping_zoo.data.files import (
    checked_size,
    file_in_one_of,
    file_inside,
    parse_json,
    read_remote,
    read_text,
)
from grouping_zoo.data.images import CorruptImages, Unreadable, first_readable, open_image
from grouping_zoo.data.limits import MAX_CAPTION_LENGTH, MAX_TABLE_BYTES
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.shards import read_shards

# Column names in use, the first that is there is taken.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "file_name")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "sentences", "json")

FOLDER_LAYOUT = (
    "FOLDER/metadata.csv (or metadata.jsonl) with the columns file_name,caption and rows such as "
    "`images/1.jpg,a red ball`, next to FOLDER/images/1.jpg"
)


class CaptionedImage(NamedTuple):
    """One image with its caption; a `Scene` has these attributes as well.

    Attributes:
        image: an RGB image, or an (H, W, 3) uint8 array.
        caption: one sentence.
        nouns: what the caption names, where the source knows it.
    """

    image: Image.Image | np.ndarray
    caption: str
    nouns: tuple[str, ...] | None = None


class ImageTextSource(Protocol):
    """A map-style source: what it gives depends on the key alone."""

    def __len__(self) -> int:
        """Return the number of samples an epoch."""

    def __getitem__(self, key: SampleKey) -> Any:
        """Return an object with `image`, `caption` and `nouns`."""


class RowReader:
    """Reads rows of a table, of which one column holds images and another captions.

    A row's image stands in the first image column that is not empty, as shards may hold several kinds of image files.
    Of several captions, or sentences, of an image each epoch takes the next.

    Args:
        name: name of the table in errors.
        columns: its column names.
        open_file: opens the image that a row gives by its path or address, and names no file that it must not.
        corrupt: counts the rows that cannot be read; by default at most 5 % of them.

    Raises:
        ValueError: if there is no such column.
    """

    def __init__(
        self,
        name: str,
        columns: Sequence[str],
        open_file: Callable[[str], Path | IO[bytes]],
        corrupt: CorruptImages | None = None,
    ) -> None:
        self.name = name
        self.image_columns = self._find(IMAGE_COLUMNS, columns, "images")
        self.caption_column = self._find(CAPTION_COLUMNS, columns, "captions")[0]
        self.open_file = open_file
        self.corrupt = CorruptImages() if corrupt is None else corrupt

    def _find(self, known: Sequence[str], columns: Sequence[str], what: str) -> list[str]:
        found = [column for column in known if column in columns]
        if not found:
            raise ValueError(
                f"{self.name}: expected a column of {what} called one of {', '.join(known)}, got "
                f"{', '.join(columns[:20])}; rename the column"
            )
        return found

    def read(self, row: dict[str, Any], number: str, epoch: int) -> CaptionedImage | Unreadable:
        """Return a row's image and caption, or the reason, counted, why they cannot be read."""
        value = next((row[column] for column in self.image_columns if row.get(column) is not None), None)
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        name = f"{path or 'row'} ({self.name}, {number})"

        def read_one(value: Any) -> CaptionedImage:
            caption = self.caption_text(row[self.caption_column], epoch)
            if not caption:
                raise ValueError(f"image {name}: expected a caption, got none; fill it in or remove the row")
            if len(caption) > MAX_CAPTION_LENGTH:
                raise ValueError(
                    f"image {name}: expected a caption of at most {MAX_CAPTION_LENGTH} characters, got {len(caption)}; "
                    "shorten it or remove the row"
                )
            return CaptionedImage(self._image(value, name), caption)

        return self.corrupt.attempt(name, read_one, value)

    def _image(self, value: Any, name: str) -> Image.Image:
        content = value.get("bytes") if isinstance(value, dict) else value if isinstance(value, bytes) else None
        if isinstance(content, bytes):
            return open_image(io.BytesIO(checked_size(content, name)), name=name)
        path = value.get("path") if isinstance(value, dict) else value
        if not isinstance(path, str):
            raise ValueError(f"image {name}: expected a path or an encoded image, got {type(path).__name__}")
        try:
            file = self.open_file(path)
        except ValueError as error:
            raise ValueError(f"image {name}: {error}") from error
        return open_image(file, name=name)

    def caption_text(self, value: Any, epoch: int) -> str:
        """Return what a field of the caption column says in an epoch; empty if it says nothing."""
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"caption: expected UTF-8, got other bytes ({error}); convert the text") from None
        if isinstance(value, dict):  # the JSON field of a shard
            value = value.get("caption") or value.get("text")
        if isinstance(value, list):
            value = value[epoch % len(value)] if value else None
        return "" if value is None else str(value).strip()


class CaptionedImages(Dataset[CaptionedImage]):
    """Map-style source over a table; a row that cannot be read is replaced by the next one that can.

    Args:
        rows: the table; images are paths or encoded files.
        name: name of the table in errors.
        open_file: see `RowReader`; by default no file may be named.
        corrupt: counts the rows that cannot be read, in each process and worker for itself.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        name: str,
        open_file: Callable[[str], Path | IO[bytes]] | None = None,
        corrupt: CorruptImages | None = None,
    ) -> None:
        if len(rows) == 0:
            raise ValueError(f"{name}: expected at least one row, got none; check the file or the split")
        open_file = open_file or functools.partial(file_in_one_of, folders=())
        self.reader = RowReader(name, rows.column_names, open_file, corrupt)
        for column in self.reader.image_columns:
            if isinstance(rows.features[column], datasets.Image):
                # Decoded here: one damaged image must not stop the run.
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self.rows = rows

    def captions(self) -> list[str]:
        """Return each image's first caption without reading the images; rows that have none are left out."""
        captions = self.rows[self.reader.caption_column]
        return [text for text in (self.reader.caption_text(caption, epoch=0) for caption in captions) if text]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey | int) -> CaptionedImage:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")

        def read(number: int) -> CaptionedImage | Unreadable:
            return self.reader.read(self.rows[number], f"row {number}", epoch)

        return first_readable(read, index, len(self), self.reader.name)


def captioned_folder(folder: str | PathLike[str], corrupt: CorruptImages | None = None) -> CaptionedImages:
    """Open a folder of images with a table of captions.

    Args:
        folder: holds ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name`` (paths in the folder) and
            ``caption`` or ``text``.
        corrupt: counts the images that cannot be read.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no captions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of captioned images, but {folder} is none; check the path")
    tables = [folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()]
    if not tables:
        raise ValueError(
            f"folder: expected captions in {folder}, got no metadata.csv or .jsonl; lay out {FOLDER_LAYOUT}"
        )
    table = tables[0]
    read = _csv_rows if table.suffix == ".csv" else _json_rows
    files, captions = [], []
    for file, caption in read(table):
        files.append(file)
        captions.append(caption)
    if not files:
        raise ValueError(f"{table}: expected at least one row, got none; lay out {FOLDER_LAYOUT}")
    features = datasets.Features(file_name=datasets.Value("string"), caption=datasets.List(datasets.Value("string")))
    rows = datasets.Dataset.from_dict({"file_name": files, "caption": captions}, features=features)
    return CaptionedImages(rows, str(table), functools.partial(file_inside, folder=folder), corrupt)


def _csv_rows(table: Path) -> Iterator[tuple[str, list[str]]]:
    """File and captions of each row of metadata.csv."""
    csv.field_size_limit(MAX_TABLE_BYTES)
    reader = csv.DictReader(io.StringIO(read_text(table, MAX_TABLE_BYTES), newline=""), skipinitialspace=True)
    column = _caption_column(table, list(reader.fieldnames or []))
    try:
        for row in reader:
            if None in row or row[column] is None:
                raise ValueError(
                    f"{table}, line {reader.line_num}: expected {len(reader.fieldnames or [])} columns, got more or "
                    'fewer; put a caption with commas in quotes, "a ball, a box"'
                )
            yield row["file_name"], [row[column]]
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.line_num}: expected CSV, got: {error}; correct it") from None


def _json_rows(table: Path) -> Iterator[tuple[str, list[str]]]:
    """File and captions of each line of metadata.jsonl."""
    for number, line in enumerate(read_text(table, MAX_TABLE_BYTES).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {type(row).__name__}; lay out {FOLDER_LAYOUT}")
        found = row[_caption_column(table, list(row))]
        captions = found if isinstance(found, list) else [found]
        if not isinstance(row["file_name"], str) or not all(isinstance(text, _CAPTION_TYPES) for text in captions):
            raise ValueError(f"{where}: expected texts for file_name and caption, got others; correct the line")
        yield row["file_name"], ["" if text is None else str(text) for text in captions]


_CAPTION_TYPES = str | int | float | None


def _caption_column(table: Path, columns: list[str]) -> str:
    """Name of the column of captions, if there is one of files too."""
    captions = [name for name in ("caption", "text") if name in columns]
    if "file_name" not in columns or not captions:
        raise ValueError(
            f"{table}: expected the columns file_name and caption (or text), got {', '.join(map(repr, columns[:20]))}; "
            f"lay out {FOLDER_LAYOUT}"
        )
    return captions[0]


class CaptionedStream:
    """A source that is read from front to back, in shards.

    Args:
        rows: the stream; images are addresses or encoded files.
        name: name of the stream in errors.
        columns: its column names; by default those of its features or of its first row.
        corrupt: counts the rows that cannot be read, in each process and worker for itself.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        name: str,
        columns: Sequence[str] | None = None,
        corrupt: CorruptImages | None = None,
    ) -> None:
        if rows.features:
            rows = rows.decode(False)  # decoded here: one damaged image must not stop the run
        if columns is None:
            columns = list(rows.features or next(iter(rows), {}))
        self.reader = RowReader(name, columns, functools.partial(_file_of_stream, folders=own_folders(name)), corrupt)
        self.rows = rows


def hub_images(
    name: str, split: str = "train", streaming: bool = False, corrupt: CorruptImages | None = None
) -> CaptionedImages | CaptionedStream:
    """Open a data set of the hub with a column of images and one of captions.

    Args:
        name: the repository, or what else `datasets.load_dataset` reads.
        split: name of the split.
        streaming: read it while it is downloaded, shard by shard.
        corrupt: counts the images that cannot be read.

    Raises:
        ValueError: if it cannot be opened.
    """
    rows = load_table(name, split, streaming)
    if streaming:
        return CaptionedStream(rows, name, corrupt=corrupt)
    return CaptionedImages(rows, name, functools.partial(file_in_one_of, folders=own_folders(name)), corrupt)


def load_table(name: str, split: str, streaming: bool = False) -> Any:
    """Return a table of the hub, or what else `datasets.load_dataset` reads.

    Raises:
        ValueError: if it cannot be opened; a script in it is not run.
    """
    try:
        with _told_of_cache():
            return datasets.load_dataset(name, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetsError, RuntimeError, pa.ArrowException) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:500]
        raise ValueError(
            f"data: expected a data set that `datasets` reads at {name}, got: {reason}; check it"
        ) from None


@contextmanager
def _told_of_cache() -> Iterator[None]:
    """Tell of an operating system's error on a file, such as a cache that cannot be written, what may mend it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # of `datasets` itself, on a name that there is none of
            raise
        raise OSError(f"{error.filename}: {error.strerror}; if it is the cache of `datasets`, set HF_HOME") from None


def own_folders(name: str) -> list[Path]:
    """Return the folders that the images of a table may lie in: its own, and those that `datasets` downloads to."""
    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return [Path(folder) for folder in (*((name,) if Path(name).is_dir() else ()), *caches)]


def _file_of_stream(path: str, folders: Sequence[Path]) -> Path | IO[bytes]:
    return read_remote(path) if "://" in path else file_in_one_of(path, folders)


def shard_stream(shards: str | PathLike[str] | Sequence[str], corrupt: CorruptImages | None = None) -> CaptionedStream:
    """Open webdataset shards: tar files with members such as ``000.jpg`` and ``000.txt`` (or ``000.json``).

    Args:
        shards: a folder, a pattern such as ``shards/*.tar``, or paths or URLs one by one.
        corrupt: counts the images that cannot be read.

    Raises:
        FileNotFoundError: if there is no shard.
    """
    if isinstance(shards, str | PathLike):
        pattern = str(Path(shards) / "*.tar") if Path(shards).is_dir() else str(shards)
        files = [pattern] if "://" in pattern else sorted(glob.glob(pattern, recursive=True))
    else:
        files = list(shards)
    if not files:
        raise FileNotFoundError(f"shards: expected .tar files, got none at {shards}; check the folder or pattern")
    with _told_of_cache():
        rows = datasets.IterableDataset.from_generator(read_shards, gen_kwargs={"shards": files})
    return CaptionedStream(rows, str(shards), ("image", "caption"), corrupt)
