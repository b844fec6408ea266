"""A text encoder beside any grouping network: images, their segments and texts in one joint space.

Xu et al., "GroupViT: Semantic Segmentation Emerges from Text Supervision" (CVPR 2022), section 3.2, whose vision model
is GroupViT.

Shape legend: B batch, T text tokens, S segments, C tower width, D joint width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.models.builder import create_from_config
from grouping_zoo.models.checkpoint import check_keys, check_shapes, resize_pos_embed
from grouping_zoo.models.text_encoder import TextEncoder

MAX_LOGIT_SCALE = 100.0


class ProjectionMlp(nn.Module):
    """Linear, batch norm, ReLU, linear.

    Args:
        dim: input width C.
        hidden_dim: hidden width.
        out_dim: output width D.
        batch_norm: False leaves the norm out.
    """

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm = nn.BatchNorm1d(hidden_dim) if batch_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., D); the batch norm sees all leading axes as one batch."""
        hidden = self.fc1(x.flatten(0, -2))
        return self.fc2(F.relu(self.norm(hidden))).unflatten(0, x.shape[:-1])


class ImageTextModel(nn.Module):
    """A grouping vision model and a text encoder, projected to one space.

    An image's feature is the mean of its segments', so that what an image learns of its caption, its segments learn.

    Args:
        architecture: timm name of the vision model, of any family that makes groups.
        model_args: its arguments.
        text_args: arguments of `TextEncoder`.
        projection_dim: D.
        projection_hidden_dim: hidden width of both projectors.
        projection_batch_norm: False leaves out the projectors' batch norms.

    Raises:
        ValueError: on an architecture that makes no groups, or arguments that a tower does not take.
    """

    vision: Any

    def __init__(
        self,
        architecture: str = "groupvit_small_patch16_224",
        model_args: dict[str, Any] | None = None,
        text_args: dict[str, Any] | None = None,
        projection_dim: int = 256,
        projection_hidden_dim: int = 4096,
        projection_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.vision = create_from_config(architecture, model_args or {})
        if not self.vision.grouping_heads:
            raise ValueError(f"architecture: expected a network that makes groups, got {architecture}; choose another")
        try:
            self.text = TextEncoder(**(text_args or {}))
        except TypeError as error:
            raise ValueError(f"text_args: TextEncoder does not take them: {error}") from None
        self.image_projector = ProjectionMlp(
            self.vision.segment_width, projection_hidden_dim, projection_dim, projection_batch_norm
        )
        self.text_projector = ProjectionMlp(
            self.text.width, projection_hidden_dim, projection_dim, projection_batch_norm
        )
        # Logarithms of the inverse temperatures of the caption and the multi-label loss.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.multi_label_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        towers = {"vision": self.vision, "text": self.text}
        names = {f"{name}.{key}" for name, tower in towers.items() for key in tower.no_weight_decay()}
        return names | {"logit_scale", "multi_label_logit_scale"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory in both towers."""
        self.vision.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    def encode_image(self, pixel_values: Tensor, **inputs: Any) -> Tensor:
        """Joint feature of each image, not normalised: (B, in_chans, H, W) -> (B, D); `inputs` of the vision model."""
        return self.encode_segments(pixel_values, **inputs)[0]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Joint feature of each text, not normalised: (B, T) -> (B, D)."""
        return self.text_projector(self.text(input_ids, attention_mask))

    def encode_segments(self, pixel_values: Tensor, **inputs: Any) -> tuple[Tensor, Tensor, Grouping]:
        """Joint features of images and of their segments, from one pass.

        Args:
            pixel_values: images (B, in_chans, H, W).
            inputs: what else the vision model takes, see `GroupingNetwork.input_names`.

        Returns:
            image features (B, D), segment features (B, S, D), neither normalised, and the grouping whose coarsest
            groups are the segments.
        """
        grouping = self.vision.segment_grouping(self.vision.forward_grouped(pixel_values, **inputs))
        segments = grouping.tokens[-1]  # (B, S, C)
        return self.image_projector(segments.mean(dim=1)), self.image_projector(segments), grouping

    def forward_grouping(self, pixel_values: Tensor, **inputs: Any) -> Grouping:
        """The vision model's grouping."""
        return self.vision.forward_grouping(pixel_values, **inputs)

    def scale(self, multi_label: bool = False) -> Tensor:
        """The factor on cosine similarities, at most 100."""
        logarithm = self.multi_label_logit_scale if multi_label else self.logit_scale
        return logarithm.exp().clamp(max=MAX_LOGIT_SCALE)


def load_towers(model: ImageTextModel, state_dict: Mapping[str, Tensor]) -> None:
    """Loads an `ImageTextModel`'s tensors into another of the same parts; the image size may differ.

    Raises:
        ValueError: listing missing and leftover keys, and keys of another shape.
    """
    tensors, expected = dict(state_dict), model.state_dict()
    check_keys(tensors, expected)
    if "vision.pos_embed" in tensors:
        resize_pos_embed(tensors, "vision.pos_embed", model.vision)
    check_shapes(tensors, expected)
    model.load_state_dict(tensors)
