import math

import numpy as np
import pytest
import torch

from grouping_zoo.evaluation.boundaries import boundary_map, boundary_score, evaluate_boundaries, known_truth
from grouping_zoo.evaluation.superpixel_quality import boundary_recall, evaluate_superpixels, under_segmentation_error

VOID = 255


def blocks(seed: int, labels: int, shape: tuple[int, int] = (14, 11), side: int = 4) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(labels, size=(shape[0] // side + 1, shape[1] // side + 1))
    return coarse.repeat(side, axis=0).repeat(side, axis=1)[: shape[0], : shape[1]]


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


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_boundary_score_is_that_of_plain_loops(tolerance: float) -> None:
    for seed in range(4):
        prediction, truth = blocks(seed, 3), blocks(seed + 10, 2, side=5)
        predicted, true = plain_boundary(prediction), plain_boundary(truth)
        assert [tuple(p) for p in np.argwhere(boundary_map(prediction))] == predicted
        score = boundary_score(prediction, torch.from_numpy(truth), tolerance=tolerance)
        assert score.precision == pytest.approx(100 * plain_matched(predicted, true, tolerance))
        assert score.recall == pytest.approx(100 * plain_matched(true, predicted, tolerance))
        assert score.f_measure == pytest.approx(plain_f_measure(predicted, true, tolerance))


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
    assert boundary_score(1 - truth, truth) == (100, 100, 100)
    assert boundary_score(far, truth) == (0, 0, 0)
    assert boundary_score(none, truth) == (100, 0, 0)
    assert boundary_score(truth, none) == (0, 100, 0)
    assert boundary_score(none, none) == (100, 100, 100)


def test_tolerance_is_a_distance_in_pixels() -> None:
    truth, shifted = (np.zeros((30, 30), dtype=np.int64) for _ in range(2))
    truth[:, 10:], shifted[:, 12:] = 1, 1
    assert boundary_score(shifted, truth, tolerance=2).f_measure == 100
    assert boundary_score(shifted, truth, tolerance=1.9).f_measure == 0
    # 0.75 % of the diagonal of 30 x 30, rounded up, is 1.
    assert boundary_score(shifted, truth).f_measure == 0


def test_a_band_without_label_hides_where_the_boundary_runs() -> None:
    truth = np.zeros((40, 40), dtype=np.int64)
    truth[:, 20:] = 1
    banded = truth.copy()
    banded[:, 18:22] = VOID
    assert (known_truth(banded, 3, VOID).labels == truth).all()
    assert boundary_score(truth, banded, tolerance=3, ignore_index=VOID).f_measure == 100
    noisy = truth.copy()
    noisy[3:30, 18:22] = 7  # predicted nonsense, all of it within the band
    assert boundary_score(noisy, banded, tolerance=1, ignore_index=VOID).precision == 100
    noisy[3:30, 17] = 7  # and one column beside it
    assert boundary_score(noisy, banded, tolerance=1, ignore_index=VOID).precision == 0


def test_an_unlabelled_half_has_no_boundary_to_find() -> None:
    truth = np.zeros((40, 40), dtype=np.int64)
    truth[:, :5] = 1
    truth[:, 10:] = VOID
    truth[:, 38:] = 1  # the middle between the labelled parts is 14 away from either
    prediction = np.zeros_like(truth)
    prediction[:, :5] = 1
    assert boundary_score(prediction, truth, tolerance=3, ignore_index=VOID) == (100, 100, 100)
    prediction[:, 20:30] = 2  # predicted where nothing is known
    assert boundary_score(prediction, truth, tolerance=3, ignore_index=VOID) == (100, 100, 100)


def test_classes_boundaries_are_those_of_plain_loops() -> None:
    predictions, truths = np.stack([blocks(s, 3) for s in range(3)]), np.stack([blocks(s + 5, 2) for s in range(3)])
    truths[2] = 1
    predictions[2] = 1
    expected: dict[int, list[float]] = {0: [], 1: [], 2: [], 3: []}
    for prediction, truth in zip(predictions, truths, strict=True):
        for label in np.union1d(prediction, truth).tolist():
            masks = plain_boundary(prediction == label), plain_boundary(truth == label)
            expected[label].append(plain_f_measure(*masks, 1.0))
    batches = [(torch.zeros(3, 3, 14, 11), torch.from_numpy(truths))]
    names = ["sky", "cat", "dog", "cow"]
    figures = evaluate_boundaries(lambda x: torch.from_numpy(predictions), batches, names, tolerance=1.0)
    for label, name in enumerate(names[:3]):
        assert figures[f"boundary_f/{name}"] == pytest.approx(np.mean(expected[label]))
    assert math.isnan(figures["boundary_f/cow"])
    assert figures["boundary_f"] == pytest.approx(np.mean([np.mean(expected[label]) for label in range(3)]))


def test_perfect_classes_give_100_and_strangers_0() -> None:
    truth = torch.from_numpy(blocks(0, 3))[None]
    batch = (torch.zeros(1, 3, 14, 11), truth)
    figures = evaluate_boundaries(lambda x: truth, [batch], ["a", "b", "c"])
    assert set(figures.values()) == {100}
    halves = torch.arange(40).expand(1, 40, 40)
    worst = evaluate_boundaries(
        lambda x: 2 + (halves > 30).long(), [(torch.zeros(1, 3, 40, 40), (halves > 8).long())], list("abcd")
    )
    assert set(worst.values()) == {0}


def test_unlabelled_images_and_what_is_predicted_there_do_not_count() -> None:
    truth = torch.from_numpy(blocks(1, 2)).repeat(2, 1, 1)
    truth[1] = VOID
    truth[0, :6] = VOID
    prediction = truth.clone()
    prediction[truth == VOID] = 2
    figures = evaluate_boundaries(
        lambda x: prediction, [(torch.zeros(2, 3, 14, 11), truth)], ["a", "b", "c"], ignore_index=VOID
    )
    assert math.isnan(figures["boundary_f/c"])
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        evaluate_boundaries(
            lambda x: prediction[1:], [(torch.zeros(1, 3, 14, 11), truth[1:])], ["a"], ignore_index=VOID
        )
    with pytest.raises(ValueError, match="expected 0 to 1 for 2 classes, got 2"):
        evaluate_boundaries(lambda x: prediction * 0 + 2, [(torch.zeros(2, 3, 14, 11), truth * 0)], ["a", "b"])


# --- superpixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("void", [False, True])
def test_boundary_recall_is_that_of_a_plain_loop(void: bool) -> None:
    for seed in range(4):
        superpixels, truth = blocks(seed, 9, side=3), blocks(seed + 20, 3, side=5)
        if void:
            truth[4:7, 3:6] = VOID
        found, true = plain_boundary(superpixels), plain_boundary(truth)
        if void:
            true = [(y, x) for y, x in true if VOID not in truth[y : y + 2, x : x + 2]]
        for radius in (0, 1, 2):
            near = [any(max(abs(y - v), abs(x - u)) <= radius for v, u in found) for y, x in true]
            recall = boundary_recall(superpixels, truth, radius=radius, ignore_index=VOID if void else None)
            assert recall == pytest.approx(100 * sum(near) / len(near))


@pytest.mark.parametrize("void", [False, True])
def test_under_segmentation_error_is_that_of_its_definition(void: bool) -> None:
    superpixels, truth = blocks(0, 9, side=3), blocks(20, 3, side=5)
    if void:
        truth[4:7, 3:6] = VOID
    counted = truth != VOID
    leak = 0
    for region in np.unique(truth[counted]):
        for superpixel in np.unique(superpixels[counted]):
            mine = (superpixels == superpixel) & counted
            if (mine & (truth == region)).any():
                leak += min((mine & (truth == region)).sum(), (mine & (truth != region)).sum())
    error = under_segmentation_error(superpixels, truth, VOID if void else None)
    assert error == pytest.approx(100 * leak / counted.sum())


def test_superpixels_of_one_pixel_are_perfect_and_one_superpixel_the_worst() -> None:
    truth = np.arange(64).reshape(8, 8) // 32
    pixels, whole = np.arange(64).reshape(8, 8), np.zeros((8, 8), dtype=np.int64)
    assert (boundary_recall(pixels, truth), under_segmentation_error(pixels, truth)) == (100, 0)
    assert (boundary_recall(whole, truth), under_segmentation_error(whole, truth)) == (0, 100)
    assert boundary_recall(whole, whole) == 100


def test_superpixel_figures_are_means_over_labelled_images() -> None:
    superpixels = torch.from_numpy(np.stack([blocks(seed, 9, side=3) for seed in range(3)]))
    truth = torch.from_numpy(np.stack([blocks(seed + 20, 3, side=5) for seed in range(3)]))
    truth[1] = VOID
    batches = [(torch.zeros(2, 3, 14, 11), truth[:2]), (torch.zeros(1, 3, 14, 11), truth[2:])]
    answers = iter([superpixels[:2], superpixels[2:]])
    figures = evaluate_superpixels(lambda x: next(answers), batches, ignore_index=VOID)
    recalls = [boundary_recall(superpixels[i], truth[i], ignore_index=VOID) for i in (0, 2)]
    assert figures["boundary_recall"] == pytest.approx(np.mean(recalls))
    assert figures["superpixels"] == np.mean([len(superpixels[i].unique()) for i in (0, 2)])
    with pytest.raises(ValueError, match="is the split empty"):
        evaluate_superpixels(lambda x: superpixels, [])
