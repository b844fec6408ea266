"""Image processor of the image families: timm's evaluation preprocessing as transformers' settings."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.Image import Resampling
from timm.models import get_model_input_config
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict
from transformers.modeling_outputs import SemanticSegmenterOutput

from grouping_zoo.data.images import as_rgb, grey_to_8_bits
from grouping_zoo.data.input_transform import resize, shorter_side_resized


class PillowResizing(TorchvisionBackend):
    """Image processor that reads, resizes, crops and normalises images as `open_image` and `InputTransform` do."""

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Return an image as a tensor (C, H, W), its colors as `open_image` gives them."""
        if isinstance(image, Image.Image) and do_convert_rgb:
            image = as_rgb(image)
        elif not isinstance(image, Image.Image):
            array = np.asarray(image)
            if array.dtype.kind in "iu" and array.dtype != np.uint8:
                image = grey_to_8_bits(array)
        return super().process_image(image, do_convert_rgb, *args, **kwargs)

    def resize(
        self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> Tensor:
        """Resize images (B, C, H, W): 8-bit ones on the CPU by Pillow, any others by torchvision."""
        width_height = _target(image, size)
        if width_height is None or image.dtype != torch.uint8 or image.device.type != "cpu" or not antialias:
            return super().resize(image, size, resample, antialias, **kwargs)
        resampling = Resampling.BILINEAR if resample is None else _pillow_resampling(resample)
        resized = [
            np.asarray(resize(Image.fromarray(channel.numpy()), width_height, resampling))
            for channel in image.flatten(0, -3)  # one channel a time, however many there are
        ]
        return torch.from_numpy(np.stack(resized)).unflatten(0, image.shape[:-2])

    def center_crop(self, image: Tensor, size: SizeDict, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Crop images (B, C, H, W); of an odd margin torchvision and timm leave the larger part elsewhere."""
        return center_crop(image, [size.height, size.width])

    def rescale_and_normalize(
        self,
        images: Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
    ) -> Tensor:
        """Rescale and normalise in two steps: the backend's single one rounds otherwise."""
        if do_rescale:
            images = self.rescale(images.to(torch.float32), rescale_factor)
        return self.normalize(images.to(torch.float32), image_mean, image_std) if do_normalize else images


class ZooImageProcessor(PillowResizing):
    """Resizes an image, crops its center, scales it to [0, 1] and normalises it."""

    resample = Resampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}  # noqa: RUF012 - the backend's own convention
    default_to_square = False
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012 - the backend's own convention
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    @classmethod
    def of_network(cls, network: Any, whole: bool = False) -> "ZooImageProcessor":
        """Return the processor that prepares images as timm does for the network.

        Args:
            network: a timm network.
            whole: resize the whole image to the network's size without cropping, as segmentation needs it.
        """
        cfg = network.pretrained_cfg
        height, width = get_model_input_config(network)["input_size"][-2:]
        crop_pct = cfg["crop_pct"]
        resized = {"height": math.floor(height / crop_pct), "width": math.floor(width / crop_pct)}
        if whole:
            resized = {"height": height, "width": width}
        elif cfg.get("crop_mode", "center") == "center" and height == width:
            resized = {"shortest_edge": resized["height"]}
        return cls(
            size=resized,
            do_center_crop=not whole,
            crop_size={"height": height, "width": width},
            resample=Resampling[cfg["interpolation"].upper()],
            image_mean=list(cfg["mean"]),
            image_std=list(cfg["std"]),
            **cls.network_settings(network),
        )

    @classmethod
    def network_settings(cls, network: Any) -> dict[str, Any]:
        """Return the settings of a family's own processor, from its network."""
        return {}

    def post_process_semantic_segmentation(
        self, outputs: SemanticSegmenterOutput, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Return the best class of every pixel.

        Args:
            outputs: of a segmentation class.
            target_sizes: (height, width) of each map; the logits' own size if omitted.

        Returns:
            for each image an int64 map (height, width).

        Raises:
            ValueError: unless there are as many sizes as images.
        """
        logits = outputs.logits
        assert logits is not None
        sizes = target_sizes or [(logits.shape[-2], logits.shape[-1])] * len(logits)
        if len(sizes) != len(logits):
            raise ValueError(f"target_sizes: expected one for each of {len(logits)} images, got {len(sizes)}")
        return [
            F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)
            for one, size in zip(logits, sizes, strict=True)
        ]


def _target(image: Tensor, size: SizeDict) -> tuple[int, int] | None:
    """(width, height) that images (..., H, W) are resized to; None for the sizes that this package does not use."""
    if size.shortest_edge and not size.longest_edge:
        return shorter_side_resized((image.shape[-1], image.shape[-2]), size.shortest_edge)
    return (size.width, size.height) if size.height and size.width else None


def _pillow_resampling(resample: Any) -> Resampling:
    """Pillow's resampling of a Pillow or torchvision one."""
    return Resampling[resample.name] if isinstance(resample, InterpolationMode) else Resampling(resample)
