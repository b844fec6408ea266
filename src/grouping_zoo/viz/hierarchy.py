"""Every level of a photo's groups in one picture, and those of every head."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from grouping_zoo.viz.contact_sheet import Panel, contact_sheet
from grouping_zoo.viz.nested_colors import nested_colors
from grouping_zoo.viz.photo_grouping import PhotoGrouping
from grouping_zoo.viz.pictures import tinted

COLOR_WEIGHT = 0.8  # shades must show through the photo


def hierarchy_picture(found: PhotoGrouping, levels: Sequence[int]) -> Image.Image:
    """The photo and its groups of each of `levels`; a group's colour is a shade of its parent's."""
    colors = _colors(found)
    panels = [_photo(found)] + [_groups(found, level, colors, *_title(found, level)) for level in levels]
    return contact_sheet(panels, found.picture.size)


def heads_picture(found: PhotoGrouping, level: int) -> Image.Image:
    """The photo and its groups of one level by each assignment head."""
    panels = [_photo(found)]
    for number in range(found.num_heads):
        one = found.head(number)
        panels.append(_groups(one, level, _colors(one), f"head {number}", _title(one, level)[0]))
    return contact_sheet(panels, found.picture.size)


def shown_levels(found: PhotoGrouping) -> list[int]:
    """The levels worth a picture: a regular grid of tokens says nothing of the photo."""
    return list(range(0 if found.grouping.grid is None else 1, found.grouping.num_levels))


def _colors(found: PhotoGrouping) -> list[np.ndarray]:
    return nested_colors(found.parents, np.bincount(found.tokens.ravel(), minlength=found.grouping.num_groups(0)))


def _photo(found: PhotoGrouping) -> Panel:
    return Panel(lambda size: found.picture.resize(size, Image.Resampling.LANCZOS), "photo")


def _groups(found: PhotoGrouping, level: int, colors: Sequence[np.ndarray], title: str, remark: str) -> Panel:
    # Lines around single cells of a grid would hide the groups.
    outlined = found.grouping.superpixels is not None

    def draw(size: tuple[int, int]) -> Image.Image:
        image = found.picture.resize(size, Image.Resampling.LANCZOS)
        return tinted(image, found.labels(level, size), colors[level], COLOR_WEIGHT, outlined)

    return Panel(draw, title, remark)


def _title(found: PhotoGrouping, level: int) -> tuple[str, str]:
    """How many of a level's groups have a pixel, and which level it is."""
    seen = int(np.count_nonzero(found.shares(level)))
    level %= found.grouping.num_levels
    what = "group" if level else ("token" if found.grouping.superpixels is None else "superpixel")
    return f"{seen} {what}{'s' * (seen != 1)}", f"level {level}"
