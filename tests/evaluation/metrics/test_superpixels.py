import numpy as np
import pytest
import torch

from grouping_zoo.evaluation.metrics.superpixels import SuperpixelMetric, boundary_recall, under_segmentation_error

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


def test_superpixels_are_averaged_over_labelled_images() -> None:
    superpixels = torch.from_numpy(np.stack([blocks(seed, 9, side=3) for seed in range(3)]))
    truth = torch.from_numpy(np.stack([blocks(seed + 20, 3, side=5) for seed in range(3)]))
    truth[1] = VOID
    metric = SuperpixelMetric(VOID)
    metric.update(superpixels[:2], truth[:2])
    metric.update(superpixels[2:], truth[2:])
    found = metric.compute()
    for function in (boundary_recall, under_segmentation_error):
        expected = [function(superpixels[i], truth[i], ignore_index=VOID) for i in (0, 2)]
        assert found[function.__name__] == pytest.approx(np.mean(expected))
    assert found["superpixels"] == np.mean([len(superpixels[i].unique()) for i in (0, 2)])
    with pytest.raises(ValueError, match="is the split empty"):
        SuperpixelMetric().compute()
