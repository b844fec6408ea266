"""The built-in scenes: drawn objects on real photos, with captions, masks and classes, for runs without any download.

The photos are those that scikit-image carries in its wheel, the handwritten digits those of scikit-learn. A scene is
composed when it is read, from (seed, split, epoch, index) alone. Where it lies is drawn in units of the image's size,
so that the same key gives nearly the same scene at any size.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset

from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets.photos import PHOTOS, checked_size, load_photos
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register

CLASSES = ("ball", "box", "star", "ring", "heart", "cross", "moon", "leaf")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Hue, saturation, value.
COLORS = {
    "red": (0.0, 0.85, 0.82),
    "orange": (0.08, 0.9, 0.95),
    "yellow": (0.15, 0.85, 0.95),
    "green": (0.35, 0.75, 0.62),
    "blue": (0.61, 0.8, 0.8),
    "purple": (0.77, 0.65, 0.62),
    "pink": (0.93, 0.42, 0.97),
    "white": (0.1, 0.03, 0.95),
}

# Each color is usual for at least three classes, so that color alone never tells the class.
USUAL_COLORS = {
    "ball": ("red", "orange", "blue", "white"),
    "box": ("red", "yellow", "green", "purple"),
    "star": ("red", "yellow", "blue", "white"),
    "ring": ("orange", "yellow", "purple", "pink"),
    "heart": ("red", "orange", "purple", "pink"),
    "cross": ("green", "blue", "pink", "white"),
    "moon": ("orange", "yellow", "blue", "white"),
    "leaf": ("orange", "green", "purple", "pink"),
}

TEMPLATES = (
    "a photo of {objects}",
    "a photo of {objects} on {photo}",
    "{objects} on {photo}",
    "there is {objects}",
    "there is {objects} in front of {photo}",
    "a picture showing {objects}",
    "{objects}",
    "we see {objects} before {photo}",
)

Objects = Literal["shapes", "digits"]

SIZES = (0.28, 0.55)  # width of an object, as a fraction of the shorter side
PLACING_ATTEMPTS = 40
MIN_VISIBLE = 0.5
FIRST_VALIDATION_DIGIT = 1437  # the last fifth of scikit-learn's digits
DIGIT_MARGIN = 3  # empty pixels around an 8x8 digit: bicubic sampling reaches past its edge


@dataclass
class Scene:
    """One composed scene.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8; 0 is background, ``1 + class`` elsewhere.
        instances: (H, W) uint8; 0 is background, ``i + 1`` where object ``i`` is seen; later objects occlude.
        classes: index of each object's class, all different.
        nouns: name of each object's class, in the order of `classes`.
        caption: names exactly these objects, in random order.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    classes: tuple[int, ...]
    nouns: tuple[str, ...]
    caption: str


@dataclass
class _Placed:
    """An object where it lies: `coverage` (h, w) in [0, 1] of the image's window `rows`, `columns`."""

    rows: slice
    columns: slice
    x: np.ndarray  # (h, w) object coordinates, about -1 to 1
    y: np.ndarray
    radius: float  # pixels a unit of x and y
    coverage: np.ndarray


# Signed distances to the outlines, negative inside, in units of half the object's width.


def _ball(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.95


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane onto one half of one tip; there the outline is a single line from the tip to the inner corner.
    tip, inner, half_angle = 1.1, 0.48, np.pi / 5
    angle = np.abs((np.arctan2(y, x) + half_angle) % (2 * half_angle) - half_angle)
    radius = np.hypot(x, y)
    edge_x, edge_y = inner * np.cos(half_angle) - tip, inner * np.sin(half_angle)
    length = np.hypot(edge_x, edge_y)
    return ((radius * np.cos(angle) - tip) * edge_y - radius * np.sin(angle) * edge_x) / length


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75) - 0.23


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square on its corner and a disc on each of its two upper sides.
    side = 0.58
    u, v = (x + y + 0.2) * np.sqrt(0.5), (x - y - 0.2) * np.sqrt(0.5)
    square = np.maximum(np.abs(u), np.abs(v)) - side
    return np.minimum(square, np.minimum(np.hypot(u, v - side), np.hypot(u + side, v)) - side)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - 0.3, np.maximum(x, y) - 1.0)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.55, y))


def _leaf(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Two equal discs share the leaf; they cross at the pointed ends (-1.1, 0) and (1.1, 0).
    radius, shift = 1.36, 0.8
    return np.hypot(x, np.abs(y) + shift) - radius


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": _ball,
    "box": _box,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "leaf": _leaf,
}


