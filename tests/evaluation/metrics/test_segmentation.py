import math

import pytest
import torch
from torch import Tensor

from grouping_zoo.evaluation.metrics.segmentation import SegmentationMetric

NAMES = ["background", "cat", "dog", "cow"]


def random_labels(seed: int, classes: int, shape: tuple[int, ...] = (2, 9, 7)) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def updated(metric: SegmentationMetric, *pairs: tuple[Tensor, Tensor]) -> SegmentationMetric:
    for prediction, truth in pairs:
        metric.update(prediction, truth)
    return metric


@pytest.mark.parametrize("left_out", [None, 0])
def test_miou_is_that_of_a_plain_loop_over_the_whole_set(left_out: int | None) -> None:
    first, second = (random_labels(0, 4), random_labels(1, 4)), (random_labels(2, 3), random_labels(3, 2))
    metric = updated(SegmentationMetric(NAMES, left_out=left_out), first, second)
    found = metric.compute()
    pairs = [pair for both in (first, second) for pair in zip(*(one.flatten().tolist() for one in both), strict=True)]
    counted = [(p, t) for p, t in pairs if t != left_out]
    expected = []
    for label, name in enumerate(NAMES):
        if label == left_out:
            continue
        both = sum(p == label and t == label for p, t in counted)
        either = sum(p == label or t == label for p, t in counted)
        expected.append(100 * both / either)
        assert found[f"iou/{name}"] == pytest.approx(expected[-1])
    assert found["miou"] == metric.mean_iou() == pytest.approx(sum(expected) / len(expected))
    assert found["pixel_accuracy"] == pytest.approx(100 * sum(p == t for p, t in counted) / len(counted))


def test_classes_that_never_occur_do_not_count() -> None:
    truth = random_labels(0, 2)
    found = updated(SegmentationMetric(NAMES), (truth, truth)).compute()
    assert found["miou"] == 100
    assert math.isnan(found["iou/cow"])
    assert math.isnan(updated(SegmentationMetric(NAMES, left_out=0), (truth * 0, truth * 0)).mean_iou())


def test_ignored_pixels_do_not_count() -> None:
    truth = random_labels(0, 4)
    half = truth.clone()
    half[:, 4:] = 255
    prediction = torch.where(half == 255, (truth + 1) % 4, truth)
    found = updated(SegmentationMetric(NAMES, 255), (prediction, half)).compute()
    assert found["miou"] == found["pixel_accuracy"] == 100


def test_nothing_to_evaluate_and_shapes_that_differ_are_errors() -> None:
    with pytest.raises(ValueError, match="expected at least one labelled pixel, got none"):
        SegmentationMetric(NAMES).compute()
    with pytest.raises(ValueError, match=r"labels of the truth's shape \(2, 9, 7\), got \(2, 9, 8\)"):
        updated(SegmentationMetric(NAMES), (random_labels(0, 4, (2, 9, 8)), random_labels(0, 2)))
