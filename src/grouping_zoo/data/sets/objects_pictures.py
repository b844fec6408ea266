"""The pictures of the data set `objects`: 338 nouns in three drawing styles, read once a process and drawn at any size.

Each style is one WebP atlas in `objects_data`, packed by `conversion/pack_objects.py`.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from PIL import Image

STYLES = ("noto", "fluent", "twemoji")
SIDE = 128  # longer side of a picture in the atlas
CELL = 132  # side of its cell there
ATLAS_COLUMNS = 19

LEVELS = 4  # sizes that are kept of each picture, each half the one before
MARGIN = 2 ** (LEVELS - 1)  # transparent pixels around a picture, at least one at the smallest size

# Nouns whose color is anybody's choice: their pictures may be painted anew. In each style paint covers a third of them.
PAINTED_NOUNS = frozenset(
    {
        *("backpack", "balloon", "bikini", "book", "boot", "bowl", "boxing glove", "briefcase", "bucket"),
        *("butterfly", "cap", "car", "chair", "clock", "coat", "couch", "door", "dress", "fish"),
        *("gift", "guitar", "handbag", "heart", "helicopter", "helmet", "high heel", "jeans", "kick scooter"),
        *("kimono", "lock", "luggage", "magnet", "motorcycle", "octopus", "pencil", "puzzle piece"),
        *("pushpin", "rose", "sandal", "scarf", "scissors", "scooter", "screwdriver", "shorts", "snake"),
        *("teapot", "telephone", "tent", "toothbrush", "umbrella"),
    }
)

# A pixel belongs to the paint of a picture if its hue is near the most frequent one, and it is colorful enough.
HUE_BINS = 36
HUE_REACH = (0.09, 0.14)  # of the hue circle: fully paint up to the first, not at all from the second on
COLORFUL = (0.2, 0.35)  # saturation: not paint up to the first, fully from the second on


class Noun(NamedTuple):
    """A class of the data set.

    Attributes:
        name: name of the class.
        category: one of a few kinds of things, such as "animal".
        synonyms: other words for it.
    """

    name: str
    category: str
    synonyms: tuple[str, ...]


def _read_nouns() -> tuple[Noun, ...]:
    entries = json.loads((_DATA / "nouns.json").read_text(encoding="utf-8"))
    return tuple(Noun(entry["name"], entry["category"], tuple(entry["synonyms"])) for entry in entries)


_DATA = files("grouping_zoo.data.sets") / "objects_data"
NOUNS = _read_nouns()


class Pose(NamedTuple):
    """Size and orientation in which a picture is drawn.

    Attributes:
        side: pixels that the longer side of the upright picture takes.
        angle: by which it is turned, in radians.
        mirrored: whether left and right are exchanged before it is turned.
    """

    side: float
    angle: float
    mirrored: bool


@dataclass(frozen=True)
class Picture:
    """A picture at several sizes, to be drawn from the one that is nearest.

    Attributes:
        size: (height, width) of what is opaque, in pixels of the largest size.
        levels: the sizes from large to small, RGB multiplied by alpha, with a transparent margin; the picture's center
            is that of each.
        paint: for each size a gray image, 255 where a pixel has the paint's color, 0 where it has another one; empty
            for a noun that is not painted anew.
        paint_value: mean brightness of the paint, 0 to 1.
    """

    size: tuple[int, int]
    levels: tuple[Image.Image, ...]
    paint: tuple[Image.Image, ...] = ()
    paint_value: float = 0.0

    def half_extent(self, pose: Pose) -> tuple[float, float]:
        """Return half the (height, width) of the picture's box when it is drawn, in pixels."""
        scale, cos, sin = pose.side / max(self.size) / 2, abs(math.cos(pose.angle)), abs(math.sin(pose.angle))
        height, width = self.size
        return scale * (cos * height + sin * width), scale * (cos * width + sin * height)

    def draw(self, pose: Pose) -> np.ndarray:
        """Draw the picture, (h, w, 4) uint8, RGB multiplied by alpha; its center is that of the result."""
        level = _level(max(self.size) / pose.side)
        return self._drawn(self.levels[level], pose, level)

    def draw_paint(self, pose: Pose) -> np.ndarray:
        """Draw the paint of a picture that has some, (h, w) uint8, as large as what `draw` returns."""
        level = _level(max(self.size) / pose.side)
        return self._drawn(self.paint[level], pose, level)

    def draw_shadow(self, pose: Pose, border: int) -> np.ndarray:
        """Draw a blurred alpha, (h, w) uint8, with so many more pixels on each side than what `draw` returns."""
        return self._drawn(self.levels[-1].getchannel("a"), pose, LEVELS - 1, border)

    def _drawn(self, source: Image.Image, pose: Pose, level: int, border: int = 0) -> np.ndarray:
        half_height, half_width = (math.ceil(half + 1) + border for half in self.half_extent(pose))
        step = max(self.size) / pose.side / 2**level  # pixels of the source to one of the result
        cos, sin, sign = step * math.cos(pose.angle), step * math.sin(pose.angle), -1 if pose.mirrored else 1
        # From a pixel of the result to one of the source: rotation and scale about the centers of both.
        to_x = (sign * cos, sign * sin, source.width / 2 - sign * (cos * half_width + sin * half_height))
        to_y = (-sin, cos, source.height / 2 - (cos * half_height - sin * half_width))
        return np.asarray(
            source.transform(
                (2 * half_width, 2 * half_height),
                Image.Transform.AFFINE,
                (*to_x, *to_y),
                Image.Resampling.BILINEAR,
            )
        )


