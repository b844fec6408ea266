"""From an image to what a network takes of it: the one way of training, evaluation, image processor and inference."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from grouping_zoo.models.family import as_grouping_network

InputMaker = Callable[[Tensor], Tensor]
PIXELS = "pixel_values"


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """Prepares images as timm does for evaluation, and any finished view as the network takes it.

    Args:
        image_size: (height, width) of the network's images.
        mean: of each channel, for images in [0, 1].
        std: likewise.
        crop_pct: fraction of the resized image's sides that the crop keeps.
        crop_mode: "center" resizes the shorter side and crops the center; any other resizes without regard to the
            aspect ratio.
        interpolation: Pillow's name of the resampling, "bicubic" for example.
        input_makers: name of each tensor that the network takes beside the pixels -> function of the uint8 view
            (3, H, W).
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    input_makers: Mapping[str, InputMaker] = field(default_factory=dict)

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        """Return the network's inputs of an RGB image, resized and cropped to `image_size`."""
        return self.inputs(F.pil_to_tensor(self.crop(image)))

    def inputs(self, view: Tensor) -> dict[str, Tensor]:
        """Return the network's inputs of a finished view.

        Args:
            view: (3, H, W) uint8.

        Returns:
            "pixel_values" (3, H, W) float32, normalised, and what the input makers make of the view.
        """
        return {PIXELS: self.pixels(view)} | {name: make(view) for name, make in self.input_makers.items()}

    def pixels(self, view: Tensor) -> Tensor:
        """Return a view (3, H, W) uint8 as normalised float32."""
        return normalized(view, self.mean, self.std)

    def crop(self, image: Image.Image, resample: Image.Resampling | None = None) -> Image.Image:
        """Resize an image and crop its center, to `image_size`.

        Args:
            image: of any mode that Pillow resizes.
            resample: in place of the own one; the nearest for masks.
        """
        height, width = self.image_size
        view = resize(image, self._resized(image.size), self.resample if resample is None else resample)
        return F.center_crop(view, [height, width])

    def whole(self, image: Image.Image) -> Image.Image:
        """Resize an image so that its shorter side is that of `image_size`, without cropping."""
        scale = min(self.image_size) / min(image.size)
        return resize(image, (round(scale * image.width), round(scale * image.height)), self.resample)

    def crop_mask(self, mask: np.ndarray) -> Tensor:
        """Crop a mask (H, W) like its image, to (h, w) int64."""
        # 32-bit integers: the only kind beside 8-bit ones that Pillow resizes without loss.
        view = self.crop(Image.fromarray(mask.astype(np.int32)), Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(view).astype(np.int64))

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's resampling."""
        return Image.Resampling[self.interpolation.upper()]

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the inputs as plain values, for a cache's key."""
        values = {name: value for name, value in vars(self).items() if name != "input_makers"}
        return values | {"input_makers": {name: _described(make) for name, make in self.input_makers.items()}}

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) before the crop."""
        target = (math.floor(self.image_size[1] / self.crop_pct), math.floor(self.image_size[0] / self.crop_pct))
        if self.crop_mode != "center":
            return target
        if target[0] == target[1]:
            return shorter_side_resized(size, target[0])
        scale = max(target[0] / size[0], target[1] / size[1])
        return max(target[0], math.floor(scale * size[0])), max(target[1], math.floor(scale * size[1]))


def input_transform(
    network: Any,
    *,
    image_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
) -> InputTransform:
    """Return the transform that prepares images for a network.

    Args:
        network: a timm model.
        image_size: (height, width) in place of its own.
        mean: of each channel, in place of its own.
        std: likewise.
        pretrained_cfg: in place of the network's own.
    """
    grouping_network = as_grouping_network(network)
    cfg = network.pretrained_cfg if pretrained_cfg is None else pretrained_cfg
    height, width = cfg["input_size"][-2:] if image_size is None else image_size
    return InputTransform(
        image_size=(height, width),
        mean=tuple(cfg["mean"] if mean is None else mean),
        std=tuple(cfg["std"] if std is None else std),
        crop_pct=cfg.get("crop_pct") or 1.0,
        crop_mode=cfg.get("crop_mode") or "center",
        interpolation=cfg.get("interpolation") or "bicubic",
        input_makers={} if grouping_network is None else grouping_network.input_makers(),
    )


def shorter_side_resized(size: tuple[int, int], target: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at `target`, rounded down as torchvision and timm do."""
    shorter, longer = sorted(size)
    resized = int(target * longer / shorter)
    return (target, resized) if size[0] <= size[1] else (resized, target)


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Return an image at (width, height); it stays itself where it has that size."""
    return image if image.size == size else image.resize(size, resample)


def normalized(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return a view (3, H, W) uint8 as float32 of [0, 1] less the mean, by the standard deviation."""
    return F.normalize(F.to_dtype(view, torch.float32, scale=True), list(mean), list(std))


def _described(make: InputMaker) -> str:
    if isinstance(make, functools.partial):
        return f"{make.func.__module__}.{make.func.__qualname__}{make.args}{make.keywords}"
    return f"{make.__module__}.{make.__qualname__}"
