"""CAST as transformers classes; they hold the one network and take superpixels beside the images.

Shape legend: B images, N_l tokens of level l (N_0 superpixels), C width, K classes, (H, W) image size.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import ImagesKwargs

from grouping_zoo.hf.image_processing import ZooImageProcessor
from grouping_zoo.hf.vision import (
    ZooBackbone,
    ZooForImageClassification,
    ZooForSemanticSegmentation,
    ZooImageClassifierOutput,
    ZooSemanticSegmenterOutput,
    ZooVisionConfig,
    ZooVisionModel,
    ZooVisionModelOutput,
    register_family,
)
from grouping_zoo.layers.superpixels import superpixels_by_size
from grouping_zoo.models.cast import CAST
from grouping_zoo.models.cast_parts import LevelFusion
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork


class CASTImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings beside transformers' own; see `CASTImageProcessor`."""

    superpixel_method: str
    superpixel_size: int


class CASTImageProcessor(ZooImageProcessor):
    """Prepares images and cuts them into superpixels, as the network would do itself.

    Superpixels are made on the resized and cropped image before it is normalised: `superpixels` (B, H, W) int64
    beside `pixel_values`.

    Settings beside transformers' own: `superpixel_method` ("seeds", "slic" or "grid") and `superpixel_size`, the side
    in pixels of a square as large as a superpixel.
    """

    valid_kwargs = CASTImageProcessorKwargs
    model_input_names = ["pixel_values", "superpixels"]  # noqa: RUF012 - the backend's own convention
    superpixel_method = "seeds"
    superpixel_size = 16

    @classmethod
    def network_settings(cls, network: Any) -> dict[str, Any]:
        """The network's own kind of superpixels."""
        return dict(superpixel_method=network.superpixel_method, superpixel_size=network.superpixel_size)

    # The settings that it does not use itself go on unnamed.
    def _preprocess(self, *args: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        raw = {"do_rescale": False, "do_normalize": False, "return_tensors": None}
        resized = super()._preprocess(*args, **{**kwargs, **raw})["pixel_values"]
        normalize = {
            key: kwargs[key] for key in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        }
        # Values are whole numbers up to 255, or fractions of 1 where they are not rescaled any more.
        scale = 1 if not resized[0].is_floating_point() or kwargs["do_rescale"] else 255
        superpixels = []
        for image in resized:
            levels = (image * scale).round() if image.is_floating_point() else image
            levels = levels.clamp(0, 255).to(torch.uint8)
            superpixels.append(superpixels_by_size(levels, kwargs["superpixel_size"], kwargs["superpixel_method"]))
        data = {
            "pixel_values": [self.rescale_and_normalize(image, **normalize) for image in resized],
            "superpixels": superpixels,
        }
        return BatchFeature(data=data, tensor_type=kwargs["return_tensors"])


class CASTConfig(ZooVisionConfig):
    """Configuration of the CAST classes; see `ZooVisionConfig` for the arguments."""

    model_type = "cast"
    network_class: ClassVar[type[GroupingNetwork]] = CAST
    image_processor_class: ClassVar[type[ZooImageProcessor]] = CASTImageProcessor

    architecture: str = "cast_small"


class CASTModel(ZooVisionModel):
    """CAST without head."""

    config_class = CASTConfig

    def forward(
        self,
        pixel_values: Tensor,
        superpixels: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> ZooVisionModelOutput:
        """Features and grouping of images.

        In a batch, an image with fewer superpixels than another has tokens too many, which influence nothing.

        Args:
            pixel_values: (B, in_chans, H, W), any size.
            superpixels: (B, H, W) int64 label map, as the image processor makes it; made from the images if omitted.
            num_clusters: clusters of each stage, in place of the model's own.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        return super().forward(pixel_values, superpixels=superpixels, num_clusters=num_clusters, **kwargs)


class CASTForImageClassification(ZooForImageClassification):
    """CAST with its linear head."""

    config_class = CASTConfig

    def forward(
        self,
        pixel_values: Tensor,
        superpixels: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ZooImageClassifierOutput:
        """Classifies images; see `CASTModel.forward` and `ZooForImageClassification.forward`."""
        return super().forward(
            pixel_values, labels=labels, superpixels=superpixels, num_clusters=num_clusters, **kwargs
        )


class CASTBackbone(ZooBackbone):
    """CAST as a backbone: each cell of the stem's grid with the token that its superpixel belongs to."""

    config_class = CASTConfig

    def forward(  # type: ignore[override]  # as the other classes, not as the mixin's template
        self,
        pixel_values: Tensor,
        superpixels: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Feature maps; see `CASTModel.forward` and `ZooBackbone.forward`."""
        return super().forward(pixel_values, superpixels=superpixels, num_clusters=num_clusters, **kwargs)


class SegmentTokenHead(nn.Module):
    """Two 1x1 convolutions on the fused levels of each superpixel, which stand for all its pixels.

    Ke et al., "CAST" (2022), appendix on transfer learning. A convolution of one pixel gives the same on all pixels
    of a superpixel, so it runs once on each.

    Args:
        dim: width C.
        num_levels: levels to fuse first; 0 where the network has fused them.
        num_labels: K.
    """

    def __init__(self, dim: int, num_levels: int, num_labels: int) -> None:
        super().__init__()
        self.fusion = LevelFusion(dim, num_levels) if num_levels else None
        self.conv1 = nn.Conv1d(dim, dim, 1)
        self.conv2 = nn.Conv1d(dim, num_labels, 1)

    def forward(self, levels: list[Tensor], valid: Tensor) -> Tensor:
        """Levels (B, N_0, C), and which superpixels an image has (B, N_0) -> logits (B, K, N_0)."""
        tokens = levels[0] if self.fusion is None else self.fusion(levels, valid)
        return self.conv2(F.relu(self.conv1(tokens.transpose(1, 2))))


class CASTForSemanticSegmentation(ZooForSemanticSegmentation):
    """CAST with a segmentation head on the superpixels: of the dense variant's fused tokens, or of all levels."""

    config_class = CASTConfig

    def make_head(self, num_labels: int) -> nn.Module:
        """See `SegmentTokenHead`."""
        num_levels = 0 if self.model.dense else len(self.model.stages)
        return SegmentTokenHead(self.model.embed_dim, num_levels, num_labels)

    def segment(self, encoded: GroupedFeatures, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W): each pixel has those of its superpixel."""
        superpixels = encoded.grouping.superpixels
        assert superpixels is not None
        labels = superpixels.flatten(1)  # (B, H * W)
        levels = [encoded.features[:, 1:]] if self.model.dense else _unpooled(encoded)
        valid = torch.arange(levels[0].shape[1], device=labels.device) <= labels.amax(dim=1, keepdim=True)
        logits = self.segmentation_head(levels, valid)  # (B, K, N_0)
        return logits.gather(2, labels[:, None].expand(-1, logits.shape[1], -1)).unflatten(2, size)

    def forward(
        self,
        pixel_values: Tensor,
        superpixels: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ZooSemanticSegmenterOutput:
        """Classifies every pixel; see `CASTModel.forward` and `ZooForSemanticSegmentation.forward`."""
        return super().forward(
            pixel_values, labels=labels, superpixels=superpixels, num_clusters=num_clusters, **kwargs
        )


def _unpooled(encoded: GroupedFeatures) -> list[Tensor]:
    """For each stage the token that every superpixel belongs to: (B, N_0, C) each."""
    levels = encoded.stages[:1]
    chain = torch.arange(levels[0].shape[1], device=levels[0].device).expand(len(levels[0]), -1)
    for level, tokens in enumerate(encoded.stages[1:]):
        chain = encoded.grouping.parents(level).gather(1, chain)  # (B, N_0)
        levels.append(tokens.gather(1, chain[:, :, None].expand(-1, -1, tokens.shape[2])))
    return levels


register_family(
    CASTConfig,
    model=CASTModel,
    classifier=CASTForImageClassification,
    segmenter=CASTForSemanticSegmentation,
    backbone=CASTBackbone,
)