def _level(shrinking: float) -> int:
    """Return the level from which a picture is drawn that many times smaller than it is."""
    return min(LEVELS - 1, max(0, round(math.log2(shrinking))))


def _ramp(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Return 0 at `start` and before it, 1 at `stop` and behind it, a line between."""
    return np.clip((values - start) / (stop - start), 0, 1)


def find_paint(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """Find a picture's paint, the pixels of its most frequent hue.

    Args:
        picture: (H, W, 4) uint8, RGB not multiplied by alpha.

    Returns:
        (H, W) in [0, 1], and their mean brightness in [0, 1].
    """
    color, alpha = picture[..., :3].astype(np.float32) / 255, picture[..., 3].astype(np.float32) / 255
    high, low = color.max(-1), color.min(-1)
    chroma = high - low
    red, green, blue = np.moveaxis(color, -1, 0)
    safe = np.where(chroma > 0, chroma, 1)
    hue = np.select(
        [high == red, high == green], [(green - blue) / safe, 2 + (blue - red) / safe], 4 + (red - green) / safe
    )
    hue = (hue / 6) % 1
    colorful = _ramp(chroma / np.maximum(high, 1e-3), *COLORFUL) * _ramp(high, 0.15, 0.3)
    counts = np.bincount((hue * HUE_BINS).astype(int).ravel() % HUE_BINS, (colorful * alpha).ravel(), HUE_BINS)
    smooth = np.roll(counts, 1) + counts + np.roll(counts, -1)
    distance = np.abs((hue - (smooth.argmax() + 0.5) / HUE_BINS + 0.5) % 1 - 0.5)
    paint = colorful * (1 - _ramp(distance, *HUE_REACH))
    weight = paint * alpha
    return paint, float((weight * high).sum() / weight.sum())


def _half_sizes(whole: Image.Image) -> tuple[Image.Image, ...]:
    levels = [whole]
    for _ in range(LEVELS - 1):
        levels.append(levels[-1].reduce(2))
    return tuple(levels)


def _padded(image: Image.Image) -> Image.Image:
    """Add a margin, equal on opposite sides up to one pixel, so that the sides halve without a remainder."""
    unit = 2**LEVELS
    size = tuple(unit * math.ceil((side + 2 * MARGIN) / unit) for side in image.size)
    canvas = Image.new(image.mode, size)
    canvas.paste(image, tuple((side - inner) // 2 for side, inner in zip(size, image.size, strict=True)))
    return canvas


def _picture(cell: Image.Image, painted: bool) -> Picture:
    cell = cell.crop(cell.getchannel("A").getbbox())
    size, levels = (cell.height, cell.width), _half_sizes(_padded(cell.convert("RGBa")))
    if not painted:
        return Picture(size, levels)
    paint, value = find_paint(np.asarray(cell))
    return Picture(size, levels, _half_sizes(_padded(Image.fromarray(np.round(255 * paint).astype(np.uint8)))), value)


@lru_cache(maxsize=len(STYLES))
def load_pictures(style: str) -> tuple[Picture, ...]:
    """Return the pictures of a style in the order of `NOUNS`, read once a process."""
    with (_DATA / f"{style}.webp").open("rb") as file:
        atlas = Image.open(file)
        atlas.load()
    pictures = []
    for number, noun in enumerate(NOUNS):
        row, column = divmod(number, ATLAS_COLUMNS)
        cell = atlas.crop((CELL * column, CELL * row, CELL * (column + 1), CELL * (row + 1)))
        pictures.append(_picture(cell, noun.name in PAINTED_NOUNS))
    return tuple(pictures)