@lru_cache(maxsize=2)
def _digits(split: str) -> tuple[np.ndarray, ...]:
    """Return scikit-learn's handwritten digits of a split, ten (N, h, w) float32 arrays in [0, 1] with a margin."""
    from sklearn.datasets import load_digits  # here: it takes seconds, and most runs draw shapes

    digits = load_digits()
    part = slice(None, FIRST_VALIDATION_DIGIT) if split == "train" else slice(FIRST_VALIDATION_DIGIT, None)
    margin = (DIGIT_MARGIN, DIGIT_MARGIN)
    images = np.pad(digits.images[part].astype(np.float32) / 16, ((0, 0), margin, margin))
    return tuple(images[digits.target[part] == digit] for digit in range(len(DIGITS)))


class Scenes(Dataset[Scene]):
    """A few drawn objects of different classes on a random crop of a real photo.

    Photos, and handwritten digits, of the training and the validation split are disjoint.

    Args:
        split: "train" or "validation".
        length: number of scenes an epoch; the training split shows new ones in each epoch.
        image_size: side, or (height, width), in pixels.
        seed: seed of everything random.
        objects: "shapes", eight drawn classes, or "digits", the ten handwritten digits.
        recolor: fraction of the scenes that show their photo in other colors, for training: there are few photos.
        max_objects: most objects of a scene; with 1 each scene has exactly one, whose class is its label.

    Raises:
        ValueError: for an unknown split or kind of objects, or a number out of its range.
    """

    def __init__(
        self,
        split: Literal["train", "validation"] = "train",
        length: int = 10_000,
        image_size: int | tuple[int, int] = 64,
        seed: int = 0,
        objects: Objects = "shapes",
        recolor: float = 0.0,
        max_objects: int = 3,
    ) -> None:
        size = checked_size(split, length, image_size, seed)
        if objects not in ("shapes", "digits"):
            raise ValueError(f"objects: expected 'shapes' or 'digits', got {objects!r}; choose one of them")
        if not 0 <= recolor <= 1:
            raise ValueError(f"recolor: expected a fraction from 0 to 1, got {recolor}; set 0.5, for example")
        most = len(CLASSES if objects == "shapes" else DIGITS)
        if not 1 <= max_objects <= most:
            raise ValueError(
                f"max_objects: expected 1 to {most}, the number of classes, got {max_objects}; set 3, for example"
            )
        self.split = split
        self.length = length
        self.image_size = size
        self.seed = seed
        self.objects = objects
        self.recolor = recolor
        self.max_objects = max_objects

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; class ``c`` is ``c + 1`` in a scene's mask."""
        return CLASSES if self.objects == "shapes" else DIGITS

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey | int) -> Scene:
        """Compose the scene of a key; a plain index is one of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, list(PHOTOS).index(self.split), epoch, index])
        photo, canvas = _background(rng, load_photos(self.split), self.image_size)
        if self.recolor and rng.random() < self.recolor:
            canvas = _recolored(rng, canvas)
        names = self.class_names
        mask = np.zeros(self.image_size, dtype=np.uint8)
        instances = np.zeros(self.image_size, dtype=np.uint8)
        classes: list[int] = []
        colors: list[str] = []
        objects = self._place(rng, rng.permutation(len(names))[: rng.integers(1, self.max_objects + 1)].tolist())
        for class_index, placed in objects:
            name = names[class_index]
            usual = USUAL_COLORS.get(name, tuple(COLORS))
            color = usual[rng.integers(len(usual))]
            _paint(rng, canvas, placed, color, vein=name == "leaf")
            inside = placed.coverage >= 0.5
            mask[placed.rows, placed.columns][inside] = 1 + class_index
            classes.append(class_index)
            colors.append(color)
            instances[placed.rows, placed.columns][inside] = len(classes)
        nouns = tuple(names[class_index] for class_index in classes)
        return Scene(
            image=np.clip(canvas, 0, 255).astype(np.uint8),
            mask=mask,
            instances=instances,
            classes=tuple(classes),
            nouns=nouns,
            caption=_caption(rng, nouns, colors, photo),
        )

    def _place(self, rng: Generator, classes: list[int]) -> list[tuple[int, _Placed]]:
        """Lay out the objects one after another; one for which no room is found is left out."""
        height, width = self.image_size
        side = min(height, width)
        placed: list[tuple[int, _Placed]] = []
        circles: list[tuple[float, float, float]] = []
        for class_index in classes:
            draw = self._coverage(rng, class_index)
            size = rng.uniform(*SIZES)
            for _ in range(PLACING_ATTEMPTS):
                radius = size * side / 2
                top, left = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
                size = max(SIZES[0], size * 0.96)  # the next attempt is smaller: room gets scarce
                if any(np.hypot(top - y, left - x) < 0.7 * (radius + r) for y, x, r in circles):
                    continue
                candidate = _window(draw, top, left, radius, self.image_size)
                if _all_visible([other for _, other in placed] + [candidate], self.image_size):
                    placed.append((class_index, candidate))
                    circles.append((top, left, radius))
                    break
        return placed

    def _coverage(self, rng: Generator, class_index: int) -> Callable[..., tuple[np.ndarray, ...]]:
        """Choose how the object is turned, or which digit is taken.

        Returns:
            A function (x, y, radius in pixels) -> (x, y of the object, coverage), all (h, w).
        """
        if self.objects == "digits":
            images = _digits(self.split)[class_index]
            digit = images[rng.integers(len(images))]
            return partial(_digit_coverage, digit, rng.uniform(-0.26, 0.26))
        return partial(_shape_coverage, OUTLINES[CLASSES[class_index]], rng.uniform(0, 2 * np.pi))


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _shape_coverage(
    outline: Callable[[np.ndarray, np.ndarray], np.ndarray], angle: float, x: np.ndarray, y: np.ndarray, radius: float
) -> tuple[np.ndarray, ...]:
    x, y = _turned(x, y, angle)
    # A pixel whose center is half a pixel outside the outline is empty, half a pixel inside full: antialiasing.
    return x, y, np.clip(0.5 - outline(x, y) * radius, 0, 1)


def _digit_coverage(
    digit: np.ndarray, angle: float, x: np.ndarray, y: np.ndarray, radius: float
) -> tuple[np.ndarray, ...]:
    x, y = _turned(x, y, angle)
    # x = x[0, 0] + column * across_x + row * down_x, and the same for y: bicubic sampling along an affine map.
    across_x, down_x = 4 * (x[0, 1] - x[0, 0]), 4 * (x[1, 0] - x[0, 0])
    across_y, down_y = 4 * (y[0, 1] - y[0, 0]), 4 * (y[1, 0] - y[0, 0])
    start_x = 4 * x[0, 0] + 4 + DIGIT_MARGIN - (across_x + down_x) / 2
    start_y = 4 * y[0, 0] + 4 + DIGIT_MARGIN - (across_y + down_y) / 2
    ink = Image.fromarray(digit).transform(
        (x.shape[1], x.shape[0]),
        Image.Transform.AFFINE,
        (across_x, down_x, start_x, across_y, down_y, start_y),
        Image.Resampling.BICUBIC,
    )
    # The contour line at 0.45 is the outline; ink rises by about 3 across one unit of length there.
    return x, y, np.clip(0.5 + (np.asarray(ink) - 0.45) * np.float32(radius / 3), 0, 1)


def _window(
    draw: Callable[..., tuple[np.ndarray, ...]], top: float, left: float, radius: float, image_size: tuple[int, int]
) -> _Placed:
    """Draw an object around (top, left) into the part of the image that it can touch."""
    reach = radius * 1.2 + 1
    rows = slice(max(0, int(top - reach)), min(image_size[0], int(top + reach) + 1))
    columns = slice(max(0, int(left - reach)), min(image_size[1], int(left + reach) + 1))
    y = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - top) / radius)[:, None]
    x = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - left) / radius)[None, :]
    x, y, coverage = draw(x.astype(np.float32), y.astype(np.float32), radius)
    return _Placed(rows, columns, x, y, radius, coverage)


def _all_visible(placed: list[_Placed], image_size: tuple[int, int]) -> bool:
    """Tell whether each object keeps enough of its pixels under the later ones."""
    owner = np.zeros(image_size, dtype=np.uint8)
    areas = []
    for number, item in enumerate(placed, start=1):
        inside = item.coverage >= 0.5
        areas.append(np.count_nonzero(inside))
        owner[item.rows, item.columns][inside] = number
    seen = np.bincount(owner.ravel(), minlength=len(placed) + 1)[1:]
    return all(count >= max(1, MIN_VISIBLE * area) for count, area in zip(seen, areas, strict=True))


def _paint(rng: Generator, canvas: np.ndarray, placed: _Placed, color: str, *, vein: bool) -> None:
    """Blend a shaded, slightly rough object into the (H, W, 3) float32 canvas."""
    hue, saturation, value = COLORS[color]
    hue = (hue + rng.uniform(-0.018, 0.018)) % 1
    value = min(1.0, value * rng.uniform(0.82, 1.08))
    paint = np.array(colorsys.hsv_to_rgb(hue, saturation * rng.uniform(0.85, 1.0), value), dtype=np.float32) * 255
    light = rng.uniform(0, 2 * np.pi)
    slope_x, slope_y = np.float32(0.16 * np.cos(light)), np.float32(0.16 * np.sin(light))
    shade = 0.92 + slope_x * placed.x + slope_y * placed.y
    shade += np.float32(0.035) * rng.standard_normal(shade.shape, dtype=np.float32)
    if vein:
        along = np.maximum(np.abs(placed.y) - 0.06, placed.x - 0.8)  # signed distance to the vein
        shade *= 1 - 0.4 * np.clip(0.5 - along * placed.radius, 0, 1)
    under = canvas[placed.rows, placed.columns]
    under += placed.coverage[..., None] * (shade[..., None] * paint - under)


def _background(
    rng: Generator, photos: tuple[tuple[str, Image.Image], ...], image_size: tuple[int, int]
) -> tuple[str, np.ndarray]:
    """Return a photo's name and a random crop of it, (H, W, 3) float32 in 0 to 255."""
    height, width = image_size
    phrase, photo = photos[rng.integers(len(photos))]
    whole = min(photo.width / width, photo.height / height)
    scale = whole * rng.uniform(0.35, 1.0)
    left, top = rng.uniform(0, photo.width - scale * width), rng.uniform(0, photo.height - scale * height)
    box = (left, top, min(photo.width, left + scale * width), min(photo.height, top + scale * height))
    crop = np.asarray(
        photo.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=1.0), dtype=np.float32
    )
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return phrase, crop * np.float32(rng.uniform(0.65, 1.0))


