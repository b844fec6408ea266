"""Every level of a photo's groups in one figure, and the groups of every head."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from grouping_zoo.group_tree import GroupTree
from grouping_zoo.viz.contact_sheet import Panel, contact_sheet
from grouping_zoo.viz.nested_colors import nested_colors
from grouping_zoo.viz.overlays import tinted
from grouping_zoo.viz.wording import counted

COLOR_WEIGHT = 0.8  # shades must show through the photo


def hierarchy_figure(image: Image.Image, tree: GroupTree, levels: Sequence[int]) -> Image.Image:
    """The image and its groups of each of `levels`; a group's color is a shade of its parent's."""
    colors = _colors(tree)
    panels = [_groups(image, tree, level, colors[level], *_title(tree, level)) for level in levels]
    return contact_sheet([_photo(image), *panels], image.size)


def heads_figure(image: Image.Image, trees: Sequence[GroupTree], level: int) -> Image.Image:
    """The image and its groups of one level by each grouping head, which each have a tree."""
    panels = [_photo(image)]
    for number, tree in enumerate(trees):
        panels.append(_groups(image, tree, level, _colors(tree)[level], f"head {number}", _title(tree, level)[0]))
    return contact_sheet(panels, image.size)


def _colors(tree: GroupTree) -> list[np.ndarray]:
    return nested_colors(tree.parents, tree.token_pixels)


def _photo(image: Image.Image) -> Panel:
    return Panel(lambda size: image.resize(size, Image.Resampling.LANCZOS), "photo")


def _groups(image: Image.Image, tree: GroupTree, level: int, colors: np.ndarray, title: str, remark: str) -> Panel:
    def draw(size: tuple[int, int]) -> Image.Image:
        resized = image.resize(size, Image.Resampling.LANCZOS)
        # Lines around single cells of a grid would hide the groups.
        return tinted(resized, tree.labels(level, size), colors, COLOR_WEIGHT, boundaries=not tree.on_grid)

    return Panel(draw, title, remark)


def _title(tree: GroupTree, level: int) -> tuple[str, str]:
    """Number of a level's groups that have a pixel, and the level's number."""
    seen = int(np.count_nonzero(tree.fractions(level)))
    level %= tree.num_levels
    token = "token" if tree.on_grid else "superpixel"
    return counted(seen, "group" if level else token), f"level {level}"
