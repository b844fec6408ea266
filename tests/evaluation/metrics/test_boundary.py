import math

import numpy as np
import pytest
import torch

from grouping_zoo.evaluation.metrics.boundary import (
    BoundaryMetric,
    BoundaryScore,
    boundary_map,
    boundary_score,
    default_tolerance,
    known_truth,
)

VOID = 255


def blocks(seed: int, labels: int, shape: tuple[int, int] = (14, 11), side: int = 4) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(labels, size=(shape[0] // side + 1, shape[1] // side + 1))
    return coarse.repeat(side, axis=0).repeat(side, axis=1)[: shape[0], : shape[1]]


def score(prediction: np.ndarray, truth: np.ndarray, tolerance: float | None = None) -> BoundaryScore:
    reach = default_tolerance(truth.shape) if tolerance is None else tolerance
    return boundary_score(prediction, known_truth(truth, reach, VOID), reach)


def plain_boundary(labels: np.ndarray) -> list[tuple[int, int]]:
    height, width = labels.shape
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if any(
            y + dy < height and x + dx < width and labels[y + dy, x + dx] != labels[y, x]
            for dy, dx in ((0, 1), (1, 0), (1, 1))
        )
    ]


def plain_matched(these: list, others: list, tolerance: float) -> float:
    if not these:
        return 1.0
    return sum(any(math.dist(a, b) <= tolerance for b in others) for a in these) / len(these)


def plain_f_measure(predicted: list, true: list, tolerance: float) -> float:
    precision, recall = plain_matched(predicted, true, tolerance), plain_matched(true, predicted, tolerance)
    return 100 * 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def computed(metric: BoundaryMetric, prediction: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    metric.update(prediction, truth)
    return metric.compute()


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_boundary_score_is_that_of_plain_loops(tolerance: float) -> None:
    for seed in range(4):
        prediction, truth = blocks(seed, 3), blocks(seed + 10, 2, side=5)
        predicted, true = plain_boundary(prediction), plain_boundary(truth)
        assert [tuple(p) for p in np.argwhere(boundary_map(prediction))] == predicted
        found = score(prediction, truth, tolerance)
        assert found.precision == pytest.approx(100 * plain_matched(predicted, true, tolerance))
        assert found.recall == pytest.approx(100 * plain_matched(true, predicted, tolerance))
        assert found.f_measure == pytest.approx(plain_f_measure(predicted, true, tolerance))


def test_one_pixel_segment_has_a_boundary() -> None:
    labels = np.zeros((5, 5), dtype=np.int64)
    labels[2, 2] = 1
    assert {tuple(p) for p in np.argwhere(boundary_map(labels))} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    labels = np.zeros((5, 5), dtype=np.int64)
    labels[4, 4] = 1
    assert {tuple(p) for p in np.argwhere(boundary_map(labels))} == {(3, 3), (3, 4), (4, 3)}


def test_perfect_far_and_missing_boundaries() -> None:
    truth = np.zeros((40, 40), dtype=np.int64)
    truth[:, 8:] = 1
    far = np.zeros_like(truth)
    far[:, 30:] = 1
    none = np.zeros_like(truth)
    assert score(1 - truth, truth) == (100, 100, 100)
    assert score(far, truth) == (0, 0, 0)
    assert score(none, truth) == (100, 0, 0)
    assert score(truth, none) == (0, 100, 0)
    assert score(none, none) == (100, 100, 100)


def test_tolerance_is_a_distance_in_pixels() -> None:
    truth, shifted = (np.zeros((30, 30), dtype=np.int64) for _ in range(2))
    truth[:, 10:], shifted[:, 12:] = 1, 1
    assert score(shifted, truth, 2).f_measure == 100
    assert score(shifted, truth, 1.9).f_measure == 0
    # 0.75 % of the diagonal of 30 x 30, rounded up, is 1.
    assert score(shifted, truth).f_measure == 0


def test_a_band_without_label_hides_where_the_boundary_runs() -> None:
    truth = np.zeros((40, 40), dtype=np.int64)
    truth[:, 20:] = 1
    banded = truth.copy()
    banded[:, 18:22] = VOID
    assert (known_truth(banded, 3, VOID).labels == truth).all()
    assert score(truth, banded, 3).f_measure == 100
    noisy = truth.copy()
    noisy[3:30, 18:22] = 7  # predicted nonsense, all of it within the band
    assert score(noisy, banded, 1).precision == 100
    noisy[3:30, 17] = 7  # and one column beside it
    assert score(noisy, banded, 1).precision == 0


def test_an_unlabelled_half_has_no_boundary_to_find() -> None:
    truth = np.zeros((40, 40), dtype=np.int64)
    truth[:, :5] = 1
    truth[:, 10:] = VOID
    truth[:, 38:] = 1  # the middle between the labelled parts is 14 away from either
    prediction = np.zeros_like(truth)
    prediction[:, :5] = 1
    assert score(prediction, truth, 3) == (100, 100, 100)
    prediction[:, 20:30] = 2  # predicted where nothing is known
    assert score(prediction, truth, 3) == (100, 100, 100)


def test_classes_boundaries_are_those_of_plain_loops() -> None:
    predictions, truths = np.stack([blocks(s, 3) for s in range(3)]), np.stack([blocks(s + 5, 2) for s in range(3)])
    truths[2] = 1
    predictions[2] = 1
    expected: dict[int, list[float]] = {0: [], 1: [], 2: [], 3: []}
    for prediction, truth in zip(predictions, truths, strict=True):
        for label in np.union1d(prediction, truth).tolist():
            masks = plain_boundary(prediction == label), plain_boundary(truth == label)
            expected[label].append(plain_f_measure(*masks, 1.0))
    names = ["sky", "cat", "dog", "cow"]
    found = computed(BoundaryMetric(names, tolerance=1.0), torch.from_numpy(predictions), torch.from_numpy(truths))
    for label, name in enumerate(names[:3]):
        assert found[f"boundary_f/{name}"] == pytest.approx(np.mean(expected[label]))
    assert "boundary_f/cow" not in found
    assert found["boundary_f"] == pytest.approx(np.mean([np.mean(expected[label]) for label in range(3)]))


def test_perfect_classes_give_100_and_absent_ones_0() -> None:
    truth = torch.from_numpy(blocks(0, 3))[None]
    assert set(computed(BoundaryMetric(["a", "b", "c"]), truth, truth).values()) == {100}
    halves = torch.arange(40).expand(1, 40, 40)
    worst = computed(BoundaryMetric(list("abcd")), 2 + (halves > 30).long(), (halves > 8).long())
    assert set(worst.values()) == {0}


def test_unlabelled_images_and_what_is_predicted_there_do_not_count() -> None:
    truth = torch.from_numpy(blocks(1, 2)).repeat(2, 1, 1)
    truth[1] = VOID
    truth[0, :6] = VOID
    prediction = truth.clone()
    prediction[truth == VOID] = 2
    metric = BoundaryMetric(["a", "b", "c"], VOID)
    assert "boundary_f/c" not in computed(metric, prediction, truth)
    with pytest.raises(ValueError, match="an image with a labelled pixel"):
        computed(BoundaryMetric(["a"], VOID), prediction[1:], truth[1:])
    with pytest.raises(ValueError, match="expected 0 to 1 for 2 classes, got 0 to 2"):
        computed(BoundaryMetric(["a", "b"], VOID), prediction * 0 + 2, truth * 0)
    with pytest.raises(ValueError, match=r"labels of the truth's shape \(14, 11\), got \(14, 10\)"):
        computed(metric, prediction[..., 1:], truth)
