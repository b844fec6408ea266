"""Image processor of the image families: timm's evaluation preprocessing as transformers' settings."""

import math
from typing import Any

import torch.nn.functional as F
from PIL.Image import Resampling
from timm.models import get_model_input_config
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.modeling_outputs import SemanticSegmenterOutput


class ZooImageProcessor(TorchvisionBackend):
    """Resizes an image, crops its centre, scales it to [0, 1] and normalises it."""

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
        """The processor that prepares images as timm does for the network.

        Args:
            network: a timm network.
            whole: resize the whole image to the network's size without cropping, as segmentation needs it.
        """
        description = network.pretrained_cfg
        height, width = get_model_input_config(network)["input_size"][-2:]
        share = description["crop_pct"]
        resized = {"height": math.floor(height / share), "width": math.floor(width / share)}
        if whole:
            resized = {"height": height, "width": width}
        elif description.get("crop_mode", "center") == "center" and height == width:
            resized = {"shortest_edge": resized["height"]}
        return cls(
            size=resized,
            do_center_crop=not whole,
            crop_size={"height": height, "width": width},
            resample=Resampling[description["interpolation"].upper()],
            image_mean=list(description["mean"]),
            image_std=list(description["std"]),
            **cls.network_settings(network),
        )

    @classmethod
    def network_settings(cls, network: Any) -> dict[str, Any]:
        """Settings of a family's own processor, from its network."""
        return {}

    def post_process_semantic_segmentation(
        self, outputs: SemanticSegmenterOutput, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """The best class of every pixel.

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
