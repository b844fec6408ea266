"""Colors of a hierarchy."""

import numpy as np
from skimage.color import rgb2lab

from grouping_zoo.viz.nested_colors import nested_colors
from grouping_zoo.viz.palette import palette
from groupings import random_parents


def test_shades_lie_around_their_parent_and_an_only_child_has_its_color() -> None:
    parents = [np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1])]
    fine, middle, coarse = (rgb2lab(c[None] / 255)[0] for c in nested_colors(parents, np.full(6, 10)))
    np.testing.assert_allclose(middle[0], coarse[0], atol=0.5)
    np.testing.assert_allclose(fine[2], middle[1], atol=0.5)
    np.testing.assert_allclose(fine[4], middle[2], atol=0.5)
    assert middle[1, 0] < coarse[1, 0] - 5 < coarse[1, 0] + 5 < middle[2, 0]
    assert fine[0, 0] < coarse[0, 0] - 5 < coarse[0, 0] + 5 < fine[1, 0]


def test_a_shade_is_nearer_in_hue_to_its_own_family_than_to_any_other() -> None:
    parents = random_parents()
    *finer, coarse = (rgb2lab(c[None] / 255)[0] for c in nested_colors(parents, np.ones(200)))
    hues = np.arctan2(coarse[:, 2], coarse[:, 1])
    for level, colors in enumerate(finer):
        family = np.arange(len(colors))
        for parent in parents[level:]:
            family = parent[family]
        difference = np.arctan2(colors[:, 2], colors[:, 1])[:, None] - hues[None]
        distance = np.abs((difference + np.pi) % (2 * np.pi) - np.pi)  # (N_l, 8)
        assert (distance.argmin(axis=1) == family).mean() > 0.95
        assert len(np.unique(colors.round(1), axis=0)) > 0.9 * len(colors), "siblings differ"


def test_groups_without_pixels_take_no_part() -> None:
    parents = [np.array([0, 0, 1, 1]), np.array([0, 1])]
    with_empty = [np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2])]
    colors = nested_colors(parents, np.array([5, 5, 3, 3]))
    beside_empty = nested_colors(with_empty, np.array([5, 0, 5, 3, 3, 0]))
    np.testing.assert_array_equal(beside_empty[0][[0, 2, 3, 4]], colors[0])
    np.testing.assert_array_equal(beside_empty[2][:2], colors[2])


def test_of_one_assignment_the_largest_group_has_the_first_color() -> None:
    _, groups = nested_colors([np.array([0, 1, 1, 2])], np.array([20, 30, 10, 1]))
    lightness_aside = rgb2lab(groups[None] / 255)[0]
    expected = rgb2lab(palette(4)[[2, 1, 3]][None] / 255)[0]
    np.testing.assert_allclose(lightness_aside, expected, atol=1)
