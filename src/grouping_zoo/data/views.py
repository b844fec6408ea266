"""Augmentation of the images of training from captions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

Transform = Callable[[Any], Tensor]


def train_transform(
    image_size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    color_jitter: float = 0.0,
    rand_augment: bool = False,
    erasing: float = 0.0,
) -> Transform:
    """Random views for training; with `rand_augment`, ``erasing=0.25`` and ``color_jitter=0.4`` those of DeiT.

    Args:
        image_size: side, or (height, width), of the view.
        mean: of each channel, for images in [0, 1].
        std: of each channel.
        scale: smallest and largest fraction of the image's area that is cropped.
        flip: mirror left and right half of the time.
        color_jitter: strength of changes of brightness, contrast and saturation.
        rand_augment: two random operations of magnitude 9 (Cubuk et al., 2020).
        erasing: probability that a rectangle is replaced by noise (Zhong et al., 2020).

    Returns:
        A function of a PIL image or a (C, H, W) uint8 tensor that gives a (C, h, w) float32 tensor. It draws from
        torch's global random generator.

    Raises:
        ValueError: for settings out of their range.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale: expected 0 < smallest <= largest <= 1, got {scale}; set (0.08, 1.0), for example")
    if not 0 <= erasing <= 1:
        raise ValueError(f"erasing: expected a probability from 0 to 1, got {erasing}; set 0.25, for example")
    if color_jitter < 0:
        raise ValueError(f"color_jitter: expected 0 or more, got {color_jitter}; set 0.4, for example")
    size = _height_width(image_size)
    steps: list[Callable[..., Any]] = [
        v2.ToImage(),
        v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if rand_augment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=9, interpolation=InterpolationMode.BILINEAR))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += _to_normalized(mean, std)
    if erasing:
        steps.append(v2.RandomErasing(p=erasing, value="random"))
    return v2.Compose([*steps, v2.ToPureTensor()])


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size: expected a side or (height, width) in pixels, got {image_size}; set 224")
    return height, width


def _to_normalized(mean: Sequence[float], std: Sequence[float]) -> list[Callable[..., Any]]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
