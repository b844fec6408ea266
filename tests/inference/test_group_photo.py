"""Photos of any size to groups."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from grouping_zoo import Grouping
from grouping_zoo.inference.group_photo import PhotoGrouper
from grouping_zoo.inference.resizing import MIN_SIDE
from grouping_zoo.inference.result import GroupSegmentation, Origin
from groupings import Stripes, grouping_of

ORIGIN = Origin(image=None, model="quadrants", device="cpu", version="0", settings={})


class Quadrants(Stripes):
    """Groups the superpixels that the image processor makes: the upper left one with the lower right one."""

    def forward_grouping(self, x: Tensor, superpixels: Tensor) -> Grouping:  # type: ignore[override]
        return grouping_of([np.array([0, 1, 1, 0])], superpixels=superpixels)


def grouper(seen: list[dict[str, Any]], size: int = 64) -> PhotoGrouper:
    def process(images: Image.Image, size: dict[str, int], **settings: Any) -> dict[str, Tensor]:
        seen.append({"size": size, "preview": images.size} | settings)
        rows, columns = (torch.arange(side) * 2 // side for side in (size["height"], size["width"]))
        pixels = torch.zeros(1, 3, size["height"], size["width"])
        return {"pixel_values": pixels, "superpixels": (2 * rows[:, None] + columns)[None]}

    return PhotoGrouper(Quadrants(), process, size, level=None, grouping_args={})


def group(size: tuple[int, int], shorter: int = 64) -> GroupSegmentation:
    return grouper([], shorter)(Image.new("RGB", size), ORIGIN)


def test_a_photo_is_grouped_whole_at_its_own_aspect_ratio() -> None:
    seen: list[dict[str, Any]] = []
    found = grouper(seen)(Image.new("RGB", (5000, 2500)), ORIGIN)
    assert seen[0]["size"] == {"height": 64, "width": 128}
    assert seen[0]["do_center_crop"] is False
    assert seen[0]["preview"] == found.preview.size == (2048, 1024)
    assert (found.image.size, found.network_size) == ((5000, 2500), (128, 64))
    labels = found.labels
    assert labels.shape == (2500, 5000)
    assert [labels[y, x] for y in (10, 2490) for x in (10, 4990)] == [0, 1, 1, 0]
    np.testing.assert_allclose(found.tree.fractions(0), 0.25, atol=0.01)
    np.testing.assert_allclose(list(found.fractions.values()), 0.5, atol=0.01)
    np.testing.assert_array_equal(found.tree.labels(-1), found.tree.parents[0][found.tree.labels(0)])


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000), (1, 700)])
def test_very_long_photos_are_widened_for_the_network(size: tuple[int, int]) -> None:
    found = group(size)
    assert min(found.network_size) >= MIN_SIDE
    assert found.grouping.superpixels is not None
    assert tuple(found.grouping.superpixels.shape[1:]) == found.network_size[::-1]
    assert found.labels.shape == size[::-1]


def test_sizes_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, got 16"):
        grouper([], size=16)
    with pytest.raises(ValueError, match=r"size: expected at most 1000000 pixels .* lower size"):
        group((4000, 2000), shorter=800)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_slots": 5}, "num_slots: this model has no such setting; leave it out .it has num_stripes, layer, head."),
        ({"num_stripes": 10**9}, "num_stripes: expected at most 4096, got 1000000000; lower it"),
    ],
)
def test_arguments_that_the_network_does_not_have_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PhotoGrouper(Stripes(), None, 64, level=None, grouping_args=arguments)


def test_levels_that_are_not_there_are_refused_before_the_work() -> None:
    with pytest.raises(ValueError, match="level: expected -2 to 1, got 2"):
        PhotoGrouper(Stripes(), None, 64, level=2, grouping_args={})
