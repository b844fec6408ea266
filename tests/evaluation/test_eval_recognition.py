import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from grouping_zoo.evaluation.recognition import (
    LINEAR_PROBES,
    LinearProbeSettings,
    _train_linear,
    extract_features,
    knn_accuracy,
    knn_scores,
    linear_probe,
    top_k_accuracy,
)
from zoo import MODELS


def blobs(images: int, seed: int, classes: int = 4, width: int = 6, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features around one centre a class; the centres are the same for every seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    return centres[labels] + spread * torch.randn(images, width, generator=generator), labels


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- features -------------------------------------------------------------------------------------------------------


def test_features_of_a_timm_model_are_those_before_its_head() -> None:
    model = timm.create_model("resnet10t", num_classes=7)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.train()
    model.bn1.eval()
    batched = extract_features(model, [images[:2], {"pixel_values": images[2:], "label": torch.zeros(3)}])
    assert model.training
    assert model.layer1.training
    assert not model.bn1.training
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    assert batched.shape == (5, model.num_features)
    torch.testing.assert_close(batched, expected)
    torch.testing.assert_close(extract_features(model, images), expected)
    assert not batched.requires_grad


def test_superpixels_reach_the_model() -> None:
    def mean_label(images: Tensor, superpixels: Tensor) -> Tensor:
        return superpixels.double().mean(dim=(1, 2))[:, None]

    superpixels = torch.arange(2 * 4 * 4).view(2, 4, 4)
    batch = {"pixel_values": torch.zeros(2, 3, 4, 4), "superpixels": superpixels}
    features = extract_features(mean_label, [batch, batch])
    assert features.dtype == torch.float32
    assert features.flatten().tolist() == [7.5, 23.5, 7.5, 23.5]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.case)
def test_models_of_the_zoo_give_features(model: Any) -> None:
    network = model.create(num_classes=0)
    assert extract_features(network, model.images(2)).shape == (2, network.num_features)


def test_a_module_without_a_timm_head_is_called() -> None:
    images = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(extract_features(nn.Flatten(), images), images.flatten(1))


def test_maps_and_no_images_are_errors() -> None:
    with pytest.raises(ValueError, match=r"one feature an image, \(2, D\), got \(2, 3, 4, 4\)"):
        extract_features(lambda x: x, torch.zeros(2, 3, 4, 4))
    for empty in ([], torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ValueError, match="is the split empty"):
            extract_features(lambda x: x.flatten(1), empty)


# --- top-k ----------------------------------------------------------------------------------------------------------


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


# --- nearest neighbours ---------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("grouping_zoo.evaluation.recognition.SIMILARITIES_AT_ONCE", 1000)  # several chunks
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
        ({"test_features": torch.zeros(0, 3), "test_labels": torch.zeros(0).long()}, "is the split empty"),
        ({"train_labels": torch.zeros(2).long()}, "train_labels: expected a class number for each of the 3"),
        ({"test_labels": torch.tensor([0, 1, -1])}, "test_labels: expected 0 to L - 1, got -1 to 1"),
        ({"num_classes": 2}, "expected 0 to 1, got 0 to 2"),
        ({"neighbours": 0}, "neighbours, temperature: expected at least 1"),
        ({"temperature": 0.0}, "neighbours, temperature: expected at least 1"),
    ],
)
def test_unfitting_knn_arguments_are_errors(change: dict[str, Any], message: str) -> None:
    features, labels = torch.eye(3), torch.arange(3)
    arguments = dict(train_features=features, train_labels=labels, test_features=features, test_labels=labels)
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**{**arguments, **change})


# --- linear probe ---------------------------------------------------------------------------------------------------


def test_probe_reaches_logistic_regression() -> None:
    (train, labels), (test, truth) = blobs(600, 4), blobs(400, 5)
    scaled, shifted = (x * torch.logspace(-2, 2, 6) + 3 for x in (train, test))
    reference = LogisticRegression(C=1e4, max_iter=1000).fit(train.numpy(), labels.numpy())
    expected = 100 * reference.score(test.numpy(), truth.numpy())
    figures = linear_probe(scaled, labels, shifted, truth)
    assert 50 < expected < 99
    assert figures["top1"] == pytest.approx(expected, abs=1.5)
    assert figures["top5"] == 100
    assert figures["learning_rate"] in LINEAR_PROBES["sweep"].learning_rates


