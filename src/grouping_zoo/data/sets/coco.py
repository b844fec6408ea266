"""COCO: label maps of its stuff, and its objects as masks drawn from panoptic or instance annotations."""

import json
from abc import abstractmethod
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grouping_zoo.data.files import file_inside, parse_json, read_text
from grouping_zoo.data.image_source import ImageSource
from grouping_zoo.data.limits import MAX_ANNOTATION_BYTES, MAX_PIXELS
from grouping_zoo.data.sets import class_names as names
from grouping_zoo.data.sets.coco_regions import region_mask
from grouping_zoo.data.sets.label_maps import IGNORE_INDEX, MaskedImages, read_pixels
from grouping_zoo.data.sets.layouts import Layout, data_folder, open_layout, own_split
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register

CLASSES = {category: 1 + number for number, category in enumerate(names.COCO_THING_IDS)}
BACKGROUND = 0
LAST_THING_ID = 91  # categories above it are stuff
IMAGE_FIELDS = ("id", "file_name", "height", "width")
SPLITS = ("train2017", "val2017")

# The label maps of COCO-Stuff hold category numbers less one, 255 where nothing is known.
_STUFF_IDS = (*names.COCO_THING_IDS, *names.COCO_STUFF_IDS)
_STUFF_VALUES = {**{category - 1: number for number, category in enumerate(_STUFF_IDS)}, IGNORE_INDEX: IGNORE_INDEX}
_OBJECT_VALUES = {
    **{category - 1: number for category, number in CLASSES.items()},
    **{category - 1: BACKGROUND for category in names.COCO_STUFF_IDS},
    IGNORE_INDEX: IGNORE_INDEX,
}
STUFF = Layout(
    help="COCO-Stuff, 171 classes",
    splits=SPLITS,
    images="{split}/{id}.jpg",
    masks="stuffthingmaps/{split}/{id}.png",
    class_names=names.COCO_STUFF,
    values=_STUFF_VALUES,
)
OBJECTS = Layout(
    help="COCO's 80 things and background",
    splits=SPLITS,
    images="{split}/{id}.jpg",
    masks="stuffthingmaps/{split}/{id}.png",
    class_names=names.COCO_OBJECT,
    values=_OBJECT_VALUES,
    background=BACKGROUND,
    palette=names.COCO_OBJECT_PALETTE,
)
OBJECT_FILES = (
    "{split}/ID.jpg with stuffthingmaps/{split}/ID.png, annotations/panoptic_{split}.json or "
    "annotations/instances_{split}.json"
)


class AnnotatedImages(MaskedImages):
    """Images with a record of annotations each.

    Args:
        name: what errors call the source.
        images: files.
        records: what `_draw` gets, in the same order.
    """

    def __init__(self, name: str, images: list[Path], records: list[dict[str, Any]]) -> None:
        super().__init__(name, images)
        # As text: millions of Python numbers would take more memory, and be copied into each loader process one by one.
        self.records = [json.dumps(record).encode() for record in records]

    def _mask(self, index: int) -> np.ndarray:
        return self._draw(json.loads(self.records[index]))

    @abstractmethod
    def _draw(self, record: dict[str, Any]) -> np.ndarray:
        """Return the mask of a record, (H, W) uint8, or raise a ValueError or FileNotFoundError."""


class CocoInstances(AnnotatedImages):
    """Things of COCO's instance annotations, crowds included; where they overlap, the smaller one is seen.

    Args:
        name: what errors call the source.
        annotations: instances_SPLIT.json.
        folder: of the images.

    Raises:
        ValueError: if it is another kind of file.
    """

    def __init__(self, name: str, annotations: Path, folder: Path) -> None:
        content = read_annotations(annotations, ("category_id", "segmentation"))
        images, objects = content.images, content.of_image
        classes = content.classes(annotations)
        records = [
            dict(
                height=image["height"],
                width=image["width"],
                objects=[
                    (_class_of(entry["category_id"], classes, annotations), entry["segmentation"])
                    for entry in objects[image["id"]]
                ],
            )
            for image in images
        ]
        super().__init__(name, [file_inside(image["file_name"], folder) for image in images], records)

    def _draw(self, record: dict[str, Any]) -> np.ndarray:
        height, width = record["height"], record["width"]
        objects = record["objects"]
        # One after another, and drawn twice: the masks of all objects at once may take gigabytes.
        areas = [int(region_mask(region, height, width).sum()) for _, region in objects]
        mask = np.full((height, width), BACKGROUND, dtype=np.uint8)
        for position in sorted(range(len(objects)), key=lambda position: -areas[position]):
            number, region = objects[position]
            mask[region_mask(region, height, width)] = number
        return mask


class CocoPanoptic(AnnotatedImages):
    """Things of COCO's panoptic annotations; stuff is background, pixels without segment are ignored.

    Args:
        name: what errors call the source.
        annotations: panoptic_SPLIT.json; the segments' images lie beside it in panoptic_SPLIT.
        folder: of the images.

    Raises:
        ValueError: if it is another kind of file.
    """

    def __init__(self, name: str, annotations: Path, folder: Path) -> None:
        content = read_annotations(annotations, ("file_name", "segments_info"))
        segments, of_category = content.of_image, content.classes(annotations)
        images = [image for image in content.images if segments[image["id"]]]
        records = []
        for image in images:
            entry = segments[image["id"]][0]
            infos = _entries(entry, "segments_info", ("id", "category_id"))
            if not all(isinstance(info["id"], int) for info in infos):
                raise ValueError(f"{annotations}: expected numbers for the ids of segments, got others")
            classes = [
                (segment["id"], _class_of(segment["category_id"], of_category, annotations)) for segment in infos
            ]
            path = file_inside(entry["file_name"], annotations.with_suffix(""))
            records.append(dict(path=str(path), classes=classes))
        super().__init__(name, [file_inside(image["file_name"], folder) for image in images], records)

    def _draw(self, record: dict[str, Any]) -> np.ndarray:
        red, green, blue = np.moveaxis(read_pixels(record["path"], ("RGB",)).astype(np.int64), -1, 0)
        segments, of_pixel = np.unique(red + 256 * green + 256**2 * blue, return_inverse=True)
        classes = {0: IGNORE_INDEX, **dict(record["classes"])}
        unknown = [segment for segment in segments.tolist() if segment not in classes]
        if unknown:
            raise ValueError(
                f"{record['path']}: expected segments of its annotation, got {unknown[0]}; replace the file"
            )
        of_segment = np.array([classes[segment] for segment in segments.tolist()], dtype=np.uint8)
        return of_segment[of_pixel.reshape(red.shape)]


