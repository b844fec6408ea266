"""Classification of images by a linear classifier of frozen features.

Shape legend: N training images, M test images, D feature width, L classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.evaluation.knn import check_features
from grouping_zoo.evaluation.metrics.classification import check_labels, top_k_accuracy


@dataclass(frozen=True, kw_only=True)
class LinearProbeSettings:
    """Settings of a linear classifier's training on frozen features.

    Args:
        learning_rates: of SGD at the start; of several the one that is best on held-out training images is taken.
        epochs: passes over the training features.
        batch_size: images a step.
        momentum: of SGD.
        weight_decay: of SGD.
        standardize: bring each feature to mean 0 and standard deviation 1 over the training set first.
        held_out: fraction of the training images that choose among the learning rates.

    Raises:
        ValueError: for a setting out of its range.
    """

    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    epochs: int = 90
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0
    standardize: bool = True
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates: expected at least one, all above 0, got {self.learning_rates}")
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError(f"epochs, batch_size: expected at least 1, got {self.epochs} and {self.batch_size}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a fraction between 0 and 1, got {self.held_out}")


LINEAR_PROBES = {
    "sweep": LinearProbeSettings(),
    # CAST, after MoCo-v3.
    "cast-in1k": LinearProbeSettings(learning_rates=(30.0,), batch_size=1024, standardize=False),
    "cast-in100": LinearProbeSettings(learning_rates=(0.8,), batch_size=256, standardize=False),
    # PGT names no settings of its own; this is the protocol of DINO, which it follows: 0.001 * batch / 256.
    "pgt-in1k": LinearProbeSettings(learning_rates=(0.004,), epochs=100, batch_size=1024, standardize=False),
}
"""Presets by name: "sweep", and the papers' protocols, but that the features are those of one fixed view of each image,
where the papers draw random crops. VT has no linear probe."""


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    settings: LinearProbeSettings | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Train and test a linear classifier of frozen features: SGD with momentum, cosine schedule to 0.

    Args:
        train_features: (N, D), on the device to train on.
        train_labels: (N,) int64.
        test_features: (M, D).
        test_labels: (M,) int64.
        settings: one of `LINEAR_PROBES`, or others; "sweep" if omitted.
        num_classes: one more than the largest label if omitted.
        seed: of initial weights and order; the global random state is left alone.

    Returns:
        "top1" and "top5" of the test images in per cent, and the "learning_rate" that was taken.

    Raises:
        ValueError: on empty or unfitting features and labels.
        FloatingPointError: if training with every learning rate diverged.
    """
    settings = settings or LINEAR_PROBES["sweep"]
    check_features(train_features, test_features)
    check_labels("train_labels", train_labels, len(train_features), num_classes)
    check_labels("test_labels", test_labels, len(test_features), num_classes)
    device = train_features.device
    train, test = train_features.detach().float(), test_features.detach().float().to(device)
    classes = num_classes or int(torch.cat([train_labels.cpu(), test_labels.cpu()]).max()) + 1
    if settings.standardize:
        std, mean = torch.std_mean(train, dim=0, correction=0)
        train, test = ((x - mean) / std.clamp(min=1e-6) for x in (train, test))
    labels = train_labels.to(device)
    rate = _best_learning_rate(train, labels, classes, settings, seed)
    scores = _train_linear(train, labels, classes, [rate], settings, seed)[0](test)
    if not scores.isfinite().all():
        raise FloatingPointError(
            f"learning_rates: training diverged with {rate}; give smaller ones than {settings.learning_rates}, or "
            f"standardize the features"
        )
    return {
        "top1": top_k_accuracy(scores, test_labels),
        "top5": top_k_accuracy(scores, test_labels, 5),
        "learning_rate": rate,
    }


def _best_learning_rate(
    features: Tensor, labels: Tensor, classes: int, settings: LinearProbeSettings, seed: int
) -> float:
    """Find the learning rate with the best top-1 on held-out training images, the smallest of equals."""
    rates = sorted(settings.learning_rates)
    if len(rates) == 1:
        return rates[0]
    if len(features) < 2:
        raise ValueError(
            f"train_features: expected at least 2 images to choose among {len(rates)} learning rates, got 1; take more "
            "training images, or settings with one learning rate"
        )
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).to(features.device)
    held, kept = order.tensor_split([max(1, round(settings.held_out * len(order)))])
    heads = _train_linear(features[kept], labels[kept], classes, rates, settings, seed)
    logits = [head(features[held]) for head in heads]
    accuracies = [top_k_accuracy(x, labels[held]) if x.isfinite().all() else -1.0 for x in logits]
    return rates[accuracies.index(max(accuracies))]


@torch.enable_grad()
def _train_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: list[float],
    settings: LinearProbeSettings,
    seed: int,
) -> list[nn.Linear]:
    """Train one classifier for each learning rate, all in the same passes and from the same start."""
    generator = torch.Generator().manual_seed(seed)
    start = 0.01 * torch.randn(classes, features.shape[1], generator=generator)  # as MoCo's probes start
    heads = [nn.utils.skip_init(nn.Linear, features.shape[1], classes, device=features.device) for _ in learning_rates]
    for head in heads:
        nn.init.zeros_(head.bias)
        head.weight.data.copy_(start)
    optimizer = torch.optim.SGD(
        [{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, learning_rates, strict=True)],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    for _ in range(settings.epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for batch in order.split(settings.batch_size):
            optimizer.zero_grad()
            # A sum over separate classifiers: each gets the gradient of its own loss alone.
            sum(F.cross_entropy(head(features[batch]), labels[batch]) for head in heads).backward()
            optimizer.step()
        schedule.step()
    return [head.requires_grad_(False) for head in heads]
