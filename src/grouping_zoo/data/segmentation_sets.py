"""The usual evaluation sets, opened where they lie on disk, all with the same face: images, masks, class names."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grouping_zoo.data import class_names as names
from grouping_zoo.data.coco import CocoInstances, CocoPanoptic
from grouping_zoo.data.densepose import DensePoseParts
from grouping_zoo.data.image_source import (
    FolderImages,
    ImageSource,
    LabelledImage,
    SceneImages,
    StoredImages,
    open_images,
)
from grouping_zoo.data.images import CorruptImages
from grouping_zoo.data.label_maps import IGNORE_INDEX, LabelMapImages
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.scenes import Scenes


class SegmentationSet(ImageSource):
    """An image source, and what the values of its masks mean.

    Args:
        source: gives the images; `mask` holds numbers of classes.
        name: what tables and errors call the set.
        class_names: of the masks' values 0, 1, ...; of the labels where there are no masks.
        background: the class that stands for everything that is no class, if there is one.
        ignore_index: value of pixels that do not count, None where all do.
        palette: published colours of the classes, (number of classes, 3) uint8, if there are any.
    """

    def __init__(
        self,
        source: ImageSource,
        name: str,
        class_names: tuple[str, ...],
        *,
        background: int | None = None,
        ignore_index: int | None = IGNORE_INDEX,
        palette: np.ndarray | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self.class_names = class_names
        self.background = background
        self.ignore_index = ignore_index
        self.palette = palette

    @property
    def object_names(self) -> tuple[str, ...]:
        """The class names without the background: what texts are made for, and what an image's `label` counts."""
        return tuple(name for number, name in enumerate(self.class_names) if number != self.background)

    @property
    def corrupt(self) -> CorruptImages | None:
        """Count of the images that could not be read, None for a source that is not read from files."""
        return self.source.corrupt if isinstance(self.source, StoredImages) else None

    def __len__(self) -> int:
        return len(self.source)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return self.source[SampleKey(epoch, index)]

    def readable(self, indices: Iterable[int]) -> Iterator[tuple[int, LabelledImage]]:
        """Read images for evaluation: one that cannot be read is counted and left out, not replaced by another one.

        Args:
            indices: which.

        Yields:
            index and image.

        Raises:
            ValueError: when too many cannot be read.
        """
        for index in indices:
            if not isinstance(self.source, StoredImages):
                yield index, self.source[index]
                continue
            try:
                sample = self.source.read_one(index)
            except (ValueError, FileNotFoundError) as error:
                self.source.corrupt.skip(f"{self.name}, image {index}", error)
                continue
            self.source.corrupt.count_read()
            yield index, sample


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the files of a data set with label maps lie in its folder.

    Attributes:
        splits: what it calls its training and its validation split.
        images: pattern of an image's path, with {split} and {id}.
        masks: likewise of its label map.
        ids: file that lists the ids of a split; if None, all images of the folder belong to it.
        class_names: see `SegmentationSet`.
        values: class number of each value of a label map.
        background: see `SegmentationSet`.
        palette: see `SegmentationSet`.
    """

    splits: tuple[str, str]
    images: str
    masks: str
    ids: str | None = None
    class_names: tuple[str, ...]
    values: Mapping[int, int]
    background: int | None = None
    palette: np.ndarray | None = None


def _as_they_are(class_names: tuple[str, ...]) -> dict[int, int]:
    return {**{number: number for number in range(len(class_names))}, IGNORE_INDEX: IGNORE_INDEX}


# The label maps of COCO-Stuff hold category numbers less one, 255 where nothing is known.
_STUFF_IDS = (*names.COCO_THING_IDS, *names.COCO_STUFF_IDS)
_STUFF_VALUES = {**{category - 1: number for number, category in enumerate(_STUFF_IDS)}, IGNORE_INDEX: IGNORE_INDEX}
_OBJECT_VALUES = {
    **{category - 1: 1 + number for number, category in enumerate(names.COCO_THING_IDS)},
    **{category - 1: 0 for category in names.COCO_STUFF_IDS},
    IGNORE_INDEX: IGNORE_INDEX,
}

LAYOUTS = {
    "voc": Layout(
        splits=("train", "val"),
        images="JPEGImages/{id}.jpg",
        masks="SegmentationClass/{id}.png",
        ids="ImageSets/Segmentation/{split}.txt",
        class_names=names.PASCAL_VOC,
        values=_as_they_are(names.PASCAL_VOC),
        background=0,
        palette=names.voc_palette(len(names.PASCAL_VOC)),
    ),
    "context": Layout(
        splits=("train", "val"),
        images="JPEGImages/{id}.jpg",
        masks="SegmentationClassContext/{id}.png",
        ids="ImageSets/SegmentationContext/{split}.txt",
        class_names=names.PASCAL_CONTEXT,
        values=_as_they_are(names.PASCAL_CONTEXT),
        background=0,
    ),
    # Reached by "coco-object" too: the published zero-shot figures are taken on these maps, with stuff as background.
    "coco-object": Layout(
        splits=("train2017", "val2017"),
        images="{split}/{id}.jpg",
        masks="stuffthingmaps/{split}/{id}.png",
        class_names=names.COCO_OBJECT,
        values=_OBJECT_VALUES,
        background=0,
        palette=names.COCO_OBJECT_PALETTE,
    ),
    "coco-stuff": Layout(
        splits=("train2017", "val2017"),
        images="{split}/{id}.jpg",
        masks="stuffthingmaps/{split}/{id}.png",
        class_names=names.COCO_STUFF,
        values=_STUFF_VALUES,
    ),
    "ade20k": Layout(
        splits=("training", "validation"),
        images="images/{split}/{id}.jpg",
        masks="annotations/{split}/{id}.png",
        class_names=names.ADE20K,
        # 0 is what belongs to none of the 150 classes.
        values={0: IGNORE_INDEX, **{number + 1: number for number in range(len(names.ADE20K))}},
        palette=names.ADE20K_PALETTE,
    ),
    "lip": Layout(
        splits=("train", "val"),
        images="{split}_images/{id}.jpg",
        masks="{split}_segmentations/{id}.png",
        class_names=names.LOOK_INTO_PERSON,
        values=_as_they_are(names.LOOK_INTO_PERSON),
        background=0,
    ),
    "parts": Layout(
        splits=("train", "val"),
        images="images/{split}/{id}.jpg",
        masks="parts/{split}/{id}.png",
        class_names=names.DENSEPOSE_PARTS,
        values=_as_they_are(names.DENSEPOSE_PARTS),
        background=0,
    ),
}
COCO_OBJECT_FILES = (
    "{split}/ID.jpg with stuffthingmaps/{split}/ID.png, annotations/panoptic_{split}.json or "
    "annotations/instances_{split}.json"
)
DENSEPOSE_SPLITS = ("train", "minival")
DENSEPOSE_FILES = "annotations/densepose_coco_2014_{split}.json, train2014/*.jpg and val2014/*.jpg"
BUILT_IN = ("scenes", "digits", "photos")
SPECS = (*BUILT_IN, *(f"{kind}:DIR" for kind in (*LAYOUTS, "densepose", "folder")), "hub:NAME")


def open_segmentation_set(
    spec: str,
    split: str | None = None,
    *,
    length: int = 500,
    image_size: int | tuple[int, int] = 224,
    seed: int = 0,
    max_objects: int = 3,
) -> SegmentationSet:
    """Open a data set for evaluation.

    Args:
        spec: "scenes", "digits" or "photos", the built-in ones; "voc:DIR" (Pascal VOC 2012), "context:DIR" (Pascal
            Context, 59 classes and background), "coco-object:DIR", "coco-stuff:DIR", "ade20k:DIR", "lip:DIR" (Look Into
            Person), "parts:DIR" (label maps of body parts), "densepose:DIR", each with its published layout;
            "folder:DIR", one subfolder a class in DIR/train and DIR/val; "hub:NAME", what `datasets.load_dataset`
            reads. The last two and the photos have labels and no masks.
        split: "train", "validation", or the data set's own name of another one; None for "validation".
        length: how many built-in images; this and the others are for them alone, see `Scenes` and `PhotoCrops`.
        image_size: of a built-in image.
        seed: of the built-in images.
        max_objects: of a scene; with 1, the scene has a label.

    Returns:
        the set, indexed by `SampleKey` or a plain index.

    Raises:
        ValueError: for another spec, a file that is not what it should be, or no images.
        FileNotFoundError: if the folder has another layout, or no such split.
    """
    kind, _, path = spec.partition(":")
    kinds_with_path = [known.partition(":")[0] for known in SPECS if ":" in known]
    if kind not in (kinds_with_path if path else BUILT_IN):
        raise ValueError(f"data: expected one of {', '.join(SPECS)}, got {spec!r}; choose one of them")
    split = split or "validation"
    if kind == "photos":
        crops = open_images("photos", split=split, length=length, image_size=image_size, seed=seed)
        return SegmentationSet(crops, f"{spec}, {split}", crops.class_names, ignore_index=None)
    if kind in BUILT_IN:
        return _open_scenes(kind, split, length, image_size, seed, max_objects)
    if kind == "hub":
        source = open_images("hub", path, split)
        return SegmentationSet(source, f"{spec}, {split}", source.class_names, ignore_index=None)
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"data: expected a folder, but {path} is none; check the path of {spec}")
    if kind == "folder":
        return _open_folder(root, spec, split)
    if kind == "densepose":
        return _open_densepose(root, spec, split)
    layout = LAYOUTS[kind]
    split = dict(zip(("train", "validation"), layout.splits, strict=True)).get(split, split)
    if kind == "coco-object":
        return _open_coco_objects(root, spec, split)
    return _open_layout(layout, root, spec, split)


def _open_scenes(
    kind: str, split: str, length: int, image_size: int | tuple[int, int], seed: int, max_objects: int
) -> SegmentationSet:
    # `Scenes` refuses other splits.
    drawn = Scenes(split, length, image_size, seed, "shapes" if kind == "scenes" else "digits", 0.0, max_objects)  # type: ignore[arg-type]
    class_names = ("background", *drawn.class_names)
    return SegmentationSet(SceneImages(drawn), f"{kind}, {split}", class_names, background=0, ignore_index=None)


def _open_folder(root: Path, spec: str, split: str) -> SegmentationSet:
    # ImageNet calls it "val".
    folder = root / ("val" if split == "validation" and not (root / split).is_dir() else split)
    source = FolderImages(folder)
    return SegmentationSet(source, f"{spec}, {folder.name}", source.class_names, ignore_index=None)


def _open_layout(layout: Layout, root: Path, spec: str, split: str) -> SegmentationSet:
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
        images = file(layout.images, "").parent
        ids = sorted(path.stem for path in images.glob("*.jpg") if path.name[0] != ".")
    else:
        listing = file(layout.ids, "")
        check(listing, listing.is_file())
        ids = listing.read_text(encoding="utf-8").split()
    if not ids:
        raise ValueError(f"{spec}: expected images in split {split}, got none; expected files: {expected}")
    source = LabelMapImages(
        spec,
        [file(layout.images, number) for number in ids],
        [file(layout.masks, number) for number in ids],
        layout.values,
    )
    return SegmentationSet(
        source, f"{spec}, {split}", layout.class_names, background=layout.background, palette=layout.palette
    )


def _open_coco_objects(root: Path, spec: str, split: str) -> SegmentationSet:
    """From the label maps, which are those of published figures, else panoptic, else instance annotations."""
    layout = LAYOUTS["coco-object"]
    if (root / "stuffthingmaps").is_dir():
        return _open_layout(layout, root, spec, split)
    source: ImageSource
    panoptic, instances = (root / "annotations" / f"{kind}_{split}.json" for kind in ("panoptic", "instances"))
    if not (root / split).is_dir() or not (panoptic.is_file() or instances.is_file()):
        raise FileNotFoundError(
            f"{spec}: expected {COCO_OBJECT_FILES.replace('{split}', split)} (usual splits: "
            f"{', '.join(layout.splits)}), but they are not there; check the folder and the split"
        )
    if panoptic.is_file():
        kind, source = "panoptic", CocoPanoptic(spec, panoptic, root / split)
    else:
        kind, source = "instances", CocoInstances(spec, instances, root / split)
    name = f"{spec}, {split}, {kind} annotations"
    return SegmentationSet(source, name, layout.class_names, background=0, palette=layout.palette)


def _open_densepose(root: Path, spec: str, split: str) -> SegmentationSet:
    split = "minival" if split == "validation" else split
    annotations = root / "annotations" / f"densepose_coco_2014_{split}.json"
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{spec}: expected {DENSEPOSE_FILES.replace('{split}', split)} (usual splits: "
            f"{', '.join(DENSEPOSE_SPLITS)}), but {annotations.relative_to(root)} is not there; check the folder"
        )
    source = DensePoseParts(spec, annotations, root)
    return SegmentationSet(source, f"{spec}, {split}", names.DENSEPOSE_PARTS, background=0)
