"""VT-ResNet as transformers classes; they hold the one network.

Shape legend: B images, K classes, (H, W) image size, (h, w) feature map.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BackboneOutput

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
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork
from grouping_zoo.models.vt_fpn import SemanticHead, VTNeck
from grouping_zoo.models.vt_resnet import VTResNet

TOKENS_A_LEVEL = 8


class VTResNetConfig(ZooVisionConfig):
    """Configuration of the VT-ResNet classes; see `ZooVisionConfig` for the arguments."""

    model_type = "vt_resnet"
    network_class: ClassVar[type[GroupingNetwork]] = VTResNet

    architecture: str = "vt_resnet18"


class VTResNetModel(ZooVisionModel):
    """VT-ResNet without head; its hidden states are the feature maps and, last, the tokens."""

    config_class = VTResNetConfig

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ZooVisionModelOutput:
        """Features and grouping of images.

        Args:
            pixel_values: (B, in_chans, H, W), any size from 32 up.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        return super().forward(pixel_values, **kwargs)


class VTResNetForImageClassification(ZooForImageClassification):
    """VT-ResNet with its linear head."""

    config_class = VTResNetConfig

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ZooImageClassifierOutput:
        """Classifies images; see `VTResNetModel.forward` and `ZooForImageClassification.forward`."""
        return super().forward(pixel_values, labels=labels, **kwargs)


class VTResNetBackbone(ZooBackbone):
    """VT-ResNet as a backbone: the maps of the stem, of each stage, and that with the tokens put back."""

    config_class = VTResNetConfig

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:  # type: ignore[override]
        """Feature maps; see `VTResNetModel.forward` and `ZooBackbone.forward`."""
        return super().forward(pixel_values, **kwargs)


class VTPyramidHead(nn.Module):
    """VT-FPN's neck and head on feature maps, and a classifier.

    Widths go with the network's tokens; with 1024 channels they are the paper's: 256, 8 tokens of 1024, 128.

    Args:
        in_channels: of each map, from fine to coarse.
        token_dim: C_T.
        num_labels: K.
    """

    def __init__(self, in_channels: Sequence[int], token_dim: int, num_labels: int) -> None:
        super().__init__()
        dim, head_dim = token_dim // 4, token_dim // 8
        self.neck = VTNeck(in_channels, dim, TOKENS_A_LEVEL, token_dim)
        self.head = SemanticHead(dim, head_dim, len(in_channels))
        self.classifier = nn.Conv2d(head_dim, num_labels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C_l, h_l, w_l) of each level to logits (B, K, h_0, w_0)."""
        return self.classifier(self.head(self.neck(maps)))


class VTResNetForSemanticSegmentation(ZooForSemanticSegmentation):
    """VT-ResNet with VT-FPN's pyramid on the maps of its stages and on that with the tokens put back.

    A VT-FPN on another backbone, as the paper trains it on ResNet, is `VTFPNForSemanticSegmentation`.
    """

    config_class = VTResNetConfig

    def make_head(self, num_labels: int) -> nn.Module:
        """See `VTPyramidHead`."""
        channels = [stage["num_chs"] for stage in self.model.feature_info[1:]]
        return VTPyramidHead(channels, self.model.num_features, num_labels)

    def segment(self, encoded: GroupedFeatures, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W), interpolated from the finest stage's."""
        logits = self.segmentation_head(encoded.stages[1:])  # without the stem's map
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ZooSemanticSegmenterOutput:
        """Classifies every pixel; see `VTResNetModel.forward` and `ZooForSemanticSegmentation.forward`."""
        return super().forward(pixel_values, labels=labels, **kwargs)


register_family(
    VTResNetConfig,
    model=VTResNetModel,
    classifier=VTResNetForImageClassification,
    segmenter=VTResNetForSemanticSegmentation,
    backbone=VTResNetBackbone,
)
