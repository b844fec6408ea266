"""Images in a folder, one subfolder a class, as ImageNet is laid out."""

from os import PathLike
from pathlib import Path

import numpy as np

from grouping_zoo.data.captioned import captioned_folder
from grouping_zoo.data.image_source import LabelledImage, StoredImages
from grouping_zoo.data.images import CorruptImages, list_images, open_image
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register


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
            # Empty subfolders count: the splits of a data set must agree on the numbers of the classes.
            self.class_names = tuple(
                sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
            )
            numbers = {name: number for number, name in enumerate(self.class_names)}
            self.labels = np.array([numbers[file.parts[0]] for file in files])

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> str:
        """See `StoredImages`."""
        return str(self.folder / str(self.files[index]))

    def read_one(self, index: int) -> LabelledImage:
        """See `StoredImages`."""
        label = None if self.labels is None else int(self.labels[index])
        return LabelledImage(open_image(self.folder / str(self.files[index])), label)


def open_folder(location: str, split: str | None, options: SetOptions) -> ImageSet:
    """Open the images in a folder, or in the subfolder of a split; "validation" may be called "val"."""
    folder = Path(location) / (split or "")
    if split == "validation" and not folder.is_dir() and (Path(location) / "val").is_dir():  # as ImageNet calls it
        folder = Path(location) / "val"
    source = FolderImages(folder)
    return ImageSet(source, f"folder:{location}, {split or 'all'}", source.class_names)


def open_folder_captions(location: str, split: str | None, options: SetOptions) -> object:
    """Open a folder with a table of captions; it has no splits."""
    return captioned_folder(location)


register(
    DataSet(
        name="folder",
        help="images in DIR/SPLIT, one subfolder a class or none; or images with a table of captions",
        knows=("label", "caption"),
        location="DIR",
        open_images=open_folder,
        open_captions=open_folder_captions,
    )
)