def test_probe_takes_the_steps_of_its_definition() -> None:
    train, labels = blobs(24, 6, classes=3)
    settings = LinearProbeSettings(
        learning_rates=(0.5,), epochs=3, batch_size=24, momentum=0.9, weight_decay=0.01, standardize=False
    )
    generator = torch.Generator().manual_seed(1)
    weight = 0.01 * torch.randn(3, 6, generator=generator).double()
    bias = torch.zeros(3).double()
    velocity = torch.zeros(3, 7).double()
    for epoch in range(3):
        gradient = torch.zeros(3, 7).double()
        for x, y in zip(train.double(), labels, strict=True):
            error = (weight @ x + bias).softmax(0) - torch.eye(3)[y]
            gradient += torch.cat([error[:, None] * x, error[:, None]], dim=1) / 24
        gradient += 0.01 * torch.cat([weight, bias[:, None]], dim=1)
        velocity = 0.9 * velocity + gradient
        rate = 0.5 * (1 + math.cos(math.pi * epoch / 3)) / 2
        weight, bias = weight - rate * velocity[:, :6], bias - rate * velocity[:, 6]
    trained = _train_linear(train, labels, 3, [0.1, 0.5], settings, seed=1)[1]
    torch.testing.assert_close(trained.weight.double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.bias.double(), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "batch_size"),
    [("cast-in1k", 30.0, 90, 1024), ("cast-in100", 0.8, 90, 256), ("pgt-in1k", 0.004, 100, 1024)],
)
def test_published_probes_take_the_steps_of_plain_sgd(
    name: str, rate: float, epochs: int, batch_size: int, double_precision: None
) -> None:
    published = LINEAR_PROBES[name]
    assert (published.epochs, published.batch_size, published.standardize) == (epochs, batch_size, False)
    settings = dataclasses.replace(published, epochs=3)  # steps so large do not settle
    train, labels = blobs(batch_size + 76, 7, classes=3)
    generator = torch.Generator().manual_seed(2)
    table = torch.cat([0.01 * torch.randn(3, 6, generator=generator), torch.zeros(3, 1)], dim=1)
    velocity = torch.zeros_like(table)
    inputs = torch.cat([train, torch.ones(len(train), 1)], dim=1)
    for epoch in range(3):
        order = torch.randperm(len(train), generator=generator)
        for rows in (order[:batch_size], order[batch_size:]):
            error = (inputs[rows] @ table.T).softmax(dim=1) - torch.eye(3)[labels[rows]]
            velocity = 0.9 * velocity + error.T @ inputs[rows] / len(rows)
            table = table - rate * (1 + math.cos(math.pi * epoch / 3)) / 2 * velocity
    (trained,) = _train_linear(train, labels, 3, list(settings.learning_rates), settings, seed=2)
    torch.testing.assert_close(trained.weight, table[:, :6])
    torch.testing.assert_close(trained.bias, table[:, 6])


def test_probe_is_repeatable_and_leaves_the_global_random_state() -> None:
    (train, labels), (test, truth) = blobs(60, 8), blobs(30, 9)
    settings = dataclasses.replace(LINEAR_PROBES["sweep"], epochs=5)
    before = torch.get_rng_state()
    first = linear_probe(train, labels, test, truth, settings=settings)
    assert linear_probe(train, labels, test, truth, settings=settings) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_sweep_passes_over_a_rate_that_diverges() -> None:
    train, labels = blobs(80, 10)
    settings = LinearProbeSettings(learning_rates=(0.01, 1e30), epochs=5, batch_size=16)
    assert linear_probe(train, labels, train, labels, settings=settings)["learning_rate"] == 0.01
    with pytest.raises(FloatingPointError, match="diverged"):
        linear_probe(1e30 * train, labels, train, labels, settings=LINEAR_PROBES["cast-in1k"])


def test_extracted_features_can_be_probed() -> None:
    images, labels = torch.eye(12).view(12, 3, 2, 2), torch.arange(12) % 3
    features = extract_features(nn.Flatten(), images)
    assert linear_probe(features, labels, features, labels, settings=LINEAR_PROBES["cast-in100"])["top1"] == 100


def test_separable_features_give_100_and_wrong_labels_0() -> None:
    features, labels = torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8)
    assert linear_probe(features, labels, features, labels)["top1"] == 100
    assert linear_probe(features, labels, features, (labels + 1) % 4)["top1"] == 0
    for name in ("cast-in1k", "cast-in100"):
        assert linear_probe(features, labels, features, labels, settings=LINEAR_PROBES[name])["top1"] == 100


def test_a_constant_feature_and_one_image_do_not_break_the_probe() -> None:
    features = torch.cat([torch.eye(2), torch.full((2, 1), 5.0)], dim=1)
    settings = LinearProbeSettings(learning_rates=(0.1,))
    assert linear_probe(features, torch.arange(2), features, torch.arange(2), settings=settings)["top1"] == 100
    one = torch.ones(1, 3), torch.zeros(1).long()
    assert linear_probe(*one, *one, settings=settings)["top1"] == 100
    with pytest.raises(ValueError, match="at least 2 images"):
        linear_probe(*one, *one)


@pytest.mark.parametrize(
    "setting", [{"learning_rates": ()}, {"learning_rates": (0.1, 0.0)}, {"epochs": 0}, {"held_out": 1.0}]
)
def test_probe_settings_out_of_range_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        LinearProbeSettings(**setting)
