"""Invariants that every `Grouping` promises."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from grouping_zoo.grouping import Grouping


def assert_invariants(grouping: Grouping, sizes: Sequence[tuple[int, int] | None]) -> None:
    """Rows sum to 1, labels are nested, and every pixel has a group, in maps of some sizes."""
    for level, assignment in enumerate(grouping.assignments):
        assert torch.allclose(assignment.sum(-1), torch.ones(()).to(assignment), atol=1e-5)
        assert (assignment >= 0).all()
        assert grouping.tokens[level].shape[:2] == (grouping.batch_size, grouping.num_groups(level + 1))
    for size in sizes:
        maps = [grouping.labels(level, size) for level in range(grouping.num_levels)]
        for level, labels in enumerate(maps):
            assert labels.dtype == torch.int64
            assert labels.min() >= 0
            assert labels.max() < grouping.num_groups(level)
            if size is not None:
                assert tuple(labels.shape) == (grouping.batch_size, *size)
            probabilities = grouping.probabilities(level, size)
            assert probabilities.shape == (grouping.batch_size, grouping.num_groups(level), *labels.shape[1:])
            assert torch.allclose(probabilities.sum(1), torch.ones(()).to(probabilities), atol=1e-5)
        for fine, coarse in pairwise(maps):
            for image in range(grouping.batch_size):
                pairs = torch.stack([fine[image].flatten(), coarse[image].flatten()]).unique(dim=1)
                assert pairs.shape[1] == fine[image].unique().numel(), "one fine group lies in two coarse ones"


def assert_same_image(one: Grouping, alone: Grouping) -> None:
    """An image of a batch has the groups that it has on its own; what is there for other images alone is unused."""
    for a, b in zip(one.assignments, alone.assignments, strict=True):
        fine, coarse = b.shape[2:]
        assert torch.allclose(a[:, :, :fine, :coarse], b, atol=1e-5)
        assert not a[:, :, :fine, coarse:].any()
    for a, b in zip(one.tokens, alone.tokens, strict=True):
        assert torch.allclose(a[:, : b.shape[1]], b, atol=1e-4)
    for level in range(alone.num_levels):
        assert torch.equal(one.labels(level, (40, 40)), alone.labels(level, (40, 40)))
