"""Image sources: single images with what is known of them, a class or masks, for training without captions."""

import io
from abc import abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from grouping_zoo.data.images import CorruptImages, list_images, open_image
from grouping_zoo.data.photos import PhotoCrops
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.scenes import Scenes

Source = Literal["scenes", "photos", "folder", "hub"]
BUILT_IN = ("scenes", "photos")

# Column names in use, the first that is there is taken.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


class LabelledImage(NamedTuple):
    """What a source gives.

    Attributes:
        image: RGB.
        label: its class, where the source knows one.
        mask: (H, W) uint8, 0 for background and ``1 + class`` elsewhere.
        instances: (H, W) uint8, 0 for background and the object's number from 1 elsewhere.
    """

    image: Image.Image
    label: int | None = None
    mask: np.ndarray | None = None
    instances: np.ndarray | None = None


class ImageSource(Dataset[LabelledImage]):
    """A map-style source: what it gives depends on the key alone.

    Attributes:
        class_names: names of the classes; empty where there are none.
    """

    class_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images an epoch."""

    @abstractmethod
    def _read(self, epoch: int, index: int) -> LabelledImage:
        """Return an image within the bounds."""

    def __getitem__(self, key: SampleKey | int) -> LabelledImage:
        """Return the image of a key; a plain index is one of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        return self._read(epoch, index)


