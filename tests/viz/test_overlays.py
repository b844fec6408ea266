"""Groups and classes over an image."""

import numpy as np
import pytest

from grouping_zoo.viz.overlays import classes_figure, groups_figure
from grouping_zoo.viz.palette import BACKGROUND_COLOR, palette
from plain_images import colors_in, grey_image


def test_groups_figure_has_a_color_a_group_and_a_line_between_them() -> None:
    labels = np.zeros((600, 800), dtype=np.int64)
    labels[:, 400:] = 5
    figure = groups_figure(grey_image(800, 600), labels)
    assert figure.size == (800, 600)
    pixels = np.asarray(figure)
    expected = 0.55 * palette(7)[[1, 6]] + 0.45 * 128
    np.testing.assert_allclose(pixels[300, [100, 700]], expected, atol=1)
    boundary = (pixels == 250).all(axis=-1)
    assert boundary[:, 400].all()
    assert not boundary[:, :397].any()
    assert not boundary[:, 404:].any()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (64, 64), (64, 7), (3, 700), (2048, 31)])
def test_figures_of_any_size(width: int, height: int) -> None:
    labels = np.arange(width * height).reshape(height, width) % 3
    groups = groups_figure(grey_image(width, height), labels)
    assert groups.width % width == 0
    assert groups.width / width == groups.height / height
    assert max(groups.size) > 256
    overlay = classes_figure(grey_image(width, height), labels, ["background", "a", "b"])
    assert overlay.height > groups.height
    assert overlay.width >= groups.width


def test_legend_has_the_classes_that_occur_and_no_others() -> None:
    labels = np.zeros((300, 400), dtype=np.int64)
    labels[100:200, 100:200] = 2
    overlay = classes_figure(grey_image(400, 300), labels, ["background", "cat", "dog", "cow"])
    legend = overlay.crop((0, 300, overlay.width, overlay.height))
    cat, dog, cow = (tuple(color) for color in palette(4)[1:].tolist())
    assert dog in colors_in(legend)
    assert BACKGROUND_COLOR in colors_in(legend)
    assert not {cat, cow} & colors_in(legend)
    background = np.asarray(overlay)[50, 50]
    assert background.max() == background.min(), "the background is grey"


def test_wrong_labels_are_refused() -> None:
    image, labels = grey_image(4, 3), np.zeros((3, 4), dtype=np.int64)
    with pytest.raises(ValueError, match=r"labels: expected the image's"):
        groups_figure(image, labels.T)
    with pytest.raises(ValueError, match="labels: expected 0 or more"):
        groups_figure(image, labels - 1)
    with pytest.raises(ValueError, match="names: expected one for each label up to 2, got 2"):
        classes_figure(image, labels + 2, ["background", "cat"])
