"""COCO's objects as masks, drawn from its panoptic or instance annotations."""

import json
from abc import abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from grouping_zoo.data.class_names import COCO_THING_IDS
from grouping_zoo.data.coco_regions import region_mask
from grouping_zoo.data.label_maps import IGNORE_INDEX, MaskedImages, read_pixels

CLASSES = {category: 1 + number for number, category in enumerate(COCO_THING_IDS)}
BACKGROUND = 0
LAST_THING_ID = 91  # categories above it are stuff
IMAGE_FIELDS = ("id", "file_name", "height", "width")


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
        images, objects = read_annotations(annotations, ("category_id", "segmentation"))
        records = [
            dict(
                height=image["height"],
                width=image["width"],
                objects=[
                    (thing_class(entry["category_id"], annotations), entry["segmentation"])
                    for entry in objects[image["id"]]
                ],
            )
            for image in images
        ]
        super().__init__(name, [folder / image["file_name"] for image in images], records)

    def _draw(self, record: dict[str, Any]) -> np.ndarray:
        height, width = record["height"], record["width"]
        regions = [(number, region_mask(region, height, width)) for number, region in record["objects"]]
        mask = np.full((height, width), BACKGROUND, dtype=np.uint8)
        for number, region in sorted(regions, key=lambda entry: -int(entry[1].sum())):
            mask[region] = number
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
        images, segments = read_annotations(annotations, ("file_name", "segments_info"))
        images = [image for image in images if segments[image["id"]]]
        records = []
        for image in images:
            entry = segments[image["id"]][0]
            classes = [
                (segment["id"], _thing_or_background(segment["category_id"], annotations))
                for segment in entry["segments_info"]
            ]
            records.append(dict(path=str(annotations.with_suffix("") / entry["file_name"]), classes=classes))
        super().__init__(name, [folder / image["file_name"] for image in images], records)

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


def read_annotations(path: Path, fields: tuple[str, ...]) -> tuple[list[dict], defaultdict[int, list[dict]]]:
    """Read a file in COCO's format.

    Args:
        path: the file.
        fields: that annotations must have beside image_id.

    Returns:
        the images, in the order of their numbers, and the annotations of each number.

    Raises:
        ValueError: if it is another kind of file.
    """
    try:
        content = json.loads(path.read_bytes())
        images = sorted(content["images"], key=lambda image: image["id"])
        of_image = defaultdict(list)
        for entry in content["annotations"]:
            of_image[entry["image_id"]].append(entry)
        for required, entries in ((IMAGE_FIELDS, images), (fields, content["annotations"])):
            missing = next((field for entry in entries for field in required if field not in entry), None)
            if missing:
                raise KeyError(missing)
    except (KeyError, TypeError, ValueError) as error:  # a JSONDecodeError is a ValueError
        raise ValueError(
            f"{path}: expected COCO's images and annotations with {', '.join(fields)}, got a file that fails with "
            f"{type(error).__name__}: {error}; download it again"
        ) from error
    return images, of_image


def thing_class(category: int, path: Path) -> int:
    """Number of a thing among COCO's 80, from 1."""
    if category not in CLASSES:
        raise ValueError(f"{path}: expected categories of COCO's 80 things, got {category}; give COCO's own file")
    return CLASSES[category]


def _thing_or_background(category: int, path: Path) -> int:
    return BACKGROUND if category > LAST_THING_ID else thing_class(category, path)
