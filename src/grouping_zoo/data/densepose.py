"""Body parts as masks, drawn from DensePose's annotations of COCO.

Güler, Neverova and Kokkinos (2018), DensePose: Dense Human Pose Estimation in the Wild, section 2.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grouping_zoo.data.coco import BACKGROUND, AnnotatedImages, read_annotations
from grouping_zoo.data.coco_regions import decode_run_lengths, region_mask
from grouping_zoo.data.label_maps import IGNORE_INDEX


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
        images, persons = read_annotations(annotations, ("bbox", "segmentation"))
        images = [image for image in images if any("dp_masks" in person for person in persons[image["id"]])]
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
        files = [folder / _subfolder(image["file_name"], annotations) / image["file_name"] for image in images]
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
        left, top, box_width, box_height = (int(number) for number in person["bbox"])
        window = mask[top : top + box_height, left : left + box_width]
        for part, region in enumerate(person["dp_masks"], start=1):
            if region and window.size:
                square = Image.fromarray(decode_run_lengths(region).astype(np.uint8))
                inside = square.resize((window.shape[1], window.shape[0]), Image.Resampling.NEAREST)
                window[np.asarray(inside, dtype=bool)] = part


def _subfolder(file_name: str, annotations: Path) -> str:
    """COCO_val2014_000000000139.jpg lies in val2014."""
    words = file_name.split("_")
    if len(words) != 3:
        raise ValueError(
            f"{annotations}: expected images called like COCO_val2014_000000000139.jpg, got {file_name}; give one of "
            "DensePose's files"
        )
    return words[1]
