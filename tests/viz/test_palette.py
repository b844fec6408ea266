"""Colors of labels."""

import numpy as np

from grouping_zoo.viz.palette import BACKGROUND_COLOR, DISTINCT_COLORS, palette


def test_palette_is_distinct_and_more_labels_leave_the_first_colors_alone() -> None:
    colors = palette(DISTINCT_COLORS)
    assert colors.shape == (DISTINCT_COLORS, 3)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == DISTINCT_COLORS
    assert tuple(colors[0]) == BACKGROUND_COLOR
    for count in (1, 9, 40):
        np.testing.assert_array_equal(palette(count), colors[:count])
    # The first ones must be told apart at a glance.
    first = colors[:20].astype(int)
    distance = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distance.min() > 60


def test_palette_goes_on_past_its_colors_without_the_background() -> None:
    colors = palette(3 * DISTINCT_COLORS)
    assert not (colors[1:] == BACKGROUND_COLOR).all(axis=1).any()
    np.testing.assert_array_equal(colors[DISTINCT_COLORS], colors[1])