def _recolored(rng: Generator, crop: np.ndarray) -> np.ndarray:
    """Return a crop in other colors: without it a network learns the few training photos by heart."""
    crop = crop[..., rng.permutation(3)]
    if rng.random() < 0.3:
        crop = 255 - crop
    gain, cast = rng.uniform(0.5, 1.3, 3), rng.uniform(-40, 40, 3)
    return np.clip(crop * gain.astype(np.float32) + cast.astype(np.float32), 0, 255)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" and not words.startswith("one") else f"a {words}"


def _caption(rng: Generator, nouns: tuple[str, ...], colors: list[str], photo: str) -> str:
    named = [
        _article(f"{color} {noun}" if rng.random() < 0.5 else noun) for noun, color in zip(nouns, colors, strict=True)
    ]
    named = [named[i] for i in rng.permutation(len(named))]
    if len(named) == 2 and rng.random() < 0.5:
        objects = f"{named[0]} next to {named[1]}"
    else:
        objects = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(objects=objects, photo=photo)


class DrawnScenes(Protocol):
    """A data set of drawn scenes: `Scenes`, or one of other objects."""

    max_objects: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; class ``c`` is ``c + 1`` in a scene's mask."""

    def __len__(self) -> int:
        """Return the number of scenes an epoch."""

    def __getitem__(self, key: SampleKey | int) -> Any:
        """Return an object with the attributes of a `Scene`."""


