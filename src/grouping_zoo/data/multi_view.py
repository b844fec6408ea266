"""Several random views of each image, for self-supervised training: two of MoCo-v3, or the crops of DINO.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021), after BYOL's augmentation;
Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021), whose photometry is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from grouping_zoo.data.image_source import ImageSource
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.layers.superpixels import SuperpixelMethod, make_superpixels


@dataclass(kw_only=True)
class Photometry:
    """What all views share: mirroring and colours."""

    flip: float = 0.5
    """Probability of a mirrored view."""
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of changes of brightness, contrast, saturation and hue."""
    color_jitter_probability: float = 0.8
    """Share of the views with changed colours."""
    grayscale: float = 0.2
    """Share of the views without colours."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest deviation of the blur in pixels."""

    def __post_init__(self) -> None:
        _check_shares("flip", self.flip)
        _check_shares("color_jitter_probability", self.color_jitter_probability)
        _check_shares("grayscale", self.grayscale)
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(
                f"blur_sigma: expected 0 < smallest <= largest, got {self.blur_sigma}; set (0.1, 2.0), for example"
            )


@dataclass(kw_only=True)
class TwoViewConfig(Photometry):
    """MoCo-v3's asymmetric pair."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image that a view shows."""
    blur: tuple[float, float] = (1.0, 0.1)
    """Probability of a blurred first and second view."""
    solarize: tuple[float, float] = (0.0, 0.2)
    """Probability of a solarized first and second view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scale("crop_scale", self.crop_scale)
        _check_shares("blur", *self.blur)
        _check_shares("solarize", *self.solarize)


@dataclass(kw_only=True)
class MultiCropConfig(Photometry):
    """DINO's crops: two global ones, and smaller ones of small parts."""

    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest share of the image that a global crop shows."""
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
        _check_shares("blur", *self.blur)
        _check_shares("solarize", *self.solarize)
        if self.num_local < 0 or self.local_size < 1:
            raise ValueError(
                f"num_local, local_size: expected at least 0 and 1, got {self.num_local} and {self.local_size}"
            )


@dataclass(frozen=True, kw_only=True)
class ImageTensors:
    """Turns a finished view into what a network takes.

    Args:
        mean: of each channel, for images in [0, 1].
        std: of each channel.
        superpixel_method: how superpixels are made of the 8-bit view, or None for none.
        superpixel_size: side in pixels of a square as large as a superpixel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    superpixel_method: SuperpixelMethod | None = None
    superpixel_size: int = 16

    def inputs(self, view: Tensor) -> dict[str, Tensor]:
        """(3, H, W) uint8 -> "pixel_values", and "superpixels" where they are made."""
        found = {"pixel_values": self.pixels(view)}
        return found if self.superpixel_method is None else found | {"superpixels": self.superpixels(view)}

    def pixels(self, view: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, H, W) float32, normalised."""
        return F.normalize(F.to_dtype(view, torch.float32, scale=True), list(self.mean), list(self.std))

    def superpixels(self, view: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (H, W) int64, as many superpixels as fit by their size."""
        assert self.superpixel_method is not None
        number = max(1, round(view.shape[-2] * view.shape[-1] / self.superpixel_size**2))
        return make_superpixels(view[None], number, self.superpixel_method).labels[0]


def image_tensors(
    network: Any, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> ImageTensors:
    """What a network takes of an image: normalised pixels, and superpixels if it groups them.

    Args:
        network: a timm model.
        mean: of each channel; what its `pretrained_cfg` says if omitted.
        std: likewise.
    """
    description = network.pretrained_cfg
    method = getattr(network, "superpixel_method", None)
    size = {} if method is None else {"superpixel_size": network.superpixel_size}
    return ImageTensors(
        mean=tuple(description["mean"] if mean is None else mean),
        std=tuple(description["std"] if std is None else std),
        superpixel_method=method,
        **size,
    )


class MultiViewImages(Dataset[dict[str, Any]]):
    """Map-style training samples, indexed by `SampleKey`: random by (seed, epoch, index) alone.

    A sample is ``{"views": [(3, H, W) float32, ...]}``, with ``"superpixels": [(H, W) int64, ...]`` where they are
    made, and ``"label"`` where the source knows one. `torch.utils.data.default_collate` makes batches of them.

    Args:
        source: of images.
        transforms: one for each view, PIL image -> PIL image; they may draw from torch's global generator.
        tensors: what is made of each view.
        seed: of everything random.
    """

    def __init__(self, source: ImageSource, transforms: Sequence[nn.Module], tensors: ImageTensors, seed: int) -> None:
        self.source = source
        self.transforms = list(transforms)
        self.tensors = tensors
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        found = self.source[key]
        with drawn_by(self.seed, key):
            views = [F.pil_to_tensor(transform(found.image)) for transform in self.transforms]
        sample: dict[str, Any] = {"views": [self.tensors.pixels(view) for view in views]}
        if self.tensors.superpixel_method is not None:
            sample["superpixels"] = [self.tensors.superpixels(view) for view in views]
        return sample if found.label is None else sample | {"label": found.label}


@contextmanager
def drawn_by(seed: int, key: SampleKey) -> Iterator[None]:
    """Makes torch's global generator a function of (seed, epoch, index) alone; afterwards it is as before."""
    state = np.random.SeedSequence(seed, spawn_key=tuple(key)).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(int(state >> np.uint64(1)))
        yield


def two_views(
    source: ImageSource, image_size: int, tensors: ImageTensors, config: TwoViewConfig, seed: int
) -> MultiViewImages:
    """Two views of each image, which differ in how often they are blurred and solarized.

    Args:
        source: of images.
        image_size: side of a view in pixels.
        tensors: what is made of each view.
        config: the augmentation.
        seed: of everything random.
    """
    transforms = [
        view_transform(image_size, config.crop_scale, blur, solarize, config)
        for blur, solarize in zip(config.blur, config.solarize, strict=True)
    ]
    return MultiViewImages(source, transforms, tensors, seed)


def multi_crop(
    source: ImageSource, image_size: int, tensors: ImageTensors, config: MultiCropConfig, seed: int
) -> MultiViewImages:
    """Two global crops of each image, then the local ones; see `two_views`, with `image_size` of the global crops."""
    crops = [(image_size, config.global_scale)] * 2 + [(config.local_size, config.local_scale)]
    first, second, local = [
        view_transform(size, scale, blur, solarize, config, InterpolationMode.BICUBIC)
        for (size, scale), blur, solarize in zip(crops, config.blur, config.solarize, strict=True)
    ]
    return MultiViewImages(source, [first, second, *[local] * config.num_local], tensors, seed)


def view_transform(
    size: int,
    scale: tuple[float, float],
    blur: float,
    solarize: float,
    config: Photometry,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> nn.Module:
    """One kind of random view, PIL image -> PIL image (size, size): Pillow blurs many times faster than tensors do."""
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
    """Gaussian blur of a PIL image by a deviation drawn uniformly."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Image.Image) -> Image.Image:
        sigma = torch.empty(()).uniform_(*self.sigma)
        return image.filter(ImageFilter.GaussianBlur(float(sigma)))


def _check_scale(name: str, scale: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name}: expected 0 < smallest <= largest <= 1, got {scale}; set (0.08, 1.0), for example")


def _check_shares(name: str, *shares: float) -> None:
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{name}: expected probabilities from 0 to 1, got {shares}; change {name}")
