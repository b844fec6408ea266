"""What the groups of a PGT do: how evenly and how surely they take tokens, and how many of them a feature needs.

Deng et al., "Perceptual Group Tokenizer" (ICLR 2024), sections 4.2 and 4.3, Table 4, appendix A.2.

Shape legend: L layers, A grouping heads, M group tokens a head, K binding iterations.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from grouping_zoo.evaluation.recognition import evaluation_mode, extract_features, knn_accuracy, linear_probe
from grouping_zoo.layers.multi_grouping import Entropies
from grouping_zoo.viz.charts import curve_plot

Batches = Sequence[Mapping[str, Tensor]]
"""Batches with `pixel_values` (B, 3, H, W) and `label` (B,) int64; gone through more than once."""


class GroupAccuracy(NamedTuple):
    """Accuracies in per cent with `num_groups` M and `num_iters` K, of nearest neighbours and of a linear probe."""

    num_groups: int
    num_iters: int
    knn: float
    linear: float


@torch.no_grad()
def mean_entropies(network: Any, batches: Iterable[Mapping[str, Tensor]], **network_args: Any) -> Entropies:
    """Entropies of p(c) and p(c|x) of each layer and head, averaged over images.

    Args:
        network: a PGT.
        batches: with `pixel_values` (B, 3, H, W).
        network_args: `num_groups`, `num_iters`, `seed`.

    Returns:
        in nats, each (L, A) on the CPU.

    Raises:
        ValueError: if there is no image.
    """
    device = next(network.parameters()).device
    total, images = torch.zeros(()), 0
    with evaluation_mode(network):
        for batch in batches:
            pixels = batch["pixel_values"].to(device)
            found = network.assignment_entropies(pixels, **network_args)
            total = total + len(pixels) * torch.stack(found).cpu()  # (2, L, A)
            images += len(pixels)
    if not images:
        raise ValueError("batches: expected at least one image, got none; is the split empty?")
    return Entropies(*(total / images))


def entropy_picture(entropies: Entropies, num_groups: int) -> Image.Image:
    """The entropies of each layer, averaged over its heads, as two curves below the line of log M.

    Args:
        entropies: each (L, A).
        num_groups: M that they were found with.
    """
    curves = {
        name: list(enumerate(values.mean(dim=1).tolist()))
        for name, values in (("p(c)", entropies.marginal), ("p(c|x)", entropies.conditional))
    }
    curves["log M"] = [(layer, math.log(num_groups)) for layer, _ in curves["p(c)"]]
    return curve_plot(curves, "layer", "entropy in nats")


def accuracy_by_groups(
    network: Any,
    train: Batches,
    test: Batches,
    settings: Iterable[tuple[int, int]],
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> list[GroupAccuracy]:
    """How well features from M groups and K iterations tell classes apart, with the same weights for all.

    Args:
        network: a PGT.
        train: labelled images that vote, and train the linear probe.
        test: held-out ones.
        settings: pairs of M and K.
        num_classes: one more than the largest label if omitted.
        seed: of the linear probe.

    Returns:
        one entry for each pair.
    """
    train_labels, test_labels = (torch.cat([batch["label"] for batch in part]) for part in (train, test))
    found = []
    for num_groups, num_iters in settings:
        encode = _encoder(network, num_groups, num_iters)
        with evaluation_mode(network):
            parts = (extract_features(encode, train), train_labels, extract_features(encode, test), test_labels)
        knn = knn_accuracy(*parts, num_classes=num_classes)
        linear = linear_probe(*parts, num_classes=num_classes, seed=seed)["top1"]
        found.append(GroupAccuracy(num_groups, num_iters, knn, linear))
    return found


def accuracy_table(rows: Sequence[GroupAccuracy]) -> str:
    """A Markdown table, a line for each entry."""
    lines = [f"| {row.num_groups} | {row.num_iters} | {row.knn:.1f} | {row.linear:.1f} |" for row in rows]
    return "\n".join(["| groups a head | iterations | kNN, % | linear, % |", "|---|---|---|---|", *lines])


def accuracy_picture(rows: Sequence[GroupAccuracy]) -> Image.Image:
    """Linear-probe accuracy against the number of groups, a curve for each number of iterations."""
    curves = {
        f"{num_iters} iteration{'s' if num_iters > 1 else ''}": [
            (row.num_groups, row.linear) for row in rows if row.num_iters == num_iters
        ]
        for num_iters in sorted({row.num_iters for row in rows})
    }
    return curve_plot(curves, "group tokens of each head", "linear probe, top-1 in %", logarithmic=True)


def _encoder(network: Any, num_groups: int, num_iters: int) -> Callable[[Tensor], Tensor]:
    """Images to features with these numbers."""
    device = next(network.parameters()).device

    def encode(pixel_values: Tensor) -> Tensor:
        groups = network.forward_features(pixel_values.to(device), num_groups=num_groups, num_iters=num_iters)
        return network.forward_head(groups, pre_logits=True)

    return encode
