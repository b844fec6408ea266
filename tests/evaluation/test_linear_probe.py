import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from features import blobs
from grouping_zoo.evaluation.linear_probe import LINEAR_PROBES, LinearProbeSettings, _train_linear, linear_probe


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_probe_reaches_logistic_regression() -> None:
    (train, labels), (test, truth) = blobs(600, 4), blobs(400, 5)
    scaled, shifted = (x * torch.logspace(-2, 2, 6) + 3 for x in (train, test))
    reference = LogisticRegression(C=1e4, max_iter=1000).fit(train.numpy(), labels.numpy())
    expected = 100 * reference.score(test.numpy(), truth.numpy())
    found = linear_probe(scaled, labels, shifted, truth)
    assert 50 < expected < 99
    assert found["top1"] == pytest.approx(expected, abs=1.5)
    assert found["top5"] == 100
    assert found["learning_rate"] in LINEAR_PROBES["sweep"].learning_rates


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
