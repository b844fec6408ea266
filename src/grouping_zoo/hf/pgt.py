"""PGT as transformers classes; they hold the one network and take the number of groups, iterations and the seed.

Shape legend: B images, N input tokens, D their width, A grouping heads, M group tokens a head, d their width, K
classes, (H, W) image size, (h, w) patch grid.
"""

from typing import Any, ClassVar

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
from grouping_zoo.models.pgt import PGT, Groups


class PGTConfig(ZooVisionConfig):
    """Configuration of the PGT classes; see `ZooVisionConfig` for the arguments."""

    model_type = "pgt"
    network_class: ClassVar[type[GroupingNetwork]] = PGT

    architecture: str = "pgt_base"


class PGTModel(ZooVisionModel):
    """PGT without head.

    Its hidden states are each layer's refined input tokens (B, N, D) and, last, the last layer's group tokens
    (B, A * M, d), which are the `last_hidden_state` too.
    """

    config_class = PGTConfig

    def forward(
        self,
        pixel_values: Tensor,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> ZooVisionModelOutput:
        """Features and the last layer's grouping of images; `forward_grouping` takes any other `layer` and `head`.

        Args:
            pixel_values: (B, in_chans, H, W), any size.
            num_groups: group tokens M of each head, in all layers or for each block, in place of the model's own.
            num_iters: binding iterations, in place of the model's own.
            seed: of the draws that group tokens start from. Omitted: 0 at evaluation, fresh draws in training.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        return super().forward(pixel_values, num_groups=num_groups, num_iters=num_iters, seed=seed, **kwargs)


class PGTForImageClassification(ZooForImageClassification):
    """PGT with its linear head."""

    config_class = PGTConfig

    def forward(
        self,
        pixel_values: Tensor,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ZooImageClassifierOutput:
        """Classifies images; see `PGTModel.forward` and `ZooForImageClassification.forward`."""
        return super().forward(
            pixel_values, labels=labels, num_groups=num_groups, num_iters=num_iters, seed=seed, **kwargs
        )


class PGTBackbone(ZooBackbone):
    """PGT as a backbone: each layer's refined input tokens as a map (B, D, h, w)."""

    config_class = PGTConfig

    def forward(  # type: ignore[override]  # as the other classes, not as the mixin's template
        self,
        pixel_values: Tensor,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Feature maps; see `PGTModel.forward` and `ZooBackbone.forward`."""
        return super().forward(pixel_values, num_groups=num_groups, num_iters=num_iters, seed=seed, **kwargs)


class PGTForSemanticSegmentation(ZooForSemanticSegmentation):
    """PGT with a linear layer on the input tokens that the last layer has refined.

    Deng et al., "Perceptual Group Tokenizer" (ICLR 2024), section 4.4.
    """

    config_class = PGTConfig

    def make_head(self, num_labels: int) -> nn.Module:
        """D -> K, for each token."""
        return nn.Linear(self.model.embed_dim, num_labels)

    def segment(self, encoded: GroupedFeatures, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W), interpolated from the patches'."""
        assert encoded.grouping is not None
        grid = encoded.grouping.grid
        assert grid is not None
        logits = self.segmentation_head(encoded.stages[-1])  # (B, N, K)
        return pixel_logits(logits, grid, self.model.patch_size, size)

    def forward(
        self,
        pixel_values: Tensor,
        num_groups: Groups | None = None,
        num_iters: int | None = None,
        seed: int | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ZooSemanticSegmenterOutput:
        """Classifies every pixel; see `PGTModel.forward` and `ZooForSemanticSegmentation.forward`."""
        return super().forward(
            pixel_values, labels=labels, num_groups=num_groups, num_iters=num_iters, seed=seed, **kwargs
        )


register_family(
    PGTConfig,
    model=PGTModel,
    classifier=PGTForImageClassification,
    segmenter=PGTForSemanticSegmentation,
    backbone=PGTBackbone,
)
