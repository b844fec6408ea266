"""VT-FPN, and the plain feature pyramid, as a transformers class; it holds the one network.

Shape legend: B images, K classes, (H, W) image size.
"""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation
from transformers.utils import can_return_tuple

from grouping_zoo.hf.vision import (
    ZooOwnHeadModel,
    ZooSemanticSegmenterOutput,
    ZooVisionConfig,
    register_family,
    segmentation_loss,
)
from grouping_zoo.models.family import GroupingNetwork
from grouping_zoo.models.vt_fpn import SemanticFPN


class VTFPNConfig(ZooVisionConfig):
    """Configuration of `VTFPNForSemanticSegmentation`; see `ZooVisionConfig` for the arguments."""

    model_type = "vt_fpn"
    network_class: ClassVar[type[GroupingNetwork]] = SemanticFPN
    head_class: ClassVar[Any] = AutoModelForSemanticSegmentation

    architecture: str = "vt_fpn_resnet50"


class VTFPNForSemanticSegmentation(ZooOwnHeadModel):
    """VT-FPN, or the plain pyramid, on any timm backbone; the segmentation head is the network's own."""

    config_class = VTFPNConfig

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ZooSemanticSegmenterOutput:
        """Classifies every pixel.

        Args:
            pixel_values: (B, in_chans, H, W), any size that the backbone takes.
            labels: (B, H', W') int64, `semantic_loss_ignore_index` where unknown; also returns the cross-entropy.
            output_hidden_states: also return the pyramid's maps and their sum.
            output_attentions: also return the assignment of the finest level, of a VT-FPN.

        Returns:
            the prediction interpolated to (H, W), and the finest level's `grouping`; a plain pyramid has none.
        """
        found = self.model.forward_grouped(pixel_values)
        logits = F.interpolate(
            self.model.forward_head(found.features), size=pixel_values.shape[-2:], mode="bilinear", align_corners=False
        )
        return ZooSemanticSegmenterOutput(
            loss=None if labels is None else segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index),
            logits=logits,
            **self._extras(found, output_hidden_states, output_attentions),
        )


register_family(VTFPNConfig, segmenter=VTFPNForSemanticSegmentation)
