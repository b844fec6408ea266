"""GroupViT's vision encoder as transformers classes; they hold the one network. With texts: `hf.image_text`.

Shape legend: B images, N_l tokens of stage l (N_0 patches on an h x w grid), C width, K classes, (H, W) image size.
"""

from typing import Any, ClassVar

import torch
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
    pixel_logits,
    register_family,
)
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork
from grouping_zoo.models.groupvit import GroupViT


class ZooGroupViTVisionConfig(ZooVisionConfig):
    """Configuration of the vision encoder's classes; see `ZooVisionConfig` for the arguments."""

    model_type = "zoo_groupvit_vision"
    network_class: ClassVar[type[GroupingNetwork]] = GroupViT

    architecture: str = "groupvit_small_patch16_224"


class ZooGroupViTVisionModel(ZooVisionModel):
    """GroupViT's vision encoder without head; its hidden states are each stage's tokens and, last, the segments."""

    config_class = ZooGroupViTVisionConfig

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ZooVisionModelOutput:
        """Features and grouping of images.

        Args:
            pixel_values: (B, in_chans, H, W), any size.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        return super().forward(pixel_values, **kwargs)


class ZooGroupViTForImageClassification(ZooForImageClassification):
    """GroupViT's vision encoder with its linear head on the mean of the segments."""

    config_class = ZooGroupViTVisionConfig

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ZooImageClassifierOutput:
        """Classifies images; see `ZooGroupViTVisionModel.forward` and `ZooForImageClassification.forward`."""
        return super().forward(pixel_values, labels=labels, **kwargs)


class ZooGroupViTBackbone(ZooBackbone):
    """GroupViT as a backbone: each stage's tokens spread over the patches by the soft assignments, (B, C, h, w)."""

    config_class = ZooGroupViTVisionConfig

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:  # type: ignore[override]
        """Feature maps; see `ZooGroupViTVisionModel.forward` and `ZooBackbone.forward`."""
        return super().forward(pixel_values, **kwargs)


class ZooGroupViTForSemanticSegmentation(ZooForSemanticSegmentation):
    """GroupViT's vision encoder with a linear layer on the tokens of all stages, spread over the patches."""

    config_class = ZooGroupViTVisionConfig

    def make_head(self, num_labels: int) -> nn.Module:
        """Stages * C -> K, for each patch."""
        return nn.Linear(len(self.model.stages) * self.model.embed_dim, num_labels)

    def segment(self, encoded: GroupedFeatures, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W), interpolated from the patches'."""
        grouping = encoded.grouping
        assert grouping is not None
        assert grouping.grid is not None
        spread = [grouping.compose(level).to(tokens.dtype) @ tokens for level, tokens in enumerate(encoded.stages)]
        logits = self.segmentation_head(torch.cat(spread, dim=2))  # (B, N_0, K)
        return pixel_logits(logits, grouping.grid, self.model.patch_size, size)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ZooSemanticSegmenterOutput:
        """Classifies every pixel; see `ZooGroupViTVisionModel.forward` and `ZooForSemanticSegmentation.forward`."""
        return super().forward(pixel_values, labels=labels, **kwargs)


register_family(
    ZooGroupViTVisionConfig,
    model=ZooGroupViTVisionModel,
    classifier=ZooGroupViTForImageClassification,
    segmenter=ZooGroupViTForSemanticSegmentation,
    backbone=ZooGroupViTBackbone,
)
