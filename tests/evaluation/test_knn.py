import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from features import blobs
from grouping_zoo.evaluation.knn import knn_scores
from grouping_zoo.evaluation.metrics.classification import top_k_accuracy


def knn_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, **settings: Any) -> float:
    return top_k_accuracy(knn_scores(train, labels, test, num_classes=10, **settings), truth)


def plain_knn(train: Tensor, labels: Tensor, test: Tensor, neighbours: int, temperature: float) -> list[dict]:
    """DINO's vote from its definition, in double precision."""
    votes = []
    for row in test.double():
        similar = [float(row @ other / row.norm() / other.norm()) for other in train.double()]
        nearest = sorted(range(len(train)), key=lambda i: -similar[i])[:neighbours]
        vote: dict[int, float] = {}
        for i in nearest:
            vote[int(labels[i])] = vote.get(int(labels[i]), 0) + math.exp(similar[i] / temperature)
        votes.append(vote)
    return votes


def test_knn_votes_are_those_of_a_plain_loop() -> None:
    (train, labels), (test, truth) = blobs(50, 0), blobs(21, 1)
    scores = knn_scores(train, labels, test, neighbours=7, temperature=0.2)
    expected = plain_knn(train, labels, test, 7, 0.2)
    for row, vote in zip(scores, expected, strict=True):
        total = sum(vote.values())
        for label in range(4):
            assert float(row[label] / row.sum()) == pytest.approx(vote.get(label, 0) / total, abs=1e-5)
    hits = [max(vote, key=lambda label: vote[label]) == int(t) for vote, t in zip(expected, truth, strict=True)]
    accuracy = knn_accuracy(train, labels, test, truth, neighbours=7, temperature=0.2)
    assert accuracy == pytest.approx(100 * sum(hits) / len(hits))


def test_knn_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grouping_zoo.evaluation.knn.SIMILARITIES_AT_ONCE", 1000)  # several chunks
    (train, labels), (test, truth) = blobs(200, 2, spread=2.0), blobs(77, 3, spread=2.0)
    reference = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    expected = 100 * reference.fit(train.numpy(), labels.numpy()).score(test.numpy(), truth.numpy())
    assert 25 < expected < 100
    assert knn_accuracy(train, labels, test, truth) == pytest.approx(expected)


def test_knn_of_perfect_worst_tiny_and_unseen() -> None:
    features, labels = torch.eye(3), torch.arange(3)
    assert knn_accuracy(features, labels, features, labels) == 100  # 20 neighbours asked, 3 there
    assert knn_accuracy(features, labels, features, labels.roll(1)) == 0
    assert knn_accuracy(features[:1], labels[:1], features[:1], labels[:1]) == 100
    assert knn_accuracy(features, labels, features[2:], torch.tensor([9])) == 0
    assert knn_accuracy(1e3 * features, labels, features, labels, temperature=1e-3) == 100
    assert knn_scores(features, labels, features, num_classes=11).shape == (3, 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_features": torch.zeros(3, 5)}, r"features: expected \(N, D\)"),
        ({"test_features": torch.zeros(0, 3)}, r"features: expected \(N, D\) of training .* none of them empty"),
        ({"train_labels": torch.zeros(2).long()}, "train_labels: expected a class number for each of the 3"),
        ({"train_labels": torch.tensor([0, 1, -1])}, "train_labels: expected 0 to L - 1, got -1 to 1"),
        ({"num_classes": 2}, "expected 0 to 1, got 0 to 2"),
        ({"neighbours": 0}, "neighbours, temperature: expected at least 1"),
        ({"temperature": 0.0}, "neighbours, temperature: expected at least 1"),
    ],
)
def test_unfitting_knn_arguments_are_errors(change: dict[str, Any], message: str) -> None:
    arguments = dict(train_features=torch.eye(3), train_labels=torch.arange(3), test_features=torch.eye(3))
    with pytest.raises(ValueError, match=message):
        knn_scores(**{**arguments, **change})
