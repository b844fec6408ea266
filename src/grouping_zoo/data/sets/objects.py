"""The data set `objects`: scenes of pictured objects on photos, over 338 nouns, with captions, masks and classes.

The pictures are those of `objects_pictures`, the photos those of `objects_backgrounds`. A scene is composed when it is
read, from (seed, split, epoch, index) alone. Where things lie is drawn in units of the image's size, so that the same
key gives nearly the same scene at any size.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.random import Generator
from torch.utils.data import Dataset

from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets.objects_backgrounds import draw_background, recolored
from grouping_zoo.data.sets.objects_captions import Mention, Place, caption_of, choose_word
from grouping_zoo.data.sets.objects_pictures import NOUNS, PAINTED_NOUNS, Picture, Pose, load_pictures
from grouping_zoo.data.sets.registry import DataSet, ImageSet, SetOptions, register
from grouping_zoo.data.sets.scenes import SceneImages

Split = Literal["train", "validation", "val_style"]

CLASSES = tuple(noun.name for noun in NOUNS)
CATEGORIES = tuple(dict.fromkeys(noun.category for noun in NOUNS))
# Index in `CATEGORIES`, plus one, of each value of a mask; 0 for background.
_CATEGORY_OF_VALUE = np.array([0, *(1 + CATEGORIES.index(noun.category) for noun in NOUNS)], dtype=np.uint8)

# Drawing styles and photos of each split. The two that are held out have the same photos, and the same layout for the
# same key: what differs is the style alone.
STYLES: dict[Split, tuple[str, ...]] = {
    "train": ("noto", "fluent"),
    "validation": ("noto", "fluent"),
    "val_style": ("twemoji",),
}
PHOTOS_OF: dict[Split, Literal["train", "validation"]] = {
    "train": "train",
    "validation": "validation",
    "val_style": "validation",
}

# Red, green, blue. None is called like a class: no orange.
COLORS = {
    "red": (214, 40, 40),
    "yellow": (245, 205, 40),
    "green": (60, 150, 65),
    "blue": (45, 105, 210),
    "purple": (130, 70, 175),
    "pink": (240, 130, 180),
    "brown": (125, 80, 50),
    "gray": (130, 130, 134),
    "black": (42, 42, 46),
    "white": (238, 238, 236),
}

SIZES = (1 / 6, 2 / 3)  # longer side of an object, as a fraction of the image's shorter side
SINGLE_SIZES = (0.5, 0.95)  # likewise where a scene shows a single object to recognize
LARGEST_ANGLE = 0.45  # radians
OUTSIDE = 0.12  # largest fraction of an object's width and height that may lie outside the image
MIN_VISIBLE = 0.6  # fraction of an object's pixels that is seen, at least
MIN_PIXELS = 8
HIDING = 0.04  # fraction of an object's pixels above which what hides them is in front of it
POSITIONS, SHRINKS = 12, (1.0, 0.75, 0.55)  # positions tried at each size before an object is left out
REPEATED = 0.25  # probability that a class is there more than once
PAINTED = 0.6  # probability that an object whose color is anybody's choice is painted anew
MOST_OBJECTS = 16
MIN_SIDE = 16
OPAQUE = 128  # alpha from which on a pixel belongs to an object


@dataclass
class ObjectScene:
    """One composed scene; it has the attributes of the built-in `Scene`.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) int16; 0 is background, ``1 + class`` elsewhere.
        instances: (H, W) uint8; 0 is background, ``i + 1`` where object ``i`` is seen; later objects occlude.
        classes: class index of each object.
        nouns: word by which the caption calls each class, in the singular and each once; a synonym at times.
        caption: names exactly these objects.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    classes: tuple[int, ...]
    nouns: tuple[str, ...]
    caption: str

    @property
    def categories(self) -> np.ndarray:
        """The mask of categories, (H, W) uint8; 0 is background, one more than the index in `CATEGORIES` elsewhere."""
        return _CATEGORY_OF_VALUE[self.mask]


class _Kind(NamedTuple):
    """Class, word and color, if they are painted anew, of like objects in a scene."""

    class_index: int
    word: str
    color: str | None


