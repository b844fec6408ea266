"""Pixel classification learned from masks: a head on its frozen dense features, or the whole network, trained on masks.

Shape legend: N images, B of a batch, D feature width, (h, w) feature map, (H, W) mask, K classes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from grouping_zoo.data.sampling import EndlessSampler


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """Settings of how the classes of pixels are learned.

    Args:
        head: "linear", one 1x1 convolution, or "two-layer", two of them with a ReLU between, on the frozen network's
            dense features; "own", the head that the network's family has for segmentation, trained with the network.
        levels: how many of the frozen network's last levels lie side by side in the features, four in CAST.
        steps: updates.
        batch_size: images an update.
        optimizer: "sgd" or "adamw".
        learning_rate: of the first update; it falls to 0 as (1 - step / steps) ** power.
        power: see `learning_rate`.
        momentum: of SGD.
        weight_decay: of all that is trained.
        image_size: side of the images that the protocol is for; None for any.
        crop_scale: smallest and largest fraction of an image that a view shows in which the network is trained; frozen
            features are those of one fixed view.
        train_args: arguments of the network in training.
        test_args: likewise when it is evaluated.

    Raises:
        ValueError: for a setting out of its range.
    """

    head: Literal["linear", "two-layer", "own"]
    levels: int = 4
    steps: int
    batch_size: int = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 0.0
    image_size: int | None = None
    crop_scale: tuple[float, float] = (0.25, 1.0)
    train_args: Mapping[str, Any] = field(default_factory=dict)
    test_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("head", ("linear", "two-layer", "own")), ("optimizer", ("sgd", "adamw"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("levels", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0 or self.power < 0:
            raise ValueError(
                f"learning_rate, power: expected more than 0 and at least 0, got {self.learning_rate} and {self.power}"
            )


_CAST_CLUSTERS = {"num_clusters": (320, 160, 80, 40)}

DENSE_TRANSFERS = {
    # Evaluates a nano in seconds: more updates gain nothing, a second layer up to 2.5 points of mean IoU.
    "scenes": TransferSettings(head="linear", steps=200, batch_size=8, learning_rate=0.3),
    # CAST, appendix A.9, after Van Gansbeke et al. (2021). The paper is silent on the momentum, the random views beside
    # the crop size, and on whether VOC's additional training masks are used; clusters as in the official code.
    "cast-voc": TransferSettings(
        head="own",
        steps=30_000,
        learning_rate=0.003,
        weight_decay=1e-4,
        image_size=512,
        train_args=_CAST_CLUSTERS,
        test_args=_CAST_CLUSTERS,
    ),
    # PGT, section 4.4, gives the 128 epochs (of 20210 images), the linear head and 1024 groups at inference. All else
    # is what vision transformers are usually trained with on ADE20K.
    "pgt-ade20k": TransferSettings(
        head="own",
        steps=161_680,
        optimizer="adamw",
        learning_rate=1e-4,
        power=1.0,
        weight_decay=0.05,
        image_size=512,
        test_args={"num_groups": 1024},
    ),
}
"""Presets by name; the published ones train the whole network, as their papers do."""


@torch.no_grad()
def level_features(model: Any, images: Tensor, levels: int, **inputs: Tensor) -> Tensor:
    """Return the last levels' normalised feature maps side by side, each interpolated to the size of the largest.

    Args:
        model: timm's, or of its kind.
        images: normalised, (B, C, H, W).
        levels: how many, at most as the model has.
        **inputs: what else the model takes of them, e.g. `superpixels`.

    Returns:
        (B, D, h, w) float32, D the sum of their widths.
    """
    maps = model.forward_intermediates(
        images,
        indices=min(levels, len(model.feature_info)),
        norm=True,
        output_fmt="NCHW",
        intermediates_only=True,
        **inputs,
    )
    size = max((tuple(level.shape[-2:]) for level in maps), key=math.prod)
    return torch.cat([resized(level.float(), size) for level in maps], dim=1)


class DenseHead(nn.Module):
    """Classes of the cells of feature maps: (B, D, h, w) -> logits (B, K, h, w).

    Args:
        mean: of each channel over the training set, (D,); it is subtracted first.
        std: standard deviation likewise; then each channel is divided by it.
        num_classes: K.
        hidden: put another 1x1 convolution D -> D and a ReLU in front.
        seed: of the initial weights; the global random state is left alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, num_classes: int, *, hidden: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std.clamp(min=1e-6)[:, None, None])
        width, generator = len(mean), torch.Generator().manual_seed(seed)
        first: list[nn.Module] = [_convolution(width, width, generator), nn.ReLU()] if hidden else []
        self.layers = nn.Sequential(*first, _convolution(width, num_classes, generator))

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.layers((features - self.mean) / self.std)


