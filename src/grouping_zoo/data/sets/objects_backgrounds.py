"""Backgrounds of the data set `objects`: crops of photos in the wheels of scikit-image and scikit-learn."""

from functools import lru_cache
from importlib.metadata import distribution
from typing import Literal, NamedTuple

import numpy as np
import skimage.data
from numpy.random import Generator
from PIL import Image

LARGEST_SIDE = 512  # photos are kept at most this large
ZOOM = (0.35, 1.0)  # side of a crop, as a fraction of the largest in its box


class Photo(NamedTuple):
    """A photo, or the parts of it that show nothing of what the data set's nouns name.

    Attributes:
        name: function of `skimage.data`, or file among scikit-learn's sample images.
        phrase: its name in captions; names no class of the data set.
        boxes: (left, top, right, bottom) of the parts, as fractions of the photo.
    """

    name: str
    phrase: str
    boxes: tuple[tuple[float, float, float, float], ...] = ((0.0, 0.0, 1.0, 1.0),)


PHOTOS: dict[Literal["train", "validation"], tuple[Photo, ...]] = {
    "train": (
        Photo("astronaut", "an astronaut", ((0.0, 0.0, 0.7, 1.0),)),  # without the model of a rocket
        Photo("brick", "a brick wall"),
        Photo("camera", "a lawn", ((0.7, 0.0, 1.0, 1.0),)),  # without the cameraman
        Photo("cell", "a cell"),
        Photo("china.jpg", "a lake", ((0.77, 0.0, 1.0, 1.0), (0.0, 0.0, 0.15, 0.7))),  # without the pagoda
        Photo("gravel", "gravel"),
        Photo("hubble_deep_field", "galaxies"),
        Photo("immunohistochemistry", "tissue"),
        Photo("moon", "craters"),
        Photo("page", "a printed page"),
        Photo("retina", "blood vessels", ((0.1, 0.1, 0.9, 0.9),)),
        Photo("stereo_motorcycle", "a shelf", ((0.6, 0.0, 1.0, 0.38),)),  # the garage above the motorcycle
    ),
    "validation": (
        Photo("cat", "a blurred room", ((0.84, 0.35, 1.0, 1.0),)),  # without the cat
        Photo("coffee", "a wooden table", ((0.8, 0.0, 1.0, 1.0),)),  # without the cup
        Photo("coins", "coins"),
        Photo("flower.jpg", "a dahlia"),
        Photo("grass", "grass"),
        Photo("rocket", "the evening sky", ((0.0, 0.0, 0.46, 1.0), (0.55, 0.0, 1.0, 1.0))),  # without the rocket
        Photo("text", "handwriting"),
    ),
}


def _read(name: str) -> Image.Image:
    if name.endswith(".jpg"):
        # By its path: to import scikit-learn takes seconds.
        file = distribution("scikit-learn").locate_file(f"sklearn/datasets/images/{name}")
        return Image.open(str(file)).convert("RGB")
    loaded = getattr(skimage.data, name)()
    return Image.fromarray(loaded[0] if isinstance(loaded, tuple) else loaded).convert("RGB")


@lru_cache(maxsize=len(PHOTOS))
def load_backgrounds(split: Literal["train", "validation"]) -> tuple[tuple[str, tuple[Image.Image, ...]], ...]:
    """Return the photos of a split as (phrase, RGB images of its boxes), read once a process."""
    photos = []
    for photo in PHOTOS[split]:
        image = _read(photo.name)
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), reducing_gap=None)
        width, height = image.size
        boxes = [
            (left * width, top * height, right * width, bottom * height) for left, top, right, bottom in photo.boxes
        ]
        photos.append((photo.phrase, tuple(image.crop(box) for box in boxes)))
    return tuple(photos)


def draw_background(
    rng: Generator, split: Literal["train", "validation"], image_size: tuple[int, int]
) -> tuple[str, np.ndarray]:
    """Return a photo's phrase and a random crop of it, maybe mirrored, (3, H, W) float32 in 0 to 255."""
    height, width = image_size
    photos = load_backgrounds(split)
    phrase, boxes = photos[rng.integers(len(photos))]
    box = boxes[rng.integers(len(boxes))]
    scale = min(box.width / width, box.height / height) * rng.uniform(*ZOOM)
    left, top = rng.random() * (box.width - scale * width), rng.random() * (box.height - scale * height)
    corners = (left, top, min(box.width, left + scale * width), min(box.height, top + scale * height))
    crop = box.resize((width, height), Image.Resampling.BILINEAR, box=corners, reducing_gap=1.0)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return phrase, np.asarray(crop).transpose(2, 0, 1).astype(np.float32, order="C")


def recolored(rng: Generator, crop: np.ndarray) -> np.ndarray:
    """Return a crop, (3, H, W), in other colors: there are few photos, and a network soon knows them by heart."""
    crop = crop[rng.permutation(3)]
    if rng.random() < 0.3:
        crop = 255 - crop
    gain, cast = rng.uniform(0.6, 1.2, (3, 1, 1)), rng.uniform(-30, 30, (3, 1, 1))
    return crop * gain.astype(np.float32) + cast.astype(np.float32)