class Annotations(NamedTuple):
    """Content of a file in COCO's format.

    Attributes:
        images: in the order of their ids.
        of_image: annotations of each id.
        categories: id -> name; empty where the file has none.
    """

    images: list[dict[str, Any]]
    of_image: defaultdict[int, list[dict[str, Any]]]
    categories: dict[int, str]

    def classes(self, path: Path) -> dict[int, int]:
        """Return the class index of each category id: those of COCO's things, 0 of stuff.

        Raises:
            ValueError: if the file's own categories have other names than COCO's.
        """
        known = {category: names.COCO_OBJECT[number] for category, number in CLASSES.items()}
        if self.categories and not set(self.categories) & set(known):
            raise ValueError(f"{path}: expected COCO's own categories, got none of them; give COCO's own file")
        for category, name in self.categories.items():
            if category <= LAST_THING_ID and known.get(category) != name:
                raise ValueError(
                    f"{path}: expected COCO's own categories, got {category} for {name!r}; as label maps in one of the "
                    "other layouts, data of other classes can be read"
                )
        return CLASSES | {category: BACKGROUND for category in self.categories if category > LAST_THING_ID}


def read_annotations(path: Path, fields: tuple[str, ...]) -> Annotations:
    """Read a file in COCO's format.

    Args:
        path: the file.
        fields: that annotations must have beside image_id.

    Raises:
        ValueError: if it is another kind of file, or an image is larger than `MAX_PIXELS`.
    """
    content = parse_json(read_text(path, MAX_ANNOTATION_BYTES), str(path))
    try:
        images = _entries(content, "images", IMAGE_FIELDS)
        annotations = _entries(content, "annotations", ("image_id", *fields))
        for image in images:
            _check_image(image)
        images.sort(key=lambda image: image["id"])
        of_image = defaultdict(list)
        for entry in annotations:
            of_image[entry["image_id"]].append(entry)
        ids = {image["id"] for image in images}
        foreign = [number for number in of_image if number not in ids]
        if foreign and len(foreign) == len(of_image):
            raise ValueError(f"annotations of image {foreign[0]!r} and others, none of which is among the images")
        categories = _entries(content, "categories", ("id", "name")) if "categories" in content else []
        named = {int(entry["id"]): str(entry["name"]) for entry in categories}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected COCO's images and annotations with {', '.join(fields)}, got: {error}; download it again"
        ) from error
    return Annotations(images, of_image, named)


def _entries(content: Any, key: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The list of objects under a key, each with some fields."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"no list of {key}")
    for entry in entries:
        missing = [field for field in fields if field not in entry] if isinstance(entry, dict) else ["fields"]
        if missing:
            raise ValueError(f"{key} without {missing[0]}")
    return entries


def _check_image(image: dict[str, Any]) -> None:
    height, width = image["height"], image["width"]
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError(f"an image of height {height!r} and width {width!r}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} pixels, more than the limit of {MAX_PIXELS}")


def _class_of(category: Any, classes: dict[int, int], path: Path) -> int:
    """Class index of a category id; of stuff, that of the background."""
    if isinstance(category, int) and category > LAST_THING_ID:
        return BACKGROUND
    if not isinstance(category, int) or category not in classes:
        raise ValueError(f"{path}: expected categories of COCO's 80 things, got {category}; give COCO's own file")
    return classes[category]


def open_objects(location: str, split: str | None, options: SetOptions) -> ImageSet:
    """Open COCO's objects, from label maps, else panoptic, else instance annotations; see `OpenImages`.

    The published zero-shot metrics are taken on the label maps, with stuff as background.
    """
    root, spec = data_folder("coco-object", location), f"coco-object:{location}"
    if (root / "stuffthingmaps").is_dir():
        return open_layout("coco-object", OBJECTS, location, split, options)
    split = own_split(split, SPLITS)
    source: ImageSource
    panoptic, instances = (root / "annotations" / f"{kind}_{split}.json" for kind in ("panoptic", "instances"))
    if not (root / split).is_dir() or not (panoptic.is_file() or instances.is_file()):
        raise FileNotFoundError(
            f"{spec}: expected {OBJECT_FILES.replace('{split}', split)} (usual splits: {', '.join(SPLITS)}), but they "
            "are not there; check the folder and the split"
        )
    if panoptic.is_file():
        kind, source = "panoptic", CocoPanoptic(spec, panoptic, root / split)
    else:
        kind, source = "instances", CocoInstances(spec, instances, root / split)
    return OBJECTS.image_set(source, f"{spec}, {split}, {kind} annotations")


register(DataSet(name="coco-object", help=OBJECTS.help, knows=("mask",), location="DIR", open_images=open_objects))
register(
    DataSet(
        name="coco-stuff",
        help=STUFF.help,
        knows=("mask",),
        location="DIR",
        open_images=partial(open_layout, "coco-stuff", STUFF),
    )
)
