"""How well frozen features tell classes apart: features, nearest neighbours, linear probe, top-k accuracy.

Shape legend: N training images, M test images, D feature width, L classes, k neighbours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

IMAGES_AT_ONCE = 64
SIMILARITIES_AT_ONCE = 2**26  # 256 MiB of float32


@torch.no_grad()
def extract_features(
    model: nn.Module | Callable[..., Tensor],
    images: Tensor | Iterable[Tensor | Mapping[str, Any]],
    progress: bool = False,
) -> Tensor:
    """One feature an image, by a frozen network or any function.

    Args:
        model: a timm model, whose feature is `forward_head(forward_features(x), pre_logits=True)`, or another module
            or function from images to features (B, D). A module is put into evaluation mode meanwhile, and the
            images go to its device.
        images: normalised images (N, C, H, W), or batches of them: tensors (B, C, H, W), or dictionaries with
            `pixel_values` and, where the data have them, `superpixels` (B, H, W), which the model then gets too.
        progress: show a progress bar.

    Returns:
        (N, D) float32 on the CPU, in the order of the images.

    Raises:
        ValueError: if there is no image, or the features are not (B, D).
    """
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    # No batch at all where there is no image: splitting would give an empty one.
    batches = images.split(IMAGES_AT_ONCE) if isinstance(images, Tensor) and len(images) else images
    features = []
    with evaluation_mode(model):
        for batch in tqdm(batches, desc="features", unit="batch", disable=not progress, leave=False):
            inputs = {"pixel_values": batch} if isinstance(batch, Tensor) else batch
            pixels = inputs["pixel_values"].to(device)
            extra = {key: inputs[key].to(device) for key in ("superpixels",) if inputs.get(key) is not None}
            feature = _feature(model, pixels, extra)
            if feature.ndim != 2 or len(feature) != len(pixels):
                raise ValueError(
                    f"model: expected one feature an image, ({len(pixels)}, D), got {tuple(feature.shape)}; give a "
                    f"function that pools, or a timm model with pooling"
                )
            features.append(feature.float().cpu())
    if not features:
        raise ValueError("images: expected at least one, got none; is the split empty?")
    return torch.cat(features)


def _feature(model: Callable[..., Any], pixels: Tensor, extra: dict[str, Tensor]) -> Tensor:
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        return model.forward_head(model.forward_features(pixels, **extra), pre_logits=True)
    return model(pixels, **extra)


@contextmanager
def evaluation_mode(model: nn.Module | Callable[..., Any]) -> Iterator[None]:
    """A module in evaluation mode; afterwards each of its parts is in its own mode again."""
    # Each part on its own: a network in training may hold parts that are frozen in evaluation mode.
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of images whose class is among their k best scored ones, in per cent.

    Args:
        scores: (N, L), higher is better.
        labels: (N,) int64 in [0, L).
        k: how many guesses count; with L or fewer classes every image counts.

    Raises:
        ValueError: if there is no image, or the labels do not fit the scores.
    """
    _check_labels("labels", labels, len(scores), scores.shape[1])
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return 100 * float((best == labels.to(best.device)[:, None]).any(dim=1).double().mean())


