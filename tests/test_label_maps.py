"""Label maps at other sizes."""

import numpy as np
import pytest
import torch

from grouping_zoo.inference.resizing import argmax_resized
from grouping_zoo.label_maps import resize_labels, resize_labels_nearest


def test_resized_labels_are_the_labels_with_smoother_outlines() -> None:
    labels = torch.zeros(16, 16, dtype=torch.int64)
    labels[4:12, 4:12] = 300
    np.testing.assert_array_equal(resize_labels(labels.numpy(), (16, 16)), labels.numpy())
    large = resize_labels(labels.numpy(), (160, 80))
    assert large.shape == (80, 160)
    assert set(np.unique(large)) == {0, 300}
    nearest = labels.numpy().repeat(5, axis=0).repeat(10, axis=1)
    assert 0 < (large != nearest).sum() < 0.02 * large.size, "only corners are cut"


@pytest.mark.parametrize("size", [(40, 36), (23, 50), (9, 7), (7, 5), (1, 1), (90, 1)])
def test_resized_labels_are_the_arg_max_of_each_labels_own_map_interpolated(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (12, 10)) * 7
    maps = torch.stack([torch.from_numpy(labels == label).double() for label in np.unique(labels)])
    full = torch.nn.functional.interpolate(maps[None], size=size[::-1], mode="bilinear", align_corners=False)[0]
    best, second = full.sort(dim=0, descending=True).values[:2]
    clear = (best - second > 1e-6).numpy()
    found = resize_labels(labels, size)
    assert found.shape == (size[1], size[0])
    np.testing.assert_array_equal(found[clear], np.unique(labels)[full.argmax(0).numpy()][clear])
    assert clear.mean() > 0.5


def test_of_equally_near_labels_the_lowest_wins() -> None:
    labels = np.array([[3, 1], [2, 0]])
    assert resize_labels(labels, (1, 1)) == 0
    maps = [torch.from_numpy(labels == label) for label in range(4)]
    assert argmax_resized(maps, (1, 1)) == 0


def test_nearest_keeps_labels_as_they_are() -> None:
    labels = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(resize_labels_nearest(labels, (6, 4)), labels.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(resize_labels_nearest(labels, (3, 2)), labels)
