import math
from typing import Any

import pytest
import timm
import torch

from grouping_zoo.data.sampling import EndlessSampler
from grouping_zoo.evaluation.dense_transfer import (
    DENSE_TRANSFERS,
    DenseHead,
    TransferSettings,
    level_features,
    pixel_cross_entropy,
    train_head,
)
from zoo import with_random_weights

VOID = 255
SEPARABLE = TransferSettings(head="linear", steps=60, batch_size=4, optimizer="adamw", learning_rate=0.1)


def test_a_linear_head_takes_the_steps_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    features = 3 + 2 * torch.randn(5, 3, 2, 2, generator=generator)
    masks = torch.randint(4, (5, 2, 2), generator=generator)
    masks[1, 0], masks[3] = VOID, VOID
    settings = TransferSettings(head="linear", steps=7, batch_size=2, learning_rate=0.5, weight_decay=0.01)
    head = train_head(features, masks, 4, settings, ignore_index=VOID, seed=3)

    pixels = features.double().movedim(1, 3)  # (5, 2, 2, 3)
    flat = pixels.flatten(0, 2)
    pixels = (pixels - flat.mean(dim=0)) / flat.std(dim=0, correction=0)
    start = DenseHead(torch.zeros(3), torch.ones(3), 4, seed=3).layers[0]
    weight, bias = (value.detach().double().view(4, -1) for value in (start.weight, start.bias))
    table = torch.cat([weight, bias], dim=1)
    velocity = torch.zeros_like(table)
    batches = iter(EndlessSampler(5, 2, 3))
    for step in range(7):
        gradient, count = torch.zeros_like(table), 0
        for _, index in next(batches):
            for row in range(2):
                for column in range(2):
                    if masks[index, row, column] == VOID:
                        continue
                    x = torch.cat([pixels[index, row, column], torch.ones(1).double()])
                    error = (table @ x).softmax(0) - torch.eye(4)[masks[index, row, column]]
                    gradient += error[:, None] * x
                    count += 1
        velocity = 0.9 * velocity + gradient / max(count, 1) + 0.01 * table
        table = table - 0.5 * (1 - step / 7) ** 0.9 * velocity
    torch.testing.assert_close(head.layers[0].weight.double().view(4, 3), table[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.layers[0].bias.double(), table[:, 3], rtol=1e-4, atol=1e-5)


def test_two_layers_are_two_convolutions_of_standardized_features() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.0])
    head = DenseHead(mean, std, 3, hidden=True, seed=1)
    with_random_weights(head.layers)
    features = torch.tensor([[3.0, -2.0], [0.0, -2.0]])
    first, second = head.layers[0], head.layers[2]
    for feature in features:
        x = torch.stack([(feature[0] - 1) / 2, torch.zeros(())])
        hidden = (first.weight[:, :, 0, 0] @ x + first.bias).clamp(min=0)
        expected = second.weight[:, :, 0, 0] @ hidden + second.bias
        torch.testing.assert_close(head(feature[None, :, None, None]).flatten(), expected)


def test_levels_lie_side_by_side_at_the_size_of_the_largest() -> None:
    network = timm.create_model("resnet10t", num_classes=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        third, last = network.forward_intermediates(images, indices=2, intermediates_only=True)  # 4 and 2 cells a side
    found = level_features(network, images, 2)
    torch.testing.assert_close(found[:, : third.shape[1]], third)
    # A corner has one coarse cell; the next cell lies a quarter of the way to the other one.
    torch.testing.assert_close(found[:, third.shape[1] :, 0, 0], last[:, :, 0, 0])
    torch.testing.assert_close(found[:, third.shape[1] :, 0, 1], 0.75 * last[:, :, 0, 0] + 0.25 * last[:, :, 0, 1])
    everything = level_features(network, images, 99)
    assert everything.shape[1] == sum(level["num_chs"] for level in network.feature_info)


def test_pixel_cross_entropy_is_the_mean_over_pixels_that_count() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[[0, VOID], [2, 1]], [[VOID, VOID], [VOID, 1]]])
    losses = []
    for image in range(2):
        for row in range(2):
            for column in range(2):
                if (label := int(masks[image, row, column])) != VOID:
                    scores = logits[image, :, row, column].tolist()
                    losses.append(math.log(sum(map(math.exp, scores))) - scores[label])
    assert float(pixel_cross_entropy(logits, masks, VOID)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(pixel_cross_entropy(logits, torch.full_like(masks, VOID), VOID)) == 0
    constant = torch.randn(1, 3, 1, 1).expand(1, 3, 2, 2)
    fine = pixel_cross_entropy(constant, torch.ones(1, 6, 4).long())
    torch.testing.assert_close(fine, pixel_cross_entropy(constant, torch.ones(1, 2, 2).long()))


def test_a_head_is_repeatable_and_leaves_the_global_random_state() -> None:
    features, masks = torch.randn(4, 3, 2, 2), torch.randint(2, (4, 4, 4))
    before = torch.get_rng_state()
    heads = [train_head(features, masks, 2, SEPARABLE, seed=seed).state_dict() for seed in (0, 0, 1)]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)
    assert not torch.equal(heads[0]["layers.0.weight"], heads[2]["layers.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, r"expected \(N, D, h, w\) and \(N, H, W\)"),
        ({"features": torch.zeros(0, 3, 4, 4), "masks": torch.zeros(0, 4, 4).long()}, "at least one image"),
        ({"masks": torch.full((2, 4, 4), VOID)}, "is the training split labelled"),
        ({"masks": torch.full((2, 4, 4), 2)}, "expected classes from 0 to 1, got 2 to 2"),
        ({"settings": DENSE_TRANSFERS["cast-voc"]}, "got 'own', which needs the network"),
    ],
)
def test_what_a_head_cannot_learn_from_is_an_error(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(features=torch.zeros(2, 3, 4, 4), masks=torch.zeros(2, 4, 4).long(), num_classes=2)
    with pytest.raises(ValueError, match=message):
        train_head(**(given | dict(settings=SEPARABLE, ignore_index=VOID) | change))


@pytest.mark.parametrize(
    "setting",
    [{"head": "deep"}, {"steps": 0}, {"optimizer": "adam"}, {"learning_rate": 0.0}, {"batch_size": 0}, {"levels": 0}],
)
def test_settings_out_of_range_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        TransferSettings(**(dict(head="linear", steps=1, learning_rate=0.1) | setting))


def test_training_that_diverges_is_told() -> None:
    settings = TransferSettings(head="two-layer", steps=8, learning_rate=1e38)
    with pytest.raises(FloatingPointError, match="diverged with 1e"):
        train_head(torch.randn(4, 3, 2, 2), torch.arange(4).view(4, 1, 1) % 2, 2, settings)
