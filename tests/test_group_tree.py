"""Hard groups of one image as a tree."""

import numpy as np
import pytest
import torch

from grouping_zoo import Grouping
from grouping_zoo.group_tree import GroupTree
from groupings import grouping_of, random_parents


def test_a_tree_has_the_labels_of_its_grouping_and_is_nested() -> None:
    parents = random_parents((64, 16, 5))
    grouping = grouping_of(parents, grid=(8, 8))
    tree = GroupTree.of_grouping(grouping, seen_size=(32, 24), size=(32, 24))
    assert (tree.num_levels, tree.num_groups, tree.on_grid) == (3, [64, 16, 5], True)
    for level in range(3):
        np.testing.assert_array_equal(tree.labels(level), grouping.labels(level, (24, 32))[0])
        counts = [(tree.labels(level) == group).sum() for group in range(tree.num_groups[level])]
        np.testing.assert_allclose(tree.fractions(level), np.array(counts) / (32 * 24))
    for level in range(2):
        np.testing.assert_array_equal(tree.parents[level][tree.labels(level)], tree.labels(level + 1))
    np.testing.assert_array_equal(tree.labels(), tree.labels(2))
    assert tree.labels(1, (100, 50)).shape == (50, 100)


def test_groups_without_pixels_are_counted() -> None:
    superpixels = torch.zeros(1, 4, 4, dtype=torch.int64)
    tree = GroupTree.of_grouping(grouping_of([np.array([0, 1, 3])], superpixels=superpixels), (4, 4), (8, 8))
    assert not tree.on_grid
    assert tree.fractions(-1).tolist() == [1, 0, 0, 0]
    assert tree.token_pixels.tolist() == [64, 0, 0]


def test_a_level_that_is_not_there_is_refused() -> None:
    grouping: Grouping = grouping_of([np.array([0, 1, 1, 0])], grid=(2, 2))
    tree = GroupTree.of_grouping(grouping, (2, 2), (2, 2))
    with pytest.raises(ValueError, match="level: expected -2 to 1, got 2"):
        tree.labels(2)
    with pytest.raises(ValueError, match="level: expected -2 to 1, got -3"):
        tree.fractions(-3)
