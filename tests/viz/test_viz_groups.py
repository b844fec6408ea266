"""Pictures of a `Grouping`: colours of a hierarchy, sheets of panels, and the grouping of a photo."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor

from grouping_zoo import Grouping
from grouping_zoo.viz.attention import attention_picture
from grouping_zoo.viz.contact_sheet import GAP, Panel, contact_sheet
from grouping_zoo.viz.hierarchy import COLOR_WEIGHT, heads_picture, hierarchy_picture, shown_levels
from grouping_zoo.viz.nested_colors import nested_colors
from grouping_zoo.viz.palette import palette
from grouping_zoo.viz.photo_grouping import MIN_SIDE, PhotoGrouper, PhotoGrouping
from grouping_zoo.viz.resizing import PICTURE_SIDE, best_of_maps, nearest, resized_labels

LEVEL_SIZES = (200, 64, 32, 16, 8)


def random_parents(sizes: tuple[int, ...] = LEVEL_SIZES) -> list[np.ndarray]:
    """A random tree in which every group has a child."""
    rng = np.random.default_rng(0)
    return [
        rng.permutation(np.concatenate([np.arange(coarse), rng.integers(0, coarse, fine - coarse)]))
        for fine, coarse in pairwise(sizes)
    ]


def grouping_of(parents: list[np.ndarray], **place: Any) -> Grouping:
    """A hard grouping with these parents."""
    counts = [len(parent) for parent in parents[1:]] + [int(parents[-1].max()) + 1]
    assignments = [
        torch.nn.functional.one_hot(torch.from_numpy(parent), count).float()[None, None]
        for parent, count in zip(parents, counts, strict=True)
    ]
    return Grouping(assignments=assignments, tokens=[torch.zeros(1, count, 2) for count in counts], **place)


def photo_grouping(grouping: Grouping, size: tuple[int, int]) -> PhotoGrouping:
    return PhotoGrouping(
        picture=Image.new("RGB", size, (128, 128, 128)), full_size=size, working_size=size, grouping=grouping
    )


def quadrants(size: int = 64) -> Tensor:
    """(1, size, size) superpixels 0 1 over 2 3."""
    half = torch.arange(size) // (size // 2)
    return (2 * half[:, None] + half)[None]


# --- colours --------------------------------------------------------------------------------------------------------


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


# --- resizing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 36), (23, 50), (9, 7), (7, 5), (1, 1), (90, 1)])
def test_resized_labels_are_the_arg_max_of_each_labels_own_map_interpolated(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (12, 10)) * 7
    maps = torch.stack([torch.from_numpy(labels == label).double() for label in np.unique(labels)])
    full = torch.nn.functional.interpolate(maps[None], size=size[::-1], mode="bilinear", align_corners=False)[0]
    best, second = full.sort(dim=0, descending=True).values[:2]
    clear = (best - second > 1e-6).numpy()
    found = resized_labels(labels, size)
    assert found.shape == (size[1], size[0])
    np.testing.assert_array_equal(found[clear], np.unique(labels)[full.argmax(0).numpy()][clear])
    assert clear.mean() > 0.5


def test_of_equally_near_labels_the_lowest_wins() -> None:
    labels = np.array([[3, 1], [2, 0]])
    assert resized_labels(labels, (1, 1)) == 0
    maps = [torch.from_numpy(labels == label) for label in range(4)]
    assert best_of_maps(maps, (1, 1)) == 0


# --- sheets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo_size", [(300, 200), (1, 1), (64, 64), (2000, 100), (3, 900), (100, 2000)])
@pytest.mark.parametrize("count", [1, 2, 6, 17])
def test_a_sheet_shows_every_panel_whole_and_stays_in_bounds(count: int, photo_size: tuple[int, int]) -> None:
    colors = [(200, 10 + 10 * number, 40) for number in range(count)]
    sizes = []

    def panel(number: int) -> Panel:
        def draw(size: tuple[int, int]) -> Image.Image:
            sizes.append(size)
            return Image.new("RGB", size, colors[number])

        return Panel(draw, f"{number} groups", "level")

    sheet = contact_sheet([panel(number) for number in range(count)], photo_size)
    pixels = np.asarray(sheet)
    assert len(set(sizes)) == 1
    counts = {color: count for count, color in sheet.getcolors(maxcolors=1000)}
    assert all(counts[color] == sizes[0][0] * sizes[0][1] for color in colors)
    assert max(sheet.size) <= PICTURE_SIDE
    assert (pixels[:, -GAP:] == 255).all(), "nothing runs over the edge"
    assert (pixels[-2:] == 255).all()
    assert (25, 25, 28) in counts, "there are words"


def test_a_sheet_is_neither_a_strip_nor_a_tower() -> None:
    panel = Panel(lambda size: Image.new("RGB", size), "group")
    for photo_size, low, high in (((300, 200), 1, 2.2), ((200, 200), 1, 2.2), ((200, 600), 0.8, 2.5)):
        for count in (3, 5, 6, 7, 17):
            sheet = contact_sheet([panel] * count, photo_size)
            assert low < sheet.width / sheet.height < high or count < 5, (photo_size, count)


# --- pictures of groupings ------------------------------------------------------------------------------------------


def test_hierarchy_picture_shows_each_level_in_its_nested_colors() -> None:
    parents = [np.array([0, 1, 2, 2]), np.array([0, 0, 1])]
    found = photo_grouping(grouping_of(parents, superpixels=quadrants()), (64, 64))
    picture = np.asarray(hierarchy_picture(found, shown_levels(found)))
    colors = nested_colors(parents, np.full(4, 1024))
    for level in range(3):
        expected = (COLOR_WEIGHT * colors[level] + (1 - COLOR_WEIGHT) * 128).astype(np.uint8)
        for color in expected:
            share = (picture == color).all(axis=-1).mean()
            assert share > 0.02, f"level {level} has no {color}"
    shown = {tuple(color) for level in colors for color in level.tolist()}
    assert len(shown) == 2 + 2 + 2, "an only child has its parent's color, siblings have others"


def test_a_grid_is_no_picture_of_its_own() -> None:
    parents = [np.arange(16) // 4]
    assert shown_levels(photo_grouping(grouping_of(parents, grid=(4, 4)), (64, 64))) == [1]
    superpixels = torch.arange(16).repeat_interleave(256).view(1, 64, 64)
    assert shown_levels(photo_grouping(grouping_of(parents, superpixels=superpixels), (64, 64))) == [0, 1]


def test_heads_picture_has_a_panel_a_head() -> None:
    grid = (4, 4)
    rows, columns = np.arange(16) // 4, np.arange(16) % 4
    both = [grouping_of([parent], grid=grid).assignments[0] for parent in (rows, columns)]
    grouping = Grouping(assignments=[torch.cat(both, dim=1)], tokens=[torch.zeros(1, 4, 2)], grid=grid)
    found = photo_grouping(grouping, (64, 64))
    assert found.num_heads == 2
    np.testing.assert_array_equal(found.head(0).labels(1), np.repeat(np.arange(4), 16)[:, None].repeat(64, axis=1))
    np.testing.assert_array_equal(found.head(1).labels(1), found.head(0).labels(1).T)
    picture = np.asarray(heads_picture(found, 1))
    first = (COLOR_WEIGHT * palette(2)[1] + (1 - COLOR_WEIGHT) * 128).astype(int)
    spots = np.abs(picture.astype(int) - first).max(axis=-1) <= 1
    left, right = (spots.any(axis=0).nonzero()[0][index] for index in (0, -1))
    assert right - left > picture.shape[1] // 3, "both heads show the first colour, in panels of their own"


def test_attention_picture_is_brightest_where_a_token_looks() -> None:
    maps = np.zeros((2, 8, 8))
    maps[0, 1, 6] = 0.3
    maps[1] = 0.1  # looks everywhere alike
    picture = np.asarray(attention_picture(Image.new("RGB", (320, 320)), maps)).astype(int).sum(axis=-1)
    panels = picture[GAP : GAP + 400]
    width = (picture.shape[1] - GAP) // 3
    first = panels[:, GAP + width : 2 * width]
    row, column = np.unravel_index(first.argmax(), first.shape)
    assert row / first.shape[0] < 0.4
    assert column / first.shape[1] > 0.6
    assert panels[:, GAP + 2 * width : 3 * width].max() < first.max() / 2


# --- photos ---------------------------------------------------------------------------------------------------------


def grouper(seen: list[dict[str, Any]], size: int = 64) -> PhotoGrouper:
    """Groups by quadrants that the image processor makes."""

    def process(images: Image.Image, size: dict[str, int], **settings: Any) -> dict[str, Tensor]:
        seen.append({"size": size, "picture": images.size} | settings)
        rows, columns = (torch.arange(side) * 2 // side for side in (size["height"], size["width"]))
        return {
            "pixel_values": torch.zeros(1, 3, size["height"], size["width"]),
            "superpixels": (2 * rows[:, None] + columns)[None],
        }

    def group(inputs: dict[str, Tensor]) -> Grouping:
        return grouping_of([np.array([0, 1, 1, 0])], superpixels=inputs["superpixels"])

    return PhotoGrouper(group=group, image_processor=process, size=size)


def test_a_photo_is_grouped_whole_at_its_own_aspect_ratio() -> None:
    seen: list[dict[str, Any]] = []
    found, inputs = grouper(seen)(Image.new("RGB", (5000, 2500)))
    assert inputs["pixel_values"].shape == (1, 3, 64, 128)
    assert seen[0]["size"] == {"height": 64, "width": 128}
    assert seen[0]["do_center_crop"] is False
    assert seen[0]["picture"] == found.picture.size == (2048, 1024)
    assert (found.full_size, found.working_size) == ((5000, 2500), (128, 64))
    labels = found.full_labels(1)
    assert labels.shape == (2500, 5000)
    assert labels.dtype == np.uint8
    assert [labels[y, x] for y in (10, 2490) for x in (10, 4990)] == [0, 1, 1, 0]
    np.testing.assert_allclose(found.shares(0), 0.25, atol=0.01)
    np.testing.assert_allclose(found.shares(-1), 0.5, atol=0.01)
    np.testing.assert_array_equal(found.labels(-1), found.parents[0][found.labels(0)])


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000), (1, 700)])
def test_mere_lines_are_widened_for_the_network(size: tuple[int, int]) -> None:
    found, inputs = grouper([])(Image.new("RGB", size))
    assert min(found.working_size) >= MIN_SIDE
    assert tuple(inputs["superpixels"].shape[1:]) == found.working_size[::-1]
    assert found.full_labels(0).shape == size[::-1]


def test_sizes_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, got 16"):
        grouper([], size=16)
    with pytest.raises(ValueError, match=r"size: expected at most 1000000 pixels .* lower size"):
        grouper([], size=800)(Image.new("RGB", (4000, 2000)))


def test_nearest_keeps_labels_as_they_are() -> None:
    labels = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(nearest(labels, (6, 4)), labels.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(nearest(labels, (3, 2)), labels)
