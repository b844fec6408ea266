"""`Grouping` against plain loops: composition, labels, probabilities, parts, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from grouping_zoo.grouping import Grouping
from invariants import assert_invariants

SIZES = [None, (24, 32), (7, 11), (3, 4), (50, 13)]


def random_grouping(counts: tuple[int, ...] = (12, 5, 3), heads: int = 2, batch: int = 3, **kwargs: object) -> Grouping:
    generator = torch.Generator().manual_seed(0)
    assignments = [
        torch.randn(batch, heads, a, b, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
        for a, b in pairwise(counts)
    ]
    tokens = [torch.randn(batch, b, 6, generator=generator, dtype=torch.float64) for b in counts[1:]]
    if not kwargs:
        kwargs = dict(grid=(3, 4))
    return Grouping(assignments=assignments, tokens=tokens, **kwargs)


def superpixel_grouping() -> Grouping:
    labels = torch.randint(0, 12, (3, 9, 7), generator=torch.Generator().manual_seed(3))
    return random_grouping(superpixels=labels)


GROUPINGS = {"grid": random_grouping, "superpixels": superpixel_grouping}
every_kind = pytest.mark.parametrize("make", GROUPINGS.values(), ids=GROUPINGS)


def plain_compose(grouping: Grouping, level: int) -> Tensor:
    """The soft assignment of every token to every group, as sums over the paths between them."""
    composed = torch.eye(grouping.num_groups(0), dtype=torch.float64).repeat(grouping.batch_size, 1, 1)
    for assignment in grouping.assignments[:level]:
        batch, heads, fine, coarse = assignment.shape
        result = torch.zeros(batch, composed.shape[1], coarse, dtype=torch.float64)
        for b in range(batch):
            for token in range(composed.shape[1]):
                for group in range(coarse):
                    for middle in range(fine):
                        mean = sum(float(assignment[b, head, middle, group]) for head in range(heads)) / heads
                        result[b, token, group] += composed[b, token, middle] * mean
        composed = result
    return composed


def plain_group(grouping: Grouping, image: int, token: int, level: int) -> int:
    """The token's group at a level: the most probable one, step by step."""
    for assignment in grouping.assignments[:level]:
        scores = assignment[image].mean(0)[token].tolist()
        token = scores.index(max(scores))
    return token


# --- plain-loop references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2])
def test_compose_equals_sum_over_paths(level: int) -> None:
    grouping = random_grouping()
    assert torch.allclose(grouping.compose(level), plain_compose(grouping, level), atol=1e-12)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_labels_of_a_grid_equal_plain_loop(level: int, size: tuple[int, int]) -> None:
    grouping = random_grouping()
    labels = grouping.labels(level, size)
    for image in range(3):
        for row in range(size[0]):
            for column in range(size[1]):
                # Twice the pixel's centre is an odd integer, so the loop works without rounding.
                token_row = (2 * row + 1) * 3 // (2 * size[0])
                token_column = (2 * column + 1) * 4 // (2 * size[1])
                expected = plain_group(grouping, image, token_row * 4 + token_column, level)
                assert labels[image, row, column] == expected


