"""Sizes that the network sees, and maps at other sizes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from grouping_zoo.inference.resizing import MAX_ASPECT, argmax_resized, network_size


def test_argmax_resized_is_the_arg_max_of_all_maps_interpolated() -> None:
    maps = torch.rand(7, 9, 11, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(maps[None], size=(20, 30), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(argmax_resized(maps, (30, 20)), full.argmax(0).numpy())


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (480, 640), (1, 1), (10_000, 3), (3, 10_000)])
def test_resizing_keeps_the_aspect_ratio_and_bounds_the_longer_side(size: tuple[int, int]) -> None:
    width, height = network_size(size, 64)
    assert max(width, height) <= MAX_ASPECT * 64
    assert min(width, height) == 64 or max(width, height) == MAX_ASPECT * 64
    if min(width, height) == 64:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
