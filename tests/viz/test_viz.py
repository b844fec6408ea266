from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from grouping_zoo.viz.legend import LegendEntry, with_legend
from grouping_zoo.viz.palette import BACKGROUND_COLOR, DISTINCT_COLORS, palette
from grouping_zoo.viz.pictures import groups_picture, overlay_picture, percent, save_label_png
from grouping_zoo.viz.resizing import MAX_ASPECT, best_of_maps, resized, resized_labels


def grey_image(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def colors_in(picture: Image.Image) -> set[tuple[int, ...]]:
    colors = picture.getcolors(maxcolors=picture.width * picture.height)
    assert colors is not None
    return {color for _, color in colors if isinstance(color, tuple)}


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


def test_groups_picture_has_a_color_a_group_and_a_line_between_them() -> None:
    labels = np.zeros((600, 800), dtype=np.int64)
    labels[:, 400:] = 5
    picture = groups_picture(grey_image(800, 600), labels)
    assert picture.size == (800, 600)
    pixels = np.asarray(picture)
    expected = 0.55 * palette(7)[[1, 6]] + 0.45 * 128
    np.testing.assert_allclose(pixels[300, [100, 700]], expected, atol=1)
    boundary = (pixels == 250).all(axis=-1)
    assert boundary[:, 400].all()
    assert not boundary[:, :397].any()
    assert not boundary[:, 404:].any()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (64, 64), (64, 7), (3, 700), (2048, 31)])
def test_pictures_of_any_size(width: int, height: int) -> None:
    labels = np.arange(width * height).reshape(height, width) % 3
    groups = groups_picture(grey_image(width, height), labels)
    assert groups.width % width == 0
    assert groups.width / width == groups.height / height
    assert max(groups.size) > 256
    overlay = overlay_picture(grey_image(width, height), labels, ["background", "a", "b"])
    assert overlay.height > groups.height
    assert overlay.width >= groups.width


def test_legend_has_the_classes_that_occur_and_no_others() -> None:
    labels = np.zeros((300, 400), dtype=np.int64)
    labels[100:200, 100:200] = 2
    overlay = overlay_picture(grey_image(400, 300), labels, ["background", "cat", "dog", "cow"])
    legend = overlay.crop((0, 300, overlay.width, overlay.height))
    cat, dog, cow = (tuple(color) for color in palette(4)[1:].tolist())
    assert dog in colors_in(legend)
    assert BACKGROUND_COLOR in colors_in(legend)
    assert not {cat, cow} & colors_in(legend)
    background = np.asarray(overlay)[50, 50]
    assert background.max() == background.min(), "the background is grey"


def test_legend_takes_as_many_rows_as_its_words_need() -> None:
    picture = grey_image(500, 100)
    entries = [LegendEntry((index, 99, 77), f"class number {index} " + "x" * 30, "1 %") for index in range(30)]
    sheet = with_legend(picture, entries)
    swatches = {entry.color for entry in entries}
    assert swatches <= colors_in(sheet)
    right_margin = np.asarray(sheet)[100:, -8:]
    assert (right_margin == 255).all(), "nothing runs over the edge"


def test_percent_never_hides_what_is_there() -> None:
    assert [percent(share) for share in (0, 0.0001, 0.006, 0.314, 1)] == ["0 %", "< 1 %", "1 %", "31 %", "100 %"]


@pytest.mark.parametrize(("highest", "mode"), [(0, "P"), (255, "P"), (256, "I;16"), (65535, "I;16")])
def test_label_png_is_lossless(tmp_path: Path, highest: int, mode: str) -> None:
    labels = np.random.default_rng(0).integers(0, highest + 1, (17, 23))
    labels[0, 0] = highest
    save_label_png(labels, tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as png:
        assert png.mode == mode
        np.testing.assert_array_equal(np.asarray(png), labels)


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    image, labels = grey_image(4, 3), np.zeros((3, 4), dtype=np.int64)
    with pytest.raises(ValueError, match=r"labels: expected the image's"):
        groups_picture(image, labels.T)
    with pytest.raises(ValueError, match="labels: expected 0 or more"):
        groups_picture(image, labels - 1)
    with pytest.raises(ValueError, match="names: expected one for each label up to 2, got 2"):
        overlay_picture(image, labels + 2, ["background", "cat"])
    with pytest.raises(ValueError, match="labels: expected 0 to 65535, got 65536"):
        save_label_png(labels + 65536, tmp_path / "labels.png")
    assert not list(tmp_path.iterdir())


def test_best_of_maps_is_the_arg_max_of_all_maps_interpolated() -> None:
    maps = torch.rand(7, 9, 11, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(maps[None], size=(20, 30), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(best_of_maps(maps, (30, 20)), full.argmax(0).numpy())


def test_resized_labels_are_the_labels_with_smoother_outlines() -> None:
    labels = torch.zeros(16, 16, dtype=torch.int64)
    labels[4:12, 4:12] = 300
    np.testing.assert_array_equal(resized_labels(labels.numpy(), (16, 16)), labels.numpy())
    large = resized_labels(labels.numpy(), (160, 80))
    assert large.shape == (80, 160)
    assert set(np.unique(large)) == {0, 300}
    nearest = labels.numpy().repeat(5, axis=0).repeat(10, axis=1)
    assert 0 < (large != nearest).sum() < 0.02 * large.size, "only corners are cut"


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (480, 640), (1, 1), (10_000, 3), (3, 10_000)])
def test_resizing_keeps_the_aspect_ratio_and_bounds_the_longer_side(size: tuple[int, int]) -> None:
    width, height = resized(size, 64)
    assert max(width, height) <= MAX_ASPECT * 64
    assert min(width, height) == 64 or max(width, height) == MAX_ASPECT * 64
    if min(width, height) == 64:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
