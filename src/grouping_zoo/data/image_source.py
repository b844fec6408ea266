"""Image sources: single images with what is known of them, a class or masks."""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from grouping_zoo.data.images import CorruptImages, Unreadable, first_readable
from grouping_zoo.data.sampling import SampleKey


class LabelledImage(NamedTuple):
    """One image of a source.

    Attributes:
        image: RGB.
        label: index of its class, where the source knows one.
        mask: (H, W) class index of each pixel, of any integer type; see `ImageSet`.
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
        mirrored_classes: pairs of class indices of masks that a mirrored image exchanges.
    """

    class_names: tuple[str, ...] = ()
    mirrored_classes: tuple[tuple[int, int], ...] = ()

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


class StoredImages(ImageSource):
    """Images in files or tables; one that cannot be read is counted and replaced by the next one that can.

    Args:
        name: name of the source in errors.
        corrupt: counts the images that cannot be read, in each process and worker for itself; by default at most 5 %
            of them.
    """

    def __init__(self, name: str, corrupt: CorruptImages | None = None) -> None:
        self.name = name
        self.corrupt = CorruptImages() if corrupt is None else corrupt

    @abstractmethod
    def read_one(self, index: int) -> LabelledImage:
        """Return an image, or raise a ValueError or FileNotFoundError if it cannot be read."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """Return what messages call an image: its file, or the table and row."""

    def _read(self, epoch: int, index: int) -> LabelledImage:
        def read(number: int) -> LabelledImage | Unreadable:
            return self.corrupt.attempt(self.name_of(number), self.read_one, number)

        return first_readable(read, index, len(self), self.name)
