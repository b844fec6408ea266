"""Tables of images that `datasets` reads: data sets of the hub, and shards with captions."""

import io
from typing import Any

import datasets

from grouping_zoo.data.captioned import IMAGE_COLUMNS, hub_images, load_table, own_folders, shard_stream
from grouping_zoo.data.files import checked_size, file_in_one_of
from grouping_zoo.data.image_source import LabelledImage, StoredImages
from grouping_zoo.data.images import CorruptImages, open_image
from grouping_zoo.data.limits import MAX_CLASSES
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register

LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_NUMBERS = ("int", "uint", "bool", "float")


class TableImages(StoredImages):
    """Images in columns of a table of `datasets`, and their classes in another column, where there is one.

    A row's image stands in the first image column that is not empty. Classes are class labels, texts, or whole numbers
    from 0.

    Args:
        rows: the table.
        name: name of the table in errors.
        corrupt: see `StoredImages`.

    Raises:
        ValueError: if it has no rows, no column of images, or labels of another kind.
    """

    def __init__(self, rows: datasets.Dataset, name: str, corrupt: CorruptImages | None = None) -> None:
        super().__init__(name, corrupt)
        if len(rows) == 0:
            raise ValueError(f"{name}: expected at least one row, got none; check the split")
        columns = rows.column_names
        self.image_columns = [
            column
            for column in IMAGE_COLUMNS
            if column in columns and isinstance(rows.features[column], datasets.Image)
        ]
        if not self.image_columns:
            raise ValueError(
                f"{name}: expected a column of images called one of {', '.join(IMAGE_COLUMNS)}, got "
                f"{', '.join(columns[:20])}; rename the column"
            )
        self.folders = own_folders(name)
        self.label_column = next((column for column in LABEL_COLUMNS if column in columns), None)
        if self.label_column is not None:
            rows, self.class_names = _with_classes(rows, self.label_column, name)
        for column in self.image_columns:
            rows = rows.cast_column(column, datasets.Image(decode=False))  # one damaged image must not stop the run
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def name_of(self, index: int) -> str:
        """See `StoredImages`."""
        return f"{self.name}, row {index}"

    def read_one(self, index: int) -> LabelledImage:
        """See `StoredImages`."""
        row: dict[str, Any] = self.rows[index]
        name = self.name_of(index)
        stored = next((row[column] for column in self.image_columns if row[column] is not None), None)
        if stored is None:
            raise ValueError(f"image {name}: expected an encoded image, got nothing; remove the row")
        if stored["bytes"] is None:
            file: Any = file_in_one_of(stored["path"] or "", self.folders)
        else:
            file = io.BytesIO(checked_size(stored["bytes"], name))
        label = None if self.label_column is None else self._label(row[self.label_column], name)
        return LabelledImage(open_image(file, name=name), label)

    def _label(self, value: Any, name: str) -> int:
        if value is None or not 0 <= value < len(self.class_names):
            raise ValueError(
                f"image {name}: expected a class from 0 to {len(self.class_names) - 1}, got {value}; remove the row"
            )
        return int(value)


def _with_classes(rows: datasets.Dataset, column: str, name: str) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """The table with class indices, or None, in the column of labels, and the names of the classes."""
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        return rows, tuple(feature.names)
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    if kind in ("string", "large_string"):
        encoded = rows.cast_column(column, datasets.Value("string")).class_encode_column(column)
        return encoded, tuple(encoded.features[column].names)
    values = [value for value in rows.unique(column) if value is not None] if kind.startswith(_NUMBERS) else []
    if not values or any(value != int(value) for value in values) or max(values) >= MAX_CLASSES:
        raise ValueError(
            f"{name}: expected one class an image in the column {column}, a text or a whole number below "
            f"{MAX_CLASSES}, got {kind}; convert or remove the column"
        )
    return rows, tuple(str(number) for number in range(int(max(values)) + 1))


def open_hub(location: str, split: str | None, options: SetOptions) -> ImageSet:
    """Open a data set of the hub, or what else `datasets.load_dataset` reads."""
    source = TableImages(load_table(location, split or "train"), location)
    return ImageSet(source, f"hub:{location}, {split or 'train'}", source.class_names)


def open_hub_captions(location: str, split: str | None, options: SetOptions) -> object:
    """Likewise with captions."""
    return hub_images(location, split or "train", options.streaming)


def open_shards(location: str, split: str | None, options: SetOptions) -> object:
    """Open shards with captions; they have no splits."""
    return shard_stream(location)


register(
    DataSet(
        name="hub",
        help="a data set of the hub, or what else datasets.load_dataset reads",
        knows=("label", "caption"),
        location="NAME",
        open_images=open_hub,
        open_captions=open_hub_captions,
    )
)
register(
    DataSet(
        name="webdataset",
        help="tar files with images and captions: a folder, a pattern or a URL",
        knows=("caption",),
        location="SHARDS",
        open_captions=open_shards,
    )
)