@dataclass
class _Object:
    """An object and its place in the scene.

    Attributes:
        kind: class, word and color.
        picture: picture that is drawn.
        pose: size and orientation.
        drawn: (h, w, 4) uint8, RGB multiplied by alpha.
        solid: (h, w) bool, the pixels that belong to it.
        top: row of its first pixel in the image, negative if that is outside.
        left: column likewise.
        seen: number of its pixels that lie in the image and are not hidden.
        hides: number of pixels that it hides of each earlier object.
        area: number of its pixels.
    """

    kind: _Kind
    picture: Picture
    pose: Pose
    drawn: np.ndarray
    solid: np.ndarray
    top: int = 0
    left: int = 0
    seen: int = 0
    hides: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.area = int(np.count_nonzero(self.solid))

    def is_visible(self, hidden: int = 0) -> bool:
        """Tell whether enough of it is seen, also when so many more of its pixels are hidden."""
        return self.seen - hidden >= max(MIN_PIXELS, MIN_VISIBLE * self.area)

    def window(self, image_size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return where it lies in the image, and the part of it that does."""
        return _window(self.top, self.left, self.solid.shape, image_size)


def _window(
    top: int, left: int, shape: tuple[int, ...], image_size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the slices of an image that a patch covers, and those of the patch that lie in the image."""
    bottom, right = min(image_size[0], top + shape[0]), min(image_size[1], left + shape[1])
    first_row, first_column = max(0, top), max(0, left)
    inside = slice(first_row, bottom), slice(first_column, right)
    return inside, (slice(first_row - top, bottom - top), slice(first_column - left, right - left))


class Objects(Dataset[ObjectScene]):
    """A few pictured objects, out of 338 classes, on a random crop of a real photo.

    The splits: "train"; "validation", the same two drawing styles on photos that "train" does not show; "val_style", a
    third style that "train" does not show, on the photos of "validation". "val" is short for "validation".

    Objects and photos are mirrored at random already. Captions say what is left and right: do not mirror the images
    again where captions are learned from.

    Args:
        split: "train", "validation" or "val_style".
        length: number of scenes an epoch; the training split shows new ones in each epoch.
        image_size: side, or (height, width), in pixels.
        seed: seed of everything random.
        recolor: fraction of the scenes that show their photo in other colors, for training: there are few photos.
        max_objects: largest number of objects in a scene; with 1 each scene is a crop of exactly one, whose class is
            its label.

    Raises:
        ValueError: for an unknown split, or a number out of its range.
    """

    class_names = CLASSES
    category_names = CATEGORIES

    def __init__(
        self,
        split: Split | Literal["val"] = "train",
        length: int = 10_000,
        image_size: int | tuple[int, int] = 128,
        seed: int = 0,
        recolor: float = 0.0,
        max_objects: int = 5,
    ) -> None:
        split = "validation" if split == "val" else split
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if split not in STYLES:
            raise ValueError(f"split: expected one of {', '.join(get_args(Split))}, got {split!r}; choose one of them")
        if len(size) != 2 or min(size) < MIN_SIDE:
            raise ValueError(
                f"image_size: expected a side or (height, width) of at least {MIN_SIDE} pixels, got {image_size}; "
                "set 128, for example"
            )
        if length < 1:
            raise ValueError(f"length: expected at least 1 image, got {length}; set 10000, for example")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}; choose another one")
        if not 0 <= recolor <= 1:
            raise ValueError(f"recolor: expected a fraction from 0 to 1, got {recolor}; set 0.5, for example")
        if not 1 <= max_objects <= MOST_OBJECTS:
            raise ValueError(f"max_objects: expected 1 to {MOST_OBJECTS}, got {max_objects}; set 5, for example")
        self.split: Split = split
        self.length = length
        self.image_size = size
        self.seed = seed
        self.recolor = recolor
        self.max_objects = max_objects

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey | int) -> ObjectScene:
        """Compose the scene of a key; a plain index is one of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        photos = PHOTOS_OF[self.split]
        rng = np.random.default_rng([self.seed, ("train", "validation").index(photos), epoch, index])
        photo, canvas = draw_background(rng, photos, self.image_size)
        if self.recolor and rng.random() < self.recolor:
            canvas = recolored(rng, canvas)
        objects, instances = self._place(rng, self._choose(rng))
        image = _paint(rng, canvas, objects)
        kinds = list(dict.fromkeys(item.kind for item in objects))
        values = np.array([0, *(1 + item.kind.class_index for item in objects)], dtype=np.int16)
        return ObjectScene(
            image=image,
            mask=values[instances],
            instances=instances,
            classes=tuple(item.kind.class_index for item in objects),
            nouns=tuple(kind.word for kind in kinds),
            caption=caption_of(rng, self._mentions(kinds, objects), photo),
        )

    def _choose(self, rng: Generator) -> list[_Kind]:
        """Choose what the scene shows, one entry an object, in the order in which they are painted."""
        count = int(rng.integers(1, self.max_objects + 1))
        classes = rng.permutation(len(NOUNS))[:count]
        chosen: list[_Kind] = []
        for class_index in classes.tolist():
            left = count - len(chosen)
            if not left:
                break
            noun = NOUNS[class_index]
            color = None
            if noun.name in PAINTED_NOUNS and rng.random() < PAINTED:
                color = tuple(COLORS)[rng.integers(len(COLORS))]
            times = int(rng.integers(2, 4)) if rng.random() < REPEATED else 1
            chosen += min(times, left) * [_Kind(class_index, choose_word(rng, noun), color)]
        return [chosen[number] for number in rng.permutation(len(chosen)).tolist()]

    def _place(self, rng: Generator, kinds: list[_Kind]) -> tuple[list[_Object], np.ndarray]:
        """Lay out the objects one after another; one for which no room is found is left out.

        Returns:
            the objects, and (H, W) uint8 instances: 0 for background, one more than the object's number elsewhere.
        """
        placed: list[_Object] = []
        instances = np.zeros(self.image_size, dtype=np.uint8)
        least, largest = SINGLE_SIZES if self.max_objects == 1 else SIZES
        styles = STYLES[self.split]
        for kind in kinds:
            picture = load_pictures(styles[int(rng.random() * len(styles))])[kind.class_index]
            size, angle = rng.uniform(least, largest), rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE)
            mirrored = bool(rng.random() < 0.5)
            positions = rng.random((len(SHRINKS), POSITIONS, 2)).tolist()
            for shrink, tried in zip(SHRINKS, positions, strict=True):
                pose = Pose(max(least, shrink * size) * min(self.image_size), angle, mirrored)
                drawn = picture.draw(pose)
                item = _Object(kind, picture, pose, drawn, drawn[..., 3] >= OPAQUE)
                if self._find_room(item, instances, placed, tried):
                    inside, part = item.window(self.image_size)
                    instances[inside][item.solid[part]] = len(placed) + 1
                    for earlier, count in zip(placed, item.hides, strict=True):
                        earlier.seen -= count
                    placed.append(item)
                    break
        return placed, instances

    def _find_room(
        self, item: _Object, instances: np.ndarray, placed: list[_Object], positions: list[list[float]]
    ) -> bool:
        """Move an object to the first position where it and all earlier ones are visible; tell if there is one."""
        half_extent = item.picture.half_extent(item.pose)
        for position in positions:
            corner = []
            for at, half, side, patch in zip(position, half_extent, self.image_size, item.solid.shape, strict=True):
                nearest = min((1 - 2 * OUTSIDE) * half, side / 2)  # of the center to the image's edge
                corner.append(round(nearest + at * (side - 2 * nearest) - patch / 2))
            item.top, item.left = corner
            inside, part = item.window(self.image_size)
            under = np.bincount(instances[inside][item.solid[part]], minlength=len(placed) + 1).tolist()
            item.seen, item.hides = sum(under), under[1:]
            if item.is_visible() and all(map(_Object.is_visible, placed, item.hides)):
                return True
        return False

    def _mentions(self, kinds: list[_Kind], objects: list[_Object]) -> list[Mention]:
        """Return what a caption may say of each kind of object."""
        height, width = self.image_size
        mentions = []
        for kind in kinds:
            places = []
            for number, item in enumerate(objects):
                if item.kind == kind:
                    half_height, half_width = item.picture.half_extent(item.pose)
                    y, x = item.top + item.solid.shape[0] / 2, item.left + item.solid.shape[1] / 2
                    box = (x - half_width) / width, (y - half_height) / height
                    far = (x + half_width) / width, (y + half_height) / height
                    hidden = {
                        earlier for earlier, count in enumerate(item.hides) if count > HIDING * objects[earlier].area
                    }
                    places.append(Place(number, (*box, *far), frozenset(hidden)))
            mentions.append(Mention(kind.word, kind.color, tuple(places)))
        return mentions


def _paint(rng: Generator, canvas: np.ndarray, objects: list[_Object]) -> np.ndarray:
    """Paint the objects with their shadows into the canvas, and return the image, (H, W, 3) uint8.

    Args:
        rng: draws the light and the colors.
        canvas: (3, H, W) float32, 0 to 255; it is overwritten.
        objects: what to paint, one over another.
    """
    contrast, brightness = rng.uniform(0.75, 1.1), rng.uniform(0.75, 1.1)
    mean = canvas.mean()
    canvas *= np.float32(contrast * brightness)
    canvas += np.float32((1 - contrast) * brightness) * mean
    direction = rng.uniform(-1.2, 1.2)  # in which the light falls, against the vertical; it comes from above
    falling = float(np.cos(direction)), float(np.sin(direction))
    distance, darkness = rng.uniform(0.02, 0.1), rng.uniform(0.2, 0.6)
    for item in objects:
        _paint_shadow(canvas, item, (falling[0] * distance, falling[1] * distance), darkness)
        _paint_object(rng, canvas, item, falling)
    exposure, warmth, noise = rng.uniform(0.88, 1.15), rng.uniform(-0.07, 0.07), rng.uniform(0, 5)
    for channel, gain in zip(canvas, (1 + warmth, 1, 1 - warmth), strict=True):
        channel *= np.float32(exposure * gain)
    canvas += np.float32(noise) * rng.standard_normal(canvas.shape[1:], dtype=np.float32)
    return np.ascontiguousarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0))


def _paint_shadow(canvas: np.ndarray, item: _Object, offset: tuple[float, float], darkness: float) -> None:
    border = 1 + round(0.05 * item.pose.side)
    alpha = item.picture.draw_shadow(item.pose, border)
    top, left = (
        corner - border + round(item.pose.side * moved)
        for corner, moved in zip((item.top, item.left), offset, strict=True)
    )
    inside, part = _window(top, left, alpha.shape, canvas.shape[1:])
    canvas[:, *inside] *= 1 - np.float32(darkness / 255) * alpha[part]


def _paint_object(rng: Generator, canvas: np.ndarray, item: _Object, falling: tuple[float, float]) -> None:
    inside, part = item.window(canvas.shape[1:])
    drawn = item.drawn[part].transpose(2, 0, 1).astype(np.float32, order="C")
    color, alpha = drawn[:3], drawn[3]
    if item.kind.color is not None:
        target = np.array(COLORS[item.kind.color], dtype=np.float32) * rng.uniform(0.9, 1.08, 3).astype(np.float32)
        _paint_anew(color, alpha, item.picture.draw_paint(item.pose)[part], item.picture.paint_value, target)
    saturation = np.float32(rng.uniform(0.75, 1.1))
    gray = (color[0] + color[1] + color[2]) * ((1 - saturation) / 3)
    color *= saturation
    color += gray
    gain = rng.uniform(0.8, 1.1) * rng.uniform(0.94, 1.06, 3)
    slope = rng.uniform(0.0, 0.35) / item.pose.side
    y = (np.arange(part[0].start, part[0].stop, dtype=np.float32) - item.solid.shape[0] / 2)[:, None]
    x = (np.arange(part[1].start, part[1].stop, dtype=np.float32) - item.solid.shape[1] / 2)[None, :]
    # Lighter on the side from which the light comes.
    light = (1 - np.float32(slope * falling[0]) * y) - np.float32(slope * falling[1]) * x
    color *= light
    color *= gain.astype(np.float32)[:, None, None]
    np.minimum(np.maximum(color, 0, out=color), alpha, out=color)
    under = canvas[:, *inside]
    under *= 1 - alpha * np.float32(1 / 255)
    under += color


def _paint_anew(
    color: np.ndarray, alpha: np.ndarray, paint: np.ndarray, paint_value: float, target: np.ndarray
) -> None:
    """Give the paint of a drawn picture another color; light and shade remain.

    Args:
        color: (3, h, w) float32, multiplied by alpha; it is overwritten.
        alpha: (h, w) float32, 0 to 255.
        paint: (h, w) uint8, see `Picture`.
        paint_value: likewise.
        target: (3,) float32, the other color.
    """
    value = np.maximum(np.maximum(color[0], color[1]), color[2]) * np.float32(1 / (255 * paint_value))
    fresh = np.minimum(value * target[:, None, None], alpha)
    color += (fresh - color) * (paint * np.float32(1 / 255))


def _open_captions(location: str, split: str | None, options: SetOptions) -> Objects:
    return Objects(
        split,  # type: ignore[arg-type]  # others are refused
        options.length,
        options.image_size,
        options.seed,
        options.recolor,
        options.max_objects,
    )


def _open_images(location: str, split: str | None, options: SetOptions) -> ImageSet:
    source = SceneImages(_open_captions(location, split, options))
    return ImageSet(source, f"objects, {split}", ("background", *CLASSES), background=0)


register(
    DataSet(
        name="objects",
        help="pictured objects of 338 classes on photos",
        knows=("label", "mask", "caption"),
        open_images=_open_images,
        open_captions=_open_captions,
    )
)
