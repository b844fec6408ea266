"""Analysis of a PGT's groups: entropies of each layer, accuracy against groups and iterations, their pictures."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import grouping_zoo  # noqa: F401 - registers the models
from grouping_zoo.evaluation.group_analysis import (
    GroupAccuracy,
    accuracy_by_groups,
    accuracy_picture,
    accuracy_table,
    entropy_picture,
    mean_entropies,
)
from grouping_zoo.evaluation.recognition import extract_features, knn_accuracy, linear_probe
from grouping_zoo.layers.multi_grouping import Entropies
from zoo import with_random_weights

SMALL: dict[str, Any] = dict(
    img_size=16, embed_dim=12, depths=(1, 1), group_dims=(4, 6), num_heads=2, num_groups=4, feature_dim=8
)


def network() -> Any:
    torch.manual_seed(0)
    return with_random_weights(timm.create_model("pgt_nano", feature_heads=2, **SMALL))


def labelled(*sizes: int) -> list[dict[str, Tensor]]:
    """Batches of dark and bright images."""
    generator = torch.Generator().manual_seed(len(sizes))
    labels = [torch.arange(size) % 2 for size in sizes]
    return [
        {"pixel_values": torch.randn(len(y), 3, 16, 16, generator=generator) + 3 * y.view(-1, 1, 1, 1), "label": y}
        for y in labels
    ]


def test_entropies_count_each_image_once() -> None:
    model, batches = network().train(), labelled(3, 1)
    found = mean_entropies(model, batches, num_groups=3)
    assert model.training, "the mode is as before"
    model.eval()
    alone = [model.assignment_entropies(x[None], num_groups=3) for batch in batches for x in batch["pixel_values"]]
    assert torch.allclose(found.marginal, torch.stack([e.marginal for e in alone]).mean(dim=0), atol=1e-5)
    assert torch.allclose(found.conditional, torch.stack([e.conditional for e in alone]).mean(dim=0), atol=1e-5)
    assert found.marginal.shape == (2, 2)
    assert (found.conditional <= found.marginal + 1e-6).all()
    assert (found.marginal <= math.log(3) + 1e-6).all()


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="batches: expected at least one image, got none"):
        mean_entropies(network(), [])


def test_accuracies_are_those_of_features_with_so_many_groups_and_iterations() -> None:
    model, train, test = network(), labelled(6, 4), labelled(8)
    rows = accuracy_by_groups(model, train, test, [(1, 1), (4, 3)], num_classes=2)
    assert [row[:2] for row in rows] == [(1, 1), (4, 3)]
    model.eval()
    for row in rows:
        parts = []
        for batches in (train, test):
            encode = lambda x, row=row: model(x, num_groups=row.num_groups, num_iters=row.num_iters)  # noqa: E731
            parts += [extract_features(encode, batches), torch.cat([batch["label"] for batch in batches])]
        assert row.knn == knn_accuracy(*parts, num_classes=2)
        assert row.linear == linear_probe(*parts, num_classes=2)["top1"]


def test_table_and_pictures() -> None:
    rows = [GroupAccuracy(2, 1, 50.0, 61.26), GroupAccuracy(8, 1, 70.0, 80.0), GroupAccuracy(8, 3, 72.0, 90.0)]
    assert accuracy_table(rows).splitlines()[2] == "| 2 | 1 | 50.0 | 61.3 |"
    assert len(accuracy_table(rows).splitlines()) == 5
    one = accuracy_picture(rows)
    assert one.tobytes() != accuracy_picture(rows[:2]).tobytes(), "a curve for each number of iterations"
    even, sure = torch.full((3, 2), 1.0), torch.full((3, 2), 0.2)
    picture = entropy_picture(Entropies(even, sure), 4)
    assert picture.tobytes() != entropy_picture(Entropies(even, even), 4).tobytes()
