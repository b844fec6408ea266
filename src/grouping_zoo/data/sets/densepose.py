"""Body parts as masks, drawn from DensePose's annotations of COCO.

Güler, Neverova and Kokkinos (2018), DensePose: Dense Human Pose Estimation in the Wild, section 2.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grouping_zoo.data.files import file_inside
from grouping_zoo.data.limits import MAX_PIXELS
from grouping_zoo.data.sets.coco import BACKGROUND, AnnotatedImages, read_annotations
from grouping_zoo.data.sets.coco_regions import decode_run_lengths, region_mask
from grouping_zoo.data.sets.label_maps import IGNORE_INDEX
from grouping_zoo.data.sets.layouts import LAYOUTS, data_folder, own_split
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register

SPLITS = ("train", "minival")
FILES = "annotations/densepose_coco_2014_{split}.json, train2014/*.jpg and val2014/*.jpg"


class DensePoseParts(AnnotatedImages):
    """Body parts of DensePose's annotations: the images in which at least one person's parts are annotated.

    Persons without annotated parts are ignored.

    Args:
        name: what errors call the source.
        annotations: densepose_coco_2014_SPLIT.json.
        folder: where COCO's train2014 and val2014 lie.

    Raises:
        ValueError: if it is another kind of file, or no parts are annotated.
    """

    def __init__(self, name: str, annotations: Path, folder: Path) -> None:
        content = read_annotations(annotations, ("bbox", "segmentation"))
        persons = content.of_image
        images = [image for image in content.images if any("dp_masks" in person for person in persons[image["id"]])]
        if not images:
            raise ValueError(f"{annotations}: expected persons with dp_masks, got none; give one of DensePose's files")
        keys = ("bbox", "segmentation", "dp_masks")
        records = [
            dict(
                height=image["height"],
                width=image["width"],
                persons=[{key: person[key] for key in keys if key in person} for person in persons[image["id"]]],
            )
            for image in images
        ]
        files = [
            file_inside(image["file_name"], folder / _subfolder(image["file_name"], annotations)) for image in images
        ]
        super().__init__(name, files, records)

    def _draw(self, record: dict[str, Any]) -> np.ndarray:
        height, width = record["height"], record["width"]
        mask = np.full((height, width), BACKGROUND, dtype=np.uint8)
        for person in record["persons"]:
            if "dp_masks" not in person:
                mask[region_mask(person["segmentation"], height, width)] = IGNORE_INDEX
        for person in record["persons"]:
            if "dp_masks" in person:
                self._draw_parts(mask, person)
        return mask

    @staticmethod
    def _draw_parts(mask: np.ndarray, person: dict[str, Any]) -> None:
        """Draw a person's parts, which are annotated on the bounding box scaled to a square."""
        box = person["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_place(number) for number in box):
            raise ValueError(f"bbox: expected left, top, width and height, got {box}; correct the annotation")
        if not isinstance(person["dp_masks"], list):
            raise ValueError(f"dp_masks: expected a list, got {type(person['dp_masks']).__name__}")
        left, top, box_width, box_height = (int(number) for number in box)
        window = mask[top : top + box_height, left : left + box_width]
        for part, region in enumerate(person["dp_masks"], start=1):
            if region and window.size:
                square = Image.fromarray(decode_run_lengths(region).astype(np.uint8))
                inside = square.resize((window.shape[1], window.shape[0]), Image.Resampling.NEAREST)
                window[np.asarray(inside, dtype=bool)] = part


def _is_place(number: Any) -> bool:
    return isinstance(number, int | float) and 0 <= number <= MAX_PIXELS


def _subfolder(file_name: Any, annotations: Path) -> str:
    """COCO_val2014_000000000139.jpg lies in val2014."""
    words = file_name.split("_") if isinstance(file_name, str) else []
    if len(words) != 3 or words[1] not in ("train2014", "val2014"):
        raise ValueError(
            f"{annotations}: expected images called like COCO_val2014_000000000139.jpg, got {file_name}; give one of "
            "DensePose's files"
        )
    return words[1]


def open_parts(location: str, split: str | None, options: SetOptions) -> ImageSet:
    """Open DensePose's body parts; see `OpenImages`."""
    root, split, spec = data_folder("densepose", location), own_split(split, SPLITS), f"densepose:{location}"
    annotations = root / "annotations" / f"densepose_coco_2014_{split}.json"
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{spec}: expected {FILES.replace('{split}', split)} (usual splits: {', '.join(SPLITS)}), but "
            f"{annotations.relative_to(root)} is not there; check the folder"
        )
    return LAYOUTS["parts"].image_set(DensePoseParts(spec, annotations, root), f"{spec}, {split}")


register(
    DataSet(
        name="densepose",
        help="DensePose's body parts of COCO's persons",
        knows=("mask",),
        location="DIR",
        open_images=open_parts,
    )
)
