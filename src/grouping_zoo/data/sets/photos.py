"""The photos that scikit-image carries in its wheel: backgrounds of the scenes, and grey crops to recognise them by."""

from functools import lru_cache
from typing import Literal

import numpy as np
import skimage.data
from PIL import Image
from torch.utils.data import Dataset

from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register

# How captions call the photos: no name of a class, digit or color among them. The pair of stereo photos is one scene.
PHOTOS: dict[str, dict[str, str]] = {
    "train": {
        "astronaut": "an astronaut",
        "brick": "bricks",
        "camera": "a cameraman",
        "cell": "a cell",
        "clock": "a clock",
        "gravel": "gravel",
        "hubble_deep_field": "galaxies",
        "immunohistochemistry": "tissue",
        "page": "a printed page",
        "stereo_motorcycle": "a motorcycle",
    },
    "validation": {
        "cat": "a cat",
        "coffee": "a coffee table",
        "grass": "grass",
        "rocket": "a launch site",
        "text": "a handwritten page",
    },
}

MIN_SIDE = 16
BANDS = 4  # upright ones of each photo; crops for training and validation take turns
SCALES = (0.35, 1.0)  # side of a crop, as a fraction of the largest in its band
CONTRASTS, MEANS = (0.6, 1.2), (90.0, 165.0)


@lru_cache(maxsize=2)
def load_photos(split: str) -> tuple[tuple[str, Image.Image], ...]:
    """Return the photos of a split as (name in captions, RGB image), once a process."""
    photos = []
    for name, phrase in PHOTOS[split].items():
        loaded = getattr(skimage.data, name)()
        for array in loaded[:2] if isinstance(loaded, tuple) else [loaded]:
            image = Image.fromarray(array).convert("RGB")
            image.thumbnail((640, 640))
            photos.append((phrase, image))
    return tuple(photos)


def checked_size(split: str, length: int, image_size: int | tuple[int, int], seed: int) -> tuple[int, int]:
    """Check the settings that every built-in set takes, and return the size.

    Args:
        split: "train" or "validation".
        length: number of images.
        image_size: side, or (height, width), in pixels.
        seed: seed of everything random.

    Returns:
        (height, width).

    Raises:
        ValueError: for an unknown split, or a number out of its range.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if split not in PHOTOS:
        raise ValueError(f"split: expected one of {list(PHOTOS)}, got {split!r}; choose one of them")
    if len(size) != 2 or min(size) < MIN_SIDE:
        raise ValueError(
            f"image_size: expected a side or (height, width) of at least {MIN_SIDE} pixels, got {image_size}; "
            "set 64, for example"
        )
    if length < 1:
        raise ValueError(f"length: expected at least 1 image, got {length}; set 10000, for example")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}; choose another one")
    return size


class PhotoCrops(Dataset[tuple[Image.Image, int]]):
    """Grey crops of the photos, each with the number of its photo: textures and parts of things to tell apart.

    Brightness and contrast are drawn for each crop, so that neither they nor colors tell the photo. Training crops
    come from every other upright band of a photo, validation crops from those between.

    Args:
        split: "train" or "validation".
        length: number of crops an epoch; the training split shows new ones in each epoch.
        image_size: side, or (height, width), in pixels.
        seed: seed of everything random.

    Raises:
        ValueError: for an unknown split, or a number out of its range.
    """

    class_names = tuple(name.replace("_", " ") for split in PHOTOS.values() for name in split)

    def __init__(
        self,
        split: Literal["train", "validation"] = "train",
        length: int = 10_000,
        image_size: int | tuple[int, int] = 64,
        seed: int = 0,
    ) -> None:
        size = checked_size(split, length, image_size, seed)
        self.split = split
        self.length = length
        self.image_size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey | int) -> tuple[Image.Image, int]:
        """Return the crop of a key; a plain index is one of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, list(PHOTOS).index(self.split), epoch, index])
        label = int(rng.integers(len(self.class_names)))
        photo = _first_photos()[label]
        height, width = self.image_size
        band = 2 * rng.integers(BANDS // 2) + list(PHOTOS).index(self.split)
        start, breadth = photo.width * band / BANDS, photo.width / BANDS
        scale = min(breadth / width, photo.height / height) * rng.uniform(*SCALES)
        left = rng.uniform(start, start + breadth - scale * width)
        top = rng.uniform(0, photo.height - scale * height)
        box = (left, top, min(photo.width, left + scale * width), min(photo.height, top + scale * height))
        crop = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        crop = (crop - crop.mean()) * np.float32(rng.uniform(*CONTRASTS)) + np.float32(rng.uniform(*MEANS))
        return Image.fromarray(np.clip(crop, 0, 255).astype(np.uint8)).convert("RGB"), label


@lru_cache(maxsize=1)
def _first_photos() -> tuple[Image.Image, ...]:
    """Photos of both splits, grey, in the order of the classes; of the stereo pair the first one."""
    grey = []
    for split, names in PHOTOS.items():
        phrases = [phrase for phrase, _ in load_photos(split)]
        grey += [load_photos(split)[phrases.index(phrase)][1].convert("L") for phrase in names.values()]
    return tuple(grey)


class PhotoImages(ImageSource):
    """The built-in crops of photos as an image source; the label is the photo."""

    def __init__(self, crops: PhotoCrops) -> None:
        self.crops = crops
        self.class_names = crops.class_names

    def __len__(self) -> int:
        return len(self.crops)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return LabelledImage(*self.crops[SampleKey(epoch, index)])


def _open_images(location: str, split: str | None, options: SetOptions) -> ImageSet:
    crops = PhotoCrops(split, options.length, options.image_size, options.seed)  # type: ignore[arg-type]  # refuses others
    return ImageSet(PhotoImages(crops), f"photos, {split}", crops.class_names)


register(DataSet(name="photos", help="grey crops of photos, to tell apart", knows=("label",), open_images=_open_images))