class SceneImages(ImageSource):
    """The built-in scenes; they have a label where each shows a single object."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        self.class_names = scenes.class_names

    def __len__(self) -> int:
        return len(self.scenes)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        scene = self.scenes[SampleKey(epoch, index)]
        label = scene.classes[0] if self.scenes.max_objects == 1 else None
        return LabelledImage(Image.fromarray(scene.image), label, scene.mask, scene.instances)


class PhotoImages(ImageSource):
    """The built-in crops of photos; the label is the photo."""

    def __init__(self, crops: PhotoCrops) -> None:
        self.crops = crops
        self.class_names = crops.class_names

    def __len__(self) -> int:
        return len(self.crops)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return LabelledImage(*self.crops[SampleKey(epoch, index)])


class StoredImages(ImageSource):
    """Images in files or tables; one that cannot be read is counted and replaced by the next one that can.

    Args:
        name: what errors call the source.
        corrupt: counts the images that cannot be read, in each process and worker for itself; by default at most 5 %
            of them.
    """

    def __init__(self, name: str, corrupt: CorruptImages | None = None) -> None:
        self.name = name
        self.corrupt = CorruptImages() if corrupt is None else corrupt

    @abstractmethod
    def read_one(self, index: int) -> LabelledImage:
        """Return an image, or raise a ValueError or FileNotFoundError if it cannot be read."""

    def _read(self, epoch: int, index: int) -> LabelledImage:
        for offset in range(len(self)):
            number = (index + offset) % len(self)
            try:
                sample = self.read_one(number)
            except (ValueError, FileNotFoundError) as error:
                self.corrupt.skip(f"{self.name}, image {number}", error)
            else:
                self.corrupt.count_read()
                return sample
        raise ValueError(f"{self.name}: expected readable images, but none of {len(self)} is; check the files")


class FolderImages(StoredImages):
    """Images in a folder, one subfolder a class (FOLDER/CLASS/1.jpg); without subfolders they have no label.

    Args:
        folder: the folder; an image may lie deeper than its class's subfolder.
        corrupt: see `StoredImages`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no images, or images both beside and in its subfolders.
    """

    def __init__(self, folder: str | PathLike[str], corrupt: CorruptImages | None = None) -> None:
        super().__init__(str(folder), corrupt)
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder: expected a folder of images, but {folder} is none; check the path")
        files = [path.relative_to(self.folder) for path in list_images(self.folder)]
        files = [file for file in files if file.parts[0][0] != "."]
        inside = [len(file.parts) > 1 for file in files]
        if any(inside) and not all(inside):
            raise ValueError(
                f"{folder}: expected all images in subfolders named like their classes, or none, got {sum(inside)} of "
                f"{len(files)} in subfolders, and {files[inside.index(False)]} beside them; move them"
            )
        # One array each: a million Python objects would be copied into each loader process one by one.
        self.files = np.array([str(file) for file in files])
        self.labels: np.ndarray | None = None
        if all(inside):
            # Empty subfolders count: the parts of a data set must agree on the numbers of the classes.
            self.class_names = tuple(
                sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
            )
            numbers = {name: number for number, name in enumerate(self.class_names)}
            self.labels = np.array([numbers[file.parts[0]] for file in files])

    def __len__(self) -> int:
        return len(self.files)

    def read_one(self, index: int) -> LabelledImage:
        """See `StoredImages`."""
        label = None if self.labels is None else int(self.labels[index])
        return LabelledImage(open_image(self.folder / str(self.files[index])), label)


class TableImages(StoredImages):
    """Images in a column of a table of `datasets`, and their classes in another one, where there is one.

    Args:
        rows: the table.
        name: what errors call it.
        corrupt: see `StoredImages`.

    Raises:
        ValueError: if it has no rows, or no column of images.
    """

    def __init__(self, rows: datasets.Dataset, name: str, corrupt: CorruptImages | None = None) -> None:
        super().__init__(name, corrupt)
        if len(rows) == 0:
            raise ValueError(f"{name}: expected at least one row, got none; check the split")
        columns = rows.column_names
        image_column = _first(IMAGE_COLUMNS, columns)
        if image_column is None or not isinstance(rows.features[image_column], datasets.Image):
            raise ValueError(
                f"{name}: expected a column of images called one of {', '.join(IMAGE_COLUMNS)}, got "
                f"{', '.join(columns)}; rename the column"
            )
        self.image_column: str = image_column
        self.label_column = _first(LABEL_COLUMNS, columns)
        if self.label_column is not None:
            if rows.features[self.label_column].dtype == "string":
                rows = rows.class_encode_column(self.label_column)
            self.class_names = tuple(getattr(rows.features[self.label_column], "names", None) or ())
        # Decoded here: one damaged image must not stop the run.
        self.rows = rows.cast_column(image_column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def read_one(self, index: int) -> LabelledImage:
        """See `StoredImages`."""
        row: dict[str, Any] = self.rows[index]
        stored, name = row[self.image_column], f"{self.name}, row {index}"
        if stored is None:
            raise ValueError(f"image {name}: expected an encoded image, got nothing; remove the row")
        file = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
        label = None if self.label_column is None else int(row[self.label_column])
        return LabelledImage(open_image(file, name=name), label)


def open_images(
    source: Source,
    path: str | None = None,
    split: str | None = "train",
    *,
    length: int = 10_000,
    image_size: int | tuple[int, int] = 224,
    seed: int = 0,
    objects: Literal["shapes", "digits"] = "shapes",
    max_objects: int = 3,
    recolor: float = 0.0,
) -> ImageSource:
    """Open a source of images, indexed by `SampleKey` or a plain index.

    Args:
        source: "scenes" or "photos", the built-in ones; "folder", images in a folder, one subfolder a class or none;
            "hub", what `datasets.load_dataset` reads.
        path: the folder or the name of the data set.
        split: "train" or "validation" of the built-in ones; subfolder of the folder, None for the folder itself; split
            of the data set.
        length: built-in images an epoch; this and the others are for them alone, see `Scenes` and `PhotoCrops`.
        image_size: side of a built-in image.
        seed: of the built-in images.
        objects: what scenes show.
        max_objects: with 1, the object's class is the scene's label.
        recolor: share of the scenes with their photo in other colours.

    Raises:
        ValueError: for an unknown source, one without path, a built-in one with a path, or no images.
        FileNotFoundError: if there is no such folder.
    """
    if source not in get_args(Source):
        raise ValueError(f"source: expected one of {', '.join(get_args(Source))}, got {source!r}; choose one of them")
    if (source in BUILT_IN) != (path is None):
        raise ValueError(
            f"path: expected {'None' if source in BUILT_IN else 'a folder or name'} with source={source}, got {path}"
        )
    if source == "photos":
        return PhotoImages(PhotoCrops(split, length, image_size, seed))  # type: ignore[arg-type]  # refuses others
    if path is None:
        # `Scenes` refuses other splits.
        return SceneImages(Scenes(split, length, image_size, seed, objects, recolor, max_objects))  # type: ignore[arg-type]
    if source == "folder":
        return FolderImages(Path(path) / split if split else path)
    return TableImages(datasets.load_dataset(path, split=split or "train"), path)


def _first(known: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in known if name in columns), None)
