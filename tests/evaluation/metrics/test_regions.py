import math
from itertools import combinations

import numpy as np
import pytest
import torch
from skimage.metrics import variation_of_information as skimage_variation_of_information
from torchmetrics.functional.clustering import adjusted_rand_score

from grouping_zoo.evaluation.metrics.regions import (
    adjusted_rand_index,
    assignment_entropies,
    best_overlaps,
    contingency,
    segmentation_covering,
    variation_of_information,
)

VOID = 255


def random_map(seed: int, labels: int, shape: tuple[int, int] = (9, 7)) -> np.ndarray:
    """Scattered labels with gaps, in blocks of two columns so that regions have some extent."""
    names = np.array([3, 11, 4, 0, 8, 250, 7, 5])
    columns = np.random.default_rng(seed).integers(labels, size=(shape[0], shape[1] // 2 + 1))
    return names[columns.repeat(2, axis=1)[:, : shape[1]]]


def with_void(truth: np.ndarray) -> np.ndarray:
    truth = truth.copy()
    truth[2, 1:5] = truth[0, 0] = truth[8, 6] = VOID
    return truth


def pixel_sets(labels: np.ndarray, counted: np.ndarray) -> dict[int, set[tuple[int, int]]]:
    sets: dict[int, set[tuple[int, int]]] = {}
    for place, label in np.ndenumerate(labels):
        if counted[place]:
            sets.setdefault(int(label), set()).add(place)
    return sets


CASES = [
    pytest.param(random_map(0, 4), random_map(1, 5), id="random"),
    pytest.param(random_map(2, 6), with_void(random_map(3, 3)), id="void"),
    pytest.param(np.zeros((9, 7), dtype=np.int64), with_void(random_map(4, 3)), id="one segment"),
    pytest.param(np.arange(63).reshape(9, 7), with_void(random_map(5, 3)), id="segments of one pixel"),
    pytest.param(random_map(6, 3), np.arange(63).reshape(9, 7), id="regions of one pixel"),
]


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_covering_is_that_of_its_definition(prediction: np.ndarray, truth: np.ndarray) -> None:
    segments, regions = pixel_sets(prediction, truth != VOID), pixel_sets(truth, truth != VOID)

    def cover(these: dict[int, set], others: dict[int, set]) -> float:
        pixels = sum(map(len, these.values()))
        return sum(len(a) * max(len(a & b) / len(a | b) for b in others.values()) for a in these.values()) / pixels

    covering = segmentation_covering(prediction, torch.from_numpy(truth), VOID)
    assert covering.of_truth == pytest.approx(100 * cover(regions, segments))
    assert covering.of_prediction == pytest.approx(100 * cover(segments, regions))


def test_the_same_partition_is_perfect_under_any_names() -> None:
    truth = with_void(random_map(7, 5))
    renamed = np.vectorize({label: 7 * i - 20 for i, label in enumerate(np.unique(truth))}.get)(truth)
    renamed[truth == VOID] = -20  # whatever is predicted there
    assert segmentation_covering(renamed, truth, VOID) == (100, 100)
    assert adjusted_rand_index(renamed, truth, VOID) == 100
    assert variation_of_information(renamed, truth, VOID) == (0, 0)


def test_scores_of_useless_segments_are_those_of_chance() -> None:
    truth = np.arange(64).reshape(8, 8) // 32
    assert adjusted_rand_index(np.zeros_like(truth), truth) == 0
    assert adjusted_rand_index(np.arange(64).reshape(8, 8), truth) == 0
    assert variation_of_information(np.zeros_like(truth), truth) == (0, 1)
    assert variation_of_information(np.arange(64).reshape(8, 8), truth) == (5, 0)
    assert segmentation_covering(np.zeros_like(truth), truth) == (50, 50)
    assert segmentation_covering(np.arange(64).reshape(8, 8), truth).of_truth == pytest.approx(100 / 32)


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_rand_index_is_that_of_counted_pairs_and_torchmetrics(prediction: np.ndarray, truth: np.ndarray) -> None:
    counted = truth != VOID
    pairs = list(combinations(zip(prediction[counted].tolist(), truth[counted].tolist(), strict=True), 2))
    both = sum(a[0] == b[0] and a[1] == b[1] for a, b in pairs)
    predicted, true = sum(a[0] == b[0] for a, b in pairs), sum(a[1] == b[1] for a, b in pairs)
    chance = predicted * true / len(pairs)
    expected = (both - chance) / ((predicted + true) / 2 - chance)
    score = adjusted_rand_index(prediction, truth, VOID)
    assert score == pytest.approx(100 * expected, abs=1e-9)
    reference = adjusted_rand_score(torch.from_numpy(prediction[counted]), torch.from_numpy(truth[counted]))
    assert score == pytest.approx(100 * float(reference), abs=1e-3)


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_variation_of_information_is_scikit_images(prediction: np.ndarray, truth: np.ndarray) -> None:
    counted = truth != VOID
    split, merged = skimage_variation_of_information(truth[counted], prediction[counted])
    found = variation_of_information(prediction, truth, VOID)
    assert found.split == pytest.approx(split, abs=1e-9)
    assert found.merged == pytest.approx(merged, abs=1e-9)


def test_contingency_counts_pixels() -> None:
    prediction, truth = random_map(8, 3), with_void(random_map(9, 4))
    counts, regions = contingency(prediction, truth, VOID)
    for row, segment in enumerate(np.unique(prediction)):
        for column, region in enumerate(regions):
            assert counts[row, column] == ((prediction == segment) & (truth == region)).sum()
    assert VOID not in regions


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((3, 3), int), np.zeros((3, 4), int), r"expected labels of the truth's shape \(3, 4\)"),
        (np.zeros((3, 3)), np.zeros((3, 3), int), "prediction: expected integer labels"),
        (np.zeros((3, 3), int), np.zeros((1, 3, 3), int), "truth: expected integer labels"),
        (np.zeros((3, 3), int), np.full((3, 3), VOID), "at least one labelled pixel"),
    ],
)
def test_unfitting_maps_are_errors(prediction: np.ndarray, truth: np.ndarray, message: str) -> None:
    for metric in (segmentation_covering, adjusted_rand_index, variation_of_information):
        with pytest.raises(ValueError, match=message):
            metric(prediction, truth, VOID)


