"""Data sets with label maps: where their files lie, and what the values of the maps mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from grouping_zoo.data.files import file_inside, read_text
from grouping_zoo.data.image_source import ImageSource
from grouping_zoo.data.images import images_in_folder
from grouping_zoo.data.limits import MAX_TABLE_BYTES
from grouping_zoo.data.sets import class_names as names
from grouping_zoo.data.sets.label_maps import IGNORE_INDEX, LabelMapImages
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of a data set with label maps: paths of its files, and the class of each value of the maps.

    Attributes:
        help: the set in a few words.
        splits: its own names of the training and the validation split.
        images: pattern of an image's path, with {split} and {id}.
        masks: likewise of its label map.
        ids: file that lists the ids of a split; if None, all images of the folder belong to it.
        class_names: see `ImageSet`.
        values: class index of each value of a label map.
        background: see `ImageSet`.
        palette: likewise.
        mirrored_classes: likewise.
    """

    help: str
    splits: tuple[str, str]
    images: str
    masks: str
    ids: str | None = None
    class_names: tuple[str, ...]
    values: Mapping[int, int]
    background: int | None = None
    palette: np.ndarray | None = None
    mirrored_classes: tuple[tuple[int, int], ...] = ()

    def image_set(self, source: ImageSource, name: str) -> ImageSet:
        """Return a source whose masks have this layout's classes as a set."""
        return ImageSet(
            source,
            name,
            self.class_names,
            background=self.background,
            ignore_index=IGNORE_INDEX,
            palette=self.palette,
            mirrored_classes=self.mirrored_classes,
        )


def identity(class_names: tuple[str, ...]) -> dict[int, int]:
    """Return the values of label maps that hold the class indices themselves."""
    return {**{number: number for number in range(len(class_names))}, IGNORE_INDEX: IGNORE_INDEX}


LAYOUTS = {
    "voc": Layout(
        help="Pascal VOC 2012",
        splits=("train", "val"),
        images="JPEGImages/{id}.jpg",
        masks="SegmentationClass/{id}.png",
        ids="ImageSets/Segmentation/{split}.txt",
        class_names=names.PASCAL_VOC,
        values=identity(names.PASCAL_VOC),
        background=0,
        palette=names.voc_palette(len(names.PASCAL_VOC)),
    ),
    "context": Layout(
        help="Pascal Context, 59 classes and background",
        splits=("train", "val"),
        images="JPEGImages/{id}.jpg",
        masks="SegmentationClassContext/{id}.png",
        ids="ImageSets/SegmentationContext/{split}.txt",
        class_names=names.PASCAL_CONTEXT,
        values=identity(names.PASCAL_CONTEXT),
        background=0,
    ),
    "ade20k": Layout(
        help="ADE20K, 150 classes",
        splits=("training", "validation"),
        images="images/{split}/{id}.jpg",
        masks="annotations/{split}/{id}.png",
        class_names=names.ADE20K,
        # 0 is what belongs to none of the 150 classes.
        values={0: IGNORE_INDEX, **{number + 1: number for number in range(len(names.ADE20K))}},
        palette=names.ADE20K_PALETTE,
    ),
    "lip": Layout(
        help="Look Into Person, 19 parts and clothes",
        splits=("train", "val"),
        images="{split}_images/{id}.jpg",
        masks="{split}_segmentations/{id}.png",
        class_names=names.LOOK_INTO_PERSON,
        values=identity(names.LOOK_INTO_PERSON),
        background=0,
        mirrored_classes=names.left_right_pairs(names.LOOK_INTO_PERSON),
    ),
    "parts": Layout(
        help="label maps of DensePose's body parts",
        splits=("train", "val"),
        images="images/{split}/{id}.jpg",
        masks="parts/{split}/{id}.png",
        class_names=names.DENSEPOSE_PARTS,
        values=identity(names.DENSEPOSE_PARTS),
        background=0,
        mirrored_classes=names.left_right_pairs(names.DENSEPOSE_PARTS),
    ),
}


def own_split(split: str | None, splits: tuple[str, str]) -> str:
    """Return a data set's own name of a split: of "train" and "validation" those in `splits`, any other as it is.

    Raises:
        ValueError: for None, as only a plain folder is opened without a split.
    """
    if not split:
        raise ValueError(f"split: expected a name such as {splits[0]}, got {split}; name one")
    return {"train": splits[0], "validation": splits[1]}.get(split, split)


def data_folder(name: str, location: str) -> Path:
    """Return the folder of a data set.

    Raises:
        FileNotFoundError: if there is none.
    """
    root = Path(location)
    if not root.is_dir():
        raise FileNotFoundError(f"data: expected a folder, but {root} is none; check the path of {name}:{location}")
    return root


def open_layout(name: str, layout: Layout, location: str, split: str | None, options: SetOptions) -> ImageSet:
    """Open a data set with label maps; see `OpenImages`.

    Args:
        name: of the set.
        layout: of its files.
        location: its folder.
        split: of the images.
        options: not used, the images are stored.
    """
    root, split, spec = data_folder(name, location), own_split(split, layout.splits), f"{name}:{location}"
    patterns = [pattern for pattern in (layout.images, layout.masks, layout.ids) if pattern]
    expected = ", ".join(pattern.replace("{id}", "ID").replace("{split}", split) for pattern in patterns)

    def check(path: Path, is_there: bool) -> None:
        if not is_there:
            raise FileNotFoundError(
                f"{spec}: expected {expected} (usual splits: {', '.join(layout.splits)}), but "
                f"{path.relative_to(root)} is not there; check the folder and the split"
            )

    def file(pattern: str, number: str) -> Path:
        return root / pattern.format(split=split, id=number)

    for pattern in (layout.images, layout.masks):
        folder = file(pattern, "").parent
        check(folder, folder.is_dir())
    if layout.ids is None:
        folder = file(layout.images, "").parent
        images = [path for path in images_in_folder(folder) if path.parent == folder]
    else:
        listing = file(layout.ids, "")
        check(listing, listing.is_file())
        ids = read_text(listing, MAX_TABLE_BYTES).split()
        images = [file_inside(layout.images.format(split=split, id=number), root) for number in ids]
    if not images:
        raise ValueError(f"{spec}: expected images in split {split}, got none; expected files: {expected}")
    masks = [file(layout.masks, image.stem) for image in images]
    source = LabelMapImages(spec, images, masks, layout.values)
    return layout.image_set(source, f"{spec}, {split}")


for _name, _layout in LAYOUTS.items():
    register(
        DataSet(
            name=_name,
            help=_layout.help,
            knows=("mask",),
            location="DIR",
            open_images=partial(open_layout, _name, _layout),
        )
    )