@pytest.mark.parametrize("size", [(9, 7), (18, 14), (5, 11)])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_labels_of_superpixels_equal_plain_loop(level: int, size: tuple[int, int]) -> None:
    grouping = superpixel_grouping()
    assert grouping.superpixels is not None
    labels = grouping.labels(level, size)
    for image in range(3):
        for row in range(size[0]):
            for column in range(size[1]):
                source = ((2 * row + 1) * 9 // (2 * size[0]), (2 * column + 1) * 7 // (2 * size[1]))
                token = int(grouping.superpixels[image, *source])
                assert labels[image, row, column] == plain_group(grouping, image, token, level)


def bilinear(map_: Tensor, row: float, column: float) -> Tensor:
    """Value of (..., h, w) at continuous cell-centre coordinates, clamped at the border."""
    row, column = min(max(row, 0), map_.shape[-2] - 1), min(max(column, 0), map_.shape[-1] - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, map_.shape[-2] - 1), min(left + 1, map_.shape[-1] - 1)
    upper = map_[..., top, left] * (1 - (column - left)) + map_[..., top, right] * (column - left)
    lower = map_[..., bottom, left] * (1 - (column - left)) + map_[..., bottom, right] * (column - left)
    return upper * (1 - (row - top)) + lower * (row - top)


@pytest.mark.parametrize(("height", "width"), [(24, 32), (19, 27), (17, 32)])
def test_probabilities_of_a_padded_grid_are_bilinear_between_patch_centres(height: int, width: int) -> None:
    patch = 8
    grouping = random_grouping(grid=(3, 4), extent=(height / 24, width / 32))
    found = grouping.probabilities(-1, (height, width))
    maps = plain_compose(grouping, 2).transpose(1, 2).unflatten(2, (3, 4))
    for row in range(height):
        for column in range(width):
            expected = bilinear(maps, (row + 0.5) / patch - 0.5, (column + 0.5) / patch - 0.5)
            assert torch.allclose(found[..., row, column].double(), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(24, 32), (19, 27), (17, 25)])