def train_head(
    features: Tensor,
    masks: Tensor,
    num_classes: int,
    settings: TransferSettings,
    *,
    ignore_index: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> DenseHead:
    """Train a head on dense features that stay as they are.

    Args:
        features: (N, D, h, w).
        masks: (N, H, W) int64 in [0, K), or `ignore_index`.
        num_classes: K.
        settings: with another head than "own".
        ignore_index: class of pixels that do not count; None if all do.
        seed: of the initial weights and the order.
        device: where to train.
        progress: show a progress bar.

    Returns:
        the head in evaluation mode, on the device.

    Raises:
        ValueError: on features and masks that do not fit together, or a head that needs the network.
        FloatingPointError: if training diverged.
    """
    if settings.head == "own":
        raise ValueError("head: expected 'linear' or 'two-layer' on features, got 'own', which needs the network")
    if features.ndim != 4 or masks.ndim != 3 or len(features) != len(masks) or not len(features):
        raise ValueError(
            f"features, masks: expected (N, D, h, w) and (N, H, W) of at least one image, got {tuple(features.shape)} "
            f"and {tuple(masks.shape)}"
        )
    _check_masks(masks, num_classes, ignore_index)
    std, mean = torch.std_mean(features, dim=(0, 2, 3), correction=0)
    head = DenseHead(mean, std, num_classes, hidden=settings.head == "two-layer", seed=seed).to(device)

    def predictions() -> Iterator[tuple[Tensor, Tensor]]:
        for keys in EndlessSampler(len(features), settings.batch_size, seed):
            index = torch.tensor([key.index for key in keys])
            yield head(features[index].to(device)), masks[index].to(device)

    train_on_masks(predictions(), head, settings, ignore_index=ignore_index, progress=progress)
    return head.eval().requires_grad_(False)


@torch.enable_grad()
def train_on_masks(
    predictions: Iterable[tuple[Tensor, Tensor]],
    module: nn.Module,
    settings: TransferSettings,
    *,
    ignore_index: int | None = None,
    progress: bool = False,
) -> None:
    """Update what of a module is to be trained by the cross-entropy of pixels.

    Args:
        predictions: without end, the module's logits (B, K, h, w) of a batch, made when they are asked for, so that
            each update sees the weights of the one before; and the masks (B, H, W) that go with them.
        module: what is trained.
        settings: see `TransferSettings`.
        ignore_index: class of pixels that do not count; None if all do.
        progress: show a progress bar.

    Raises:
        FloatingPointError: if training diverged.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rates: dict[str, Any] = dict(lr=settings.learning_rate, weight_decay=settings.weight_decay)
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=settings.momentum, **rates)
    else:
        optimizer = torch.optim.AdamW(parameters, **rates)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, settings.steps, settings.power)
    batches = islice(predictions, settings.steps)
    shown = tqdm(
        batches, desc="transfer", unit="step", total=settings.steps, leave=False, disable=None if progress else True
    )
    loss = torch.zeros(())
    for logits, masks in shown:
        loss = pixel_cross_entropy(logits, masks, ignore_index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    # What has once become infinite stays so: one look at the end, as each one waits for the accelerator.
    if not loss.isfinite():
        raise FloatingPointError(
            f"learning_rate: training on masks diverged with {settings.learning_rate}; give a smaller one"
        )


def pixel_cross_entropy(logits: Tensor, masks: Tensor, ignore_index: int | None = None) -> Tensor:
    """Return the mean cross-entropy of the pixels that count, 0 where there are none.

    Args:
        logits: (B, K, h, w), interpolated to the masks' size.
        masks: (B, H, W) int64.
        ignore_index: class of pixels that do not count; None if all do.
    """
    logits = resized(logits.float(), masks.shape[-2:])
    ignored = -1 if ignore_index is None else ignore_index
    total = F.cross_entropy(logits, masks, ignore_index=ignored, reduction="sum")
    return total / (masks != ignored).sum().clamp(min=1)


def resized(maps: Tensor, size: Iterable[int]) -> Tensor:
    """Interpolate maps (B, K, h, w) to another size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _convolution(width: int, outputs: int, generator: torch.Generator) -> nn.Conv2d:
    """Make a 1x1 convolution that starts as PyTorch's own do, but that the generator draws it."""
    layer = nn.utils.skip_init(nn.Conv2d, width, outputs, 1)
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _check_masks(masks: Tensor, num_classes: int, ignore_index: int | None) -> None:
    known = masks if ignore_index is None else masks[masks != ignore_index]
    if not known.numel():
        raise ValueError("masks: expected pixels with a class, got none; is the training split labelled?")
    lowest, highest = (int(value) for value in known.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"masks: expected classes from 0 to {num_classes - 1}, got {lowest} to {highest}; does the number of "
            "classes fit the data set?"
        )