class SceneImages(ImageSource):
    """Built-in scenes as an image source; they have a label where each shows a single object."""

    def __init__(self, scenes: DrawnScenes) -> None:
        self.scenes = scenes
        self.class_names = scenes.class_names

    def __len__(self) -> int:
        return len(self.scenes)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        scene = self.scenes[SampleKey(epoch, index)]
        label = scene.classes[0] if self.scenes.max_objects == 1 else None
        return LabelledImage(Image.fromarray(scene.image), label, scene.mask, scene.instances)


def _scenes(objects: Objects, split: str | None, options: SetOptions) -> Scenes:
    return Scenes(
        split,  # type: ignore[arg-type]  # others are refused
        options.length,
        options.image_size,
        options.seed,
        objects,
        options.recolor,
        options.max_objects,
    )


def _open_images(objects: Objects, location: str, split: str | None, options: SetOptions) -> ImageSet:
    source = SceneImages(_scenes(objects, split, options))
    name = "scenes" if objects == "shapes" else objects
    return ImageSet(source, f"{name}, {split}", ("background", *source.class_names), background=0)


def _open_captions(objects: Objects, location: str, split: str | None, options: SetOptions) -> Scenes:
    return _scenes(objects, split, options)


def _register(name: str, objects: Objects, text: str) -> None:
    register(
        DataSet(
            name=name,
            help=text,
            knows=("label", "mask", "caption"),
            open_images=partial(_open_images, objects),
            open_captions=partial(_open_captions, objects),
        )
    )


_register("scenes", "shapes", "drawn shapes on photos")
_register("digits", "digits", "handwritten digits on photos")