@pytest.mark.parametrize("zoom", [1, 3])
def test_labels_of_a_padded_grid_are_those_of_the_patch_under_the_pixel(height: int, width: int, zoom: int) -> None:
    patch = 8 * zoom
    grouping = random_grouping(grid=(3, 4), extent=(height / 24, width / 32))
    labels = grouping.labels(0, (zoom * height, zoom * width))
    expected = [[row // patch * 4 + column // patch for column in range(zoom * width)] for row in range(zoom * height)]
    assert labels[1].tolist() == expected


def test_superpixel_probabilities_are_those_of_the_pixels_token() -> None:
    grouping = superpixel_grouping()
    assert grouping.superpixels is not None
    found, composed = grouping.probabilities(), plain_compose(grouping, 2)
    for image in range(3):
        for row in range(9):
            for column in range(7):
                expected = composed[image, grouping.superpixels[image, row, column]]
                assert torch.allclose(found[image, :, row, column], expected, atol=1e-12)


def test_large_superpixel_labels_survive_resizing() -> None:
    # Above 2^24 float32 would merge neighbours; the token axis is expanded, so it takes no memory.
    count = 2**24 + 2
    labels = torch.tensor([[[count - 1, count - 2]]])
    grouping = Grouping(
        assignments=[torch.ones(1, 1, 1, 1).expand(1, 1, count, 1)], tokens=[torch.zeros(1, 1, 2)], superpixels=labels
    )
    assert grouping.labels(0, (2, 4)).tolist() == [[[count - 1] * 2 + [count - 2] * 2] * 2]


# --- invariants of every grouping -----------------------------------------------------------------------------------


@every_kind
def test_invariants(make) -> None:
    assert_invariants(make(), SIZES)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_entropy_is_zero_when_hard_and_log_groups_when_undecided() -> None:
    hard = torch.eye(5)[torch.tensor([0, 3, 4, 4])].expand(2, 1, -1, -1)
    undecided = torch.full((2, 1, 5, 8), 1 / 8)
    grouping = Grouping(assignments=[hard, undecided], tokens=[torch.zeros(2, 5, 1), torch.zeros(2, 8, 1)], grid=(2, 2))
    first, second = grouping.entropy()
    assert first.tolist() == [0, 0]
    assert torch.allclose(second, torch.full((2,), math.log(8)))


def test_head_takes_one_head_of_every_level() -> None:
    grouping = random_grouping(heads=3)
    for index in (0, 2, -1):
        alone = grouping.head(index)
        for whole, part in zip(grouping.assignments, alone.assignments, strict=True):
            assert torch.equal(part[:, 0], whole[:, index])
        assert torch.equal(alone.labels(1), grouping.assignments[0][:, index].argmax(-1).unflatten(1, (3, 4)))
    for index in (3, -4):
        with pytest.raises(ValueError, match="head"):
            grouping.head(index)


def test_parents_are_the_most_probable_coarser_groups() -> None:
    grouping = random_grouping()
    for level in (0, 1):
        expected = [[plain_group_above(grouping, b, n, level) for n in range((12, 5)[level])] for b in range(3)]
        assert grouping.parents(level).tolist() == expected
    assert torch.equal(grouping.parents(-2), grouping.parents(1))
    with pytest.raises(ValueError, match="coarsest"):
        grouping.parents(-1)


def plain_group_above(grouping: Grouping, image: int, group: int, level: int) -> int:
    scores = grouping.assignments[level][image].mean(0)[group].tolist()
    return scores.index(max(scores))


@every_kind
def test_indexing_takes_images(make) -> None:
    grouping = make()
    for part, index in ((grouping[1], slice(1, 2)), (grouping[-1], slice(2, 3)), (grouping[:2], slice(0, 2))):
        assert torch.equal(part.labels(size=(8, 9)), grouping.labels(size=(8, 9))[index])
        assert torch.equal(part.tokens[0], grouping.tokens[0][index])
        assert part.extent == grouping.extent
    for index in (3, -4):
        with pytest.raises(IndexError):
            grouping[index]
    assert len(list(grouping)) == 3


@every_kind
def test_to_casts_everything_but_superpixels(make) -> None:
    grouping = make().to("cpu", torch.float16)
    assert {t.dtype for t in [*grouping.assignments, *grouping.tokens]} == {torch.float16}
    assert grouping.labels().dtype == torch.int64
    assert torch.equal(grouping.labels(0), make().labels(0))
    assert make().to(device="cpu").assignments[0].dtype == torch.float64


def test_comparison_of_groupings_does_not_look_into_tensors() -> None:
    grouping = random_grouping()
    assert grouping == grouping
    assert grouping != random_grouping()


def test_level_outside_the_hierarchy_is_an_error() -> None:
    grouping = random_grouping()
    assert torch.equal(grouping.labels(-1), grouping.labels(2))
    assert [grouping.num_groups(level) for level in (0, 1, 2, -1, -3)] == [12, 5, 3, 3, 12]
    for level in (3, -4):
        with pytest.raises(ValueError, match="level: expected -3 to 2"):
            grouping.labels(level)


def parts(**changes: object) -> dict[str, object]:
    base = dict(
        assignments=[torch.ones(2, 1, 6, 1), torch.ones(2, 1, 1, 1)],
        tokens=[torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)],
        grid=(2, 3),
    )
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(assignments=[], tokens=[]), "at least one assignment"),
        (dict(grid=None), "either `grid` or `superpixels`"),
        (dict(superpixels=torch.zeros(2, 4, 4, dtype=torch.int64)), "either `grid` or `superpixels`"),
        (dict(tokens=[torch.zeros(2, 1, 4)]), "tokens of 2 levels"),
        (dict(assignments=[torch.ones(2, 1, 6, 2), torch.ones(2, 1, 1, 1)]), "starting where the one before ends"),
        (dict(assignments=[torch.ones(2, 6, 1), torch.ones(2, 1, 1)]), "got shapes"),
        (dict(grid=(2, 2)), "does not hold the 6 tokens"),
        (dict(tokens=[torch.zeros(2, 1, 4), torch.zeros(2, 3, 4)]), "tokens"),
        (dict(tokens=[torch.zeros(2, 1, 4), torch.zeros(1, 1, 4)]), "tokens"),
        (dict(grid=None, superpixels=torch.zeros(1, 4, 4, dtype=torch.int64)), "superpixels"),
        (dict(grid=None, superpixels=torch.zeros(2, 4, 4)), "superpixels"),
        (dict(extent=(0.0, 1.0)), "extent"),
        (dict(extent=(1.0, 1.5)), "extent"),
    ],
)
def test_parts_that_do_not_fit_together_are_an_error(changes: dict[str, object], message: str) -> None:
    Grouping(**parts())
    with pytest.raises(ValueError, match=message):
        Grouping(**parts(**changes))
