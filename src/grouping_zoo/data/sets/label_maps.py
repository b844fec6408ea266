"""Stored images with a mask each: one class index a pixel, as image files carry it or as it is drawn when read."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from grouping_zoo.data.image_source import LabelledImage, StoredImages
from grouping_zoo.data.images import LOSSLESS, UPRIGHT, open_header, open_with_orientation
from grouping_zoo.data.limits import MAX_PIXELS

IGNORE_INDEX = 255
UNKNOWN = -1
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

logger = logging.getLogger(__name__)


class MaskedImages(StoredImages):
    """Images whose mask is made when they are read; one whose mask does not fit counts as one that cannot be read.

    Args:
        name: what errors call the source.
        images: files.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, name: str, images: Sequence[Path]) -> None:
        super().__init__(name)
        if not images:
            raise ValueError(f"{name}: expected at least one annotated image, got none; check the split")
        self._told_of_orientation = False
        # One array: a million Python objects would be copied into each loader process one by one.
        self.images = np.array([str(path) for path in images])

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> str:
        """See `StoredImages`."""
        return str(self.images[index])

    @abstractmethod
    def _mask(self, index: int) -> np.ndarray:
        """Return the mask of an image, (H, W) uint8, or raise a ValueError or FileNotFoundError."""

    def read_one(self, index: int) -> LabelledImage:
        """See `StoredImages`."""
        name = str(self.images[index])
        image, orientation = open_with_orientation(name)
        mask = self._upright(self._mask(index), image.size, orientation, name)
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"mask of {name}: expected the image's {image.width}x{image.height} pixels, got "
                f"{mask.shape[1]}x{mask.shape[0]}; replace either file"
            )
        return LabelledImage(image, mask=mask)

    def _upright(self, mask: np.ndarray, size: tuple[int, int], orientation: int, name: str) -> np.ndarray:
        """Turn the mask of an image whose EXIF orientation turned it.

        Nobody can know whether a mask was drawn on the pixels as they are stored or as they are seen. Its size tells
        where width and height are exchanged and differ; else it is taken as drawn on the stored pixels, with a warning.
        """
        if orientation not in UPRIGHT:
            return mask
        sideways = orientation in SIDEWAYS
        if sideways and mask.shape == (size[1], size[0]) and size[0] != size[1]:  # fits the image as it is seen
            return mask
        if not sideways or size[0] == size[1]:
            if not self._told_of_orientation:
                logger.warning(
                    "%s: its EXIF orientation is %d; its mask is taken as drawn on the pixels as they are stored, and "
                    "so are the masks of other such images. If they are not, remove the tag from the images",
                    name,
                    orientation,
                )
            self._told_of_orientation = True
        return np.asarray(Image.fromarray(mask).transpose(UPRIGHT[orientation]))


class LabelMapImages(MaskedImages):
    """Images and label maps, in two files each.

    Args:
        name: what errors call the source.
        images: files.
        masks: their label maps, in the same order.
        classes: class index, or `IGNORE_INDEX`, of every value that a label map may have.
    """

    def __init__(self, name: str, images: Sequence[Path], masks: Sequence[Path], classes: Mapping[int, int]) -> None:
        super().__init__(name, images)
        self.masks = np.array([str(path) for path in masks])
        self.classes = np.full(256, UNKNOWN)
        self.classes[list(classes)] = list(classes.values())

    def _mask(self, index: int) -> np.ndarray:
        path = str(self.masks[index])
        values = read_pixels(path, ("L", "P"))
        mask = self.classes[values]
        if (mask == UNKNOWN).any():
            known = np.flatnonzero(self.classes != UNKNOWN)
            raise ValueError(
                f"label map {path}: expected values in {_ranges(known)}, got {values[mask == UNKNOWN][0]}; "
                "is it one of another data set?"
            )
        return mask.astype(np.uint8)


def read_pixels(path: str, modes: Sequence[str]) -> np.ndarray:
    """Read an image file's values as they are stored.

    Args:
        path: the file.
        modes: Pillow's names of the kinds of pixels that are expected.

    Returns:
        (H, W) or (H, W, C) uint8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is of another kind.
    """
    try:
        with open_header(path, LOSSLESS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"its {image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}")
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"label map {path}: expected a file, got none; check the folder") from None
    # Decoders raise nearly anything on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"label map {path}: expected a readable image of {' or '.join(LOSSLESS)}, got: {reason}; replace the file"
        ) from error
    if mode not in modes:
        raise ValueError(
            f"label map {path}: expected pixels of kind {' or '.join(modes)}, got {mode}; convert the file"
        )
    return values


def _ranges(numbers: np.ndarray) -> str:
    """0 1 2 3 255 -> "0-3, 255"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