def test_covering_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="levels: expected at least one"):
        best_overlaps([], np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="beside the background 0"):
        best_overlaps([np.zeros((2, 2), int)], np.zeros((2, 2), int), background=0)


def test_entropies_are_those_of_a_plain_loop() -> None:
    assignment = (3 * torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(3))).softmax(-1)
    marginal, conditional = assignment_entropies(assignment)
    for image in range(2):
        for head in range(3):
            rows = assignment[image, head].tolist()
            mean = [sum(row[group] for row in rows) / 7 for group in range(4)]
            assert float(marginal[image, head]) == pytest.approx(-sum(p * math.log(p) for p in mean), abs=1e-5)
            entropies = [-sum(p * math.log(p) for p in row) for row in rows]
            assert float(conditional[image, head]) == pytest.approx(sum(entropies) / 7, abs=1e-5)
    assert (conditional <= marginal).all()


def test_entropies_of_collapsed_even_and_undecided_groupings() -> None:
    collapsed = torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 8, 4)
    assert [float(e) for e in assignment_entropies(collapsed)] == [0, 0]
    even = torch.eye(4).repeat(2, 1)[None, None]
    assert [float(e) for e in assignment_entropies(even)] == [pytest.approx(math.log(4)), 0]
    undecided = torch.full((1, 1, 8, 4), 0.25)
    assert [float(e) for e in assignment_entropies(undecided)] == [pytest.approx(math.log(4))] * 2