@torch.no_grad()
def nearest_by_cosine(bank: Tensor, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The rows of `bank` (N, D) that are most similar to each row of `queries` (M, D).

    Args:
        bank: (N, D), of any norm.
        queries: (M, D), of any norm.
        neighbours: how many; no more than N are given.

    Returns:
        cosines float32 and row numbers int64, each (M, min(neighbours, N)), the most similar first.
    """
    rows, columns = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1).T
    at_once = max(1, SIMILARITIES_AT_ONCE // len(bank))
    found = [(some @ columns).topk(min(neighbours, len(bank)), dim=1) for some in rows.split(at_once)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


@torch.no_grad()
def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Tensor:
    """Votes of the nearest training images by cosine, each with weight exp(cosine / temperature).

    Caron et al. (2021), Emerging Properties in Self-Supervised Vision Transformers, section 4.1; after Wu et al.
    (2018), Eq. 7.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64.
        test_features: (M, D).
        neighbours: how many vote; no more than there are training images.
        temperature: the smaller, the more the nearest ones count.
        num_classes: L; one more than the largest training label if omitted.

    Returns:
        (M, L) float32, each row divided by the weight of its nearest neighbour.

    Raises:
        ValueError: on empty or unfitting features and labels, or a setting out of its range.
    """
    _check_features(train_features, test_features)
    _check_labels("train_labels", train_labels, len(train_features), num_classes)
    if neighbours < 1 or temperature <= 0:
        raise ValueError(
            f"neighbours, temperature: expected at least 1 and more than 0, got {neighbours} and {temperature}"
        )
    classes = num_classes or int(train_labels.max()) + 1
    cosine, nearest = nearest_by_cosine(train_features, test_features, neighbours)  # (M, k) each
    # Less the largest: the same order of classes, and no overflow at a low temperature.
    weight = ((cosine - cosine[:, :1]) / temperature).exp()
    votes = weight.new_zeros(len(nearest), classes)
    votes.scatter_add_(1, train_labels.to(nearest.device)[nearest], weight)
    return votes


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> float:
    """Top-1 accuracy of the vote of `knn_scores`, in per cent.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64.
        test_features: (M, D).
        test_labels: (M,) int64; an image of a class without training images counts as wrong.
        neighbours: see `knn_scores`.
        temperature: see `knn_scores`.
        num_classes: one more than the largest label if omitted.
    """
    _check_labels("test_labels", test_labels, len(test_features), num_classes)
    classes = num_classes or int(torch.cat([train_labels.cpu(), test_labels.cpu()]).max()) + 1
    scores = knn_scores(
        train_features,
        train_labels,
        test_features,
        neighbours=neighbours,
        temperature=temperature,
        num_classes=classes,
    )
    return top_k_accuracy(scores, test_labels)


@dataclass(frozen=True, kw_only=True)
class LinearProbeSettings:
    """How a linear classifier is trained on frozen features.

    Args:
        learning_rates: of SGD at the start; of several the one that is best on held-out training images is taken.
        epochs: passes over the training features.
        batch_size: images a step.
        momentum: of SGD.
        weight_decay: of SGD.
        standardize: bring each feature to mean 0 and deviation 1 over the training set first.
        held_out: share of the training images that choose among the learning rates.

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
            raise ValueError(f"held_out: expected a share between 0 and 1, got {self.held_out}")


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
    """Accuracy of a linear classifier of frozen features: SGD with momentum, cosine schedule to 0.

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
    _check_features(train_features, test_features)
    _check_labels("train_labels", train_labels, len(train_features), num_classes)
    _check_labels("test_labels", test_labels, len(test_features), num_classes)
    device = train_features.device
    train, test = train_features.detach().float(), test_features.detach().float().to(device)
    classes = num_classes or int(torch.cat([train_labels.cpu(), test_labels.cpu()]).max()) + 1
    if settings.standardize:
        deviation, mean = torch.std_mean(train, dim=0, correction=0)
        train, test = ((x - mean) / deviation.clamp(min=1e-6) for x in (train, test))
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
    """The learning rate with the best top-1 on held-out training images, the smallest of equals."""
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
    """One classifier for each learning rate, all trained in the same passes and from the same start."""
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


def _check_features(train: Tensor, test: Tensor) -> None:
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or not len(train) or not len(test):
        raise ValueError(
            f"features: expected (N, D) of training and (M, D) of test images, none of them empty, got "
            f"{tuple(train.shape)} and {tuple(test.shape)}"
        )


def _check_labels(name: str, labels: Tensor, length: int, num_classes: int | None) -> None:
    if labels.shape != (length,) or not length or labels.is_floating_point():
        raise ValueError(
            f"{name}: expected a class number for each of the {length} images, got {labels.dtype} "
            f"{tuple(labels.shape)}; is the split empty, or without labels?"
        )
    highest = int(labels.max())
    if int(labels.min()) < 0 or (num_classes is not None and highest >= num_classes):
        raise ValueError(
            f"{name}: expected 0 to {'L - 1' if num_classes is None else num_classes - 1}, got "
            f"{int(labels.min())} to {highest}; does the number of classes fit the data set?"
        )
