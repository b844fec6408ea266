"""Several random views of each image, for self-supervised training: two of MoCo-v3, or the crops of DINO.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021), after BYOL's augmentation;
Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021), whose color changes are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from grouping_zoo.data.image_source import ImageSource
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.sampling import SampleKey, sample_seed, seeded_rng


@dataclass(kw_only=True)
class PhotometricAugmentation:
    """Augmentation that all views share: mirroring and colors."""

    flip: float = 0.5
    """Probability of a mirrored view."""
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of changes of brightness, contrast, saturation and hue."""
    color_jitter_probability: float = 0.8
    """Fraction of the views with changed colors."""
    grayscale: float = 0.2
    """Fraction of the views without colors."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur in pixels."""

    def __post_init__(self) -> None:
        _check_probabilities("flip", self.flip)
        _check_probabilities("color_jitter_probability", self.color_jitter_probability)
        _check_probabilities("grayscale", self.grayscale)
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(
                f"blur_sigma: expected 0 < smallest <= largest, got {self.blur_sigma}; set (0.1, 2.0), for example"
            )


@dataclass(kw_only=True)
class TwoViewConfig(PhotometricAugmentation):
    """MoCo-v3's asymmetric pair of views."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the image that a view shows."""
    blur: tuple[float, float] = (1.0, 0.1)
    """Probability of a blurred first and second view."""
    solarize: tuple[float, float] = (0.0, 0.2)
    """Probability of a solarized first and second view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scale("crop_scale", self.crop_scale)
        _check_probabilities("blur", *self.blur)
        _check_probabilities("solarize", *self.solarize)


@dataclass(kw_only=True)
class MultiCropConfig(PhotometricAugmentation):
    """DINO's crops: two global ones, and smaller ones of small parts."""

    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest fraction of the image that a global crop shows."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Likewise of a local crop."""
    local_size: int = 96
    """Side of a local crop in pixels."""
    num_local: int = 8
    """Local crops of each image."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of a blurred first and second global crop, and local crop."""
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Likewise of a solarized one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scale("global_scale", self.global_scale)
        _check_scale("local_scale", self.local_scale)
        _check_probabilities("blur", *self.blur)
        _check_probabilities("solarize", *self.solarize)
        if self.num_local < 0 or self.local_size < 1:
            raise ValueError(
                f"num_local, local_size: expected at least 0 and 1, got {self.num_local} and {self.local_size}"
            )


class MultiViewImages(Dataset[dict[str, Any]]):
    """Map-style training samples, indexed by `SampleKey`: random by (seed, epoch, index) alone.

    A sample is ``{"views": [(3, H, W) float32, ...]}``, with a list of one tensor a view for each of the network's
    extra inputs, such as ``"superpixels": [(H, W) int64, ...]``, and ``"label"`` where the source knows one.
    `torch.utils.data.default_collate` makes batches of them.

    Args:
        source: gives the images.
        transforms: one for each view, PIL image -> PIL image; they may draw from torch's global generator.
        inputs: makes the network's inputs of each view.
        seed: seed of everything random.
    """

    def __init__(self, source: ImageSource, transforms: Sequence[nn.Module], inputs: InputTransform, seed: int) -> None:
        self.source = source
        self.transforms = list(transforms)
        self.inputs = inputs
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        found = self.source[key]
        with seeded_rng(sample_seed(self.seed, key)):
            views = [F.pil_to_tensor(transform(found.image)) for transform in self.transforms]
        sample: dict[str, Any] = {"views": [self.inputs.pixels(view) for view in views]}
        for name, make in self.inputs.input_makers.items():
            sample[name] = [make(view) for view in views]
        return sample if found.label is None else sample | {"label": found.label}


def two_views(
    source: ImageSource, image_size: int, inputs: InputTransform, config: TwoViewConfig, seed: int
) -> MultiViewImages:
    """Return two views of each image, which differ in how often they are blurred and solarized.

    Args:
        source: gives the images.
        image_size: side of a view in pixels.
        inputs: makes the network's inputs of each view.
        config: the augmentation.
        seed: seed of everything random.
    """
    transforms = [
        view_transform(image_size, config.crop_scale, blur, solarize, config)
        for blur, solarize in zip(config.blur, config.solarize, strict=True)
    ]
    return MultiViewImages(source, transforms, inputs, seed)


def multi_crop(
    source: ImageSource, image_size: int, inputs: InputTransform, config: MultiCropConfig, seed: int
) -> MultiViewImages:
    """Return two global crops of each image, then the local ones; `image_size` is that of the global ones."""
    crops = [(image_size, config.global_scale)] * 2 + [(config.local_size, config.local_scale)]
    first, second, local = [
        view_transform(size, scale, blur, solarize, config, InterpolationMode.BICUBIC)
        for (size, scale), blur, solarize in zip(crops, config.blur, config.solarize, strict=True)
    ]
    return MultiViewImages(source, [first, second, *[local] * config.num_local], inputs, seed)


def view_transform(
    size: int,
    scale: tuple[float, float],
    blur: float,
    solarize: float,
    config: PhotometricAugmentation,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> nn.Module:
    """Return one kind of random view, PIL image -> PIL image (size, size).

    Pillow blurs many times faster than tensors do.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=interpolation),
            v2.RandomHorizontalFlip(config.flip),
            v2.RandomApply([v2.ColorJitter(*config.color_jitter)], config.color_jitter_probability),
            v2.RandomGrayscale(config.grayscale),
            v2.RandomApply([_PillowBlur(config.blur_sigma)], blur),
            v2.RandomSolarize(128, solarize),
        ]
    )


class _PillowBlur(nn.Module):
    """Gaussian blur of a PIL image by a standard deviation drawn uniformly."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Image.Image) -> Image.Image:
        sigma = torch.empty(()).uniform_(*self.sigma)
        return image.filter(ImageFilter.GaussianBlur(float(sigma)))


def _check_scale(name: str, scale: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name}: expected 0 < smallest <= largest <= 1, got {scale}; set (0.08, 1.0), for example")


def _check_probabilities(name: str, *probabilities: float) -> None:
    if not all(0 <= value <= 1 for value in probabilities):
        raise ValueError(f"{name}: expected probabilities from 0 to 1, got {probabilities}; change {name}")
