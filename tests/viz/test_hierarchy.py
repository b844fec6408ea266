"""Figures of group trees."""

import numpy as np
from PIL import Image

from grouping_zoo.group_tree import GroupTree
from grouping_zoo.viz.hierarchy import COLOR_WEIGHT, heads_figure, hierarchy_figure
from grouping_zoo.viz.nested_colors import nested_colors
from grouping_zoo.viz.palette import palette

GREY = Image.new("RGB", (64, 64), (128, 128, 128))


def quadrants(size: int = 64) -> np.ndarray:
    """(size, size) superpixels 0 1 over 2 3."""
    half = np.arange(size) // (size // 2)
    return 2 * half[:, None] + half


def test_hierarchy_figure_shows_each_level_in_its_nested_colors() -> None:
    parents = [np.array([0, 1, 2, 2]), np.array([0, 0, 1])]
    tree = GroupTree(tokens=quadrants(), parents=parents, num_groups=[4, 3, 2], on_grid=False)
    figure = np.asarray(hierarchy_figure(GREY, tree, [0, 1, 2]))
    colors = nested_colors(parents, np.full(4, 1024))
    for level in range(3):
        expected = (COLOR_WEIGHT * colors[level] + (1 - COLOR_WEIGHT) * 128).astype(np.uint8)
        for color in expected:
            fraction = (figure == color).all(axis=-1).mean()
            assert fraction > 0.02, f"level {level} has no {color}"
    shown = {tuple(color) for level in colors for color in level.tolist()}
    assert len(shown) == 2 + 2 + 2, "an only child has its parent's color, siblings have others"


def test_heads_figure_has_a_panel_a_head() -> None:
    cells = np.arange(16).reshape(4, 4).repeat(16, axis=0).repeat(16, axis=1)
    trees = [
        GroupTree(tokens=cells, parents=[parent], num_groups=[16, 4], on_grid=True)
        for parent in (np.arange(16) // 4, np.arange(16) % 4)
    ]
    figure = np.asarray(heads_figure(GREY, trees, 1))
    first = (COLOR_WEIGHT * palette(2)[1] + (1 - COLOR_WEIGHT) * 128).astype(int)
    spots = np.abs(figure.astype(int) - first).max(axis=-1) <= 1
    left, right = (spots.any(axis=0).nonzero()[0][index] for index in (0, -1))
    assert right - left > figure.shape[1] // 3, "both heads show the first color, in panels of their own"
