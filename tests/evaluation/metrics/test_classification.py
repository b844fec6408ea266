import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from grouping_zoo.evaluation.metrics.classification import PresentClassAccuracy, TopKAccuracy, top_k_accuracy


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(40, 7, generator=generator), torch.randint(7, (40,), generator=generator)
    expected = 100 * top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=range(7))
    assert top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_top_k_of_perfect_worst_and_few_classes() -> None:
    scores, labels = torch.eye(3), torch.arange(3)
    assert top_k_accuracy(scores, labels) == 100
    assert top_k_accuracy(-scores, labels) == 0
    assert top_k_accuracy(-scores, labels, 5) == 100


@pytest.mark.parametrize("classes", [5, 7])
def test_batches_are_counted_together(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(9, classes, generator=generator), torch.randint(classes, (9,), generator=generator)
    metric = TopKAccuracy()
    for rows in (slice(0, 6), slice(6, 9)):
        metric.update(scores[rows], labels[rows])
    expected = {f"top{k}": top_k_accuracy(scores, labels, k) for k in (1, 5) if k == 1 or classes > 5}
    assert metric.compute() == pytest.approx(expected)
    with pytest.raises(ValueError, match="is the split empty"):
        TopKAccuracy().compute()


def test_any_object_that_is_there_is_right() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    present = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]]).bool()
    metric = PresentClassAccuracy()
    metric.update(probabilities[:2], present[:2])
    metric.update(probabilities[2:], present[2:])
    assert metric.compute() == {"classification": 50}, "the last one, without a class, does not count"
    with pytest.raises(ValueError, match="expected images with a class"):
        PresentClassAccuracy().compute()
