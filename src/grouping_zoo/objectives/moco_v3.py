"""MoCo-v3: contrastive learning of an encoder against the keys of its own moving average.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021), Algorithm 1.

Shape legend: B images of this process, W processes, D width of the compared space, T temperature.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.objectives.encoder import feature_width, view_inputs
from grouping_zoo.objectives.gather import gather
from grouping_zoo.objectives.momentum import MomentumObjective, momentum_copy
from grouping_zoo.settings import require


@dataclass(kw_only=True)
class MoCoV3Config:
    """Settings of `MoCoV3Objective`."""

    hidden_dim: int = 4096
    """Hidden width of projector and predictor."""
    out_dim: int = 256
    """Width D of the compared space."""
    temperature: float = 0.2
    """T."""
    momentum: float = 0.99
    """Fraction of the momentum encoder that stays at an update; it rises to 1 by a half cosine."""
    freeze_patch_embed: bool = False
    """Leave the patch embedding as it was drawn, as MoCo-v3 does with plain ViTs; CAST trains its stem of
    convolutions."""

    def __post_init__(self) -> None:
        require(self, "objective.hidden_dim", self.hidden_dim >= 1, "at least 1")
        require(self, "objective.out_dim", self.out_dim >= 1, "at least 1")
        require(self, "objective.temperature", self.temperature > 0, "more than 0")
        require(self, "objective.momentum", 0 <= self.momentum < 1, "0 to below 1")


class MoCoV3Objective(MomentumObjective):
    """Symmetric contrastive loss between the queries of one view and the momentum encoder's keys of the other.

    With normalised queries q and keys k of two views of W B images, the loss is L(q1, k2) + L(q2, k1), where
        L(q, k) = 2 T mean_i -log softmax_j(q_i . k_j / T)[i].

    Args:
        model: the encoder that is trained and published: any timm model without head, images (B, 3, H, W) to features.
        config: the settings.

    Raises:
        ValueError: of a model without patch embedding that is to be frozen.
    """

    averages_statistics = False

    def __init__(self, model: nn.Module, config: MoCoV3Config) -> None:
        super().__init__(config.momentum)
        if config.freeze_patch_embed:
            patch_embed = dict(model.named_children()).get("patch_embed")
            if patch_embed is None:
                raise ValueError(
                    f"objective.freeze_patch_embed: expected a model with a patch embedding, got "
                    f"{type(model).__name__}; set false"
                )
            patch_embed.requires_grad_(False)
        self.temperature = config.temperature
        self.model: Any = model
        self.projector = batch_norm_mlp(feature_width(model), config.hidden_dim, config.out_dim, num_layers=3)
        self.predictor = batch_norm_mlp(config.out_dim, config.hidden_dim, config.out_dim, num_layers=2)
        self.momentum_model: Any = momentum_copy(self.model)
        self.momentum_projector = momentum_copy(self.projector)

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return momentum encoder and encoder, and their projectors."""
        return [(self.momentum_model, self.model), (self.momentum_projector, self.projector)]

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            batch: "views", two tensors (B, 3, H, W) normalised; and two tensors under the name of each extra input of
                the network.

        Returns:
            "loss"; "accuracy", the fraction of queries whose own key is the nearest, in per cent; and "key_std", the
            standard deviation of the normalised keys over images times sqrt(D): about 1 as it should be, 0 where all
            images have collapsed to one point.
        """
        views = batch["views"]
        extras = view_inputs(self.model, batch)
        queries = [
            F.normalize(self.predictor(self.projector(self.model(view, **extra))), dim=1)
            for view, extra in zip(views, extras, strict=True)
        ]
        with torch.no_grad():
            keys = [
                F.normalize(self.momentum_projector(self.momentum_model(view, **extra)), dim=1)
                for view, extra in zip(views, extras, strict=True)
            ]
            all_keys = [gather(key) for key in keys]
        first, first_accuracy = contrastive_loss(queries[0], all_keys[1], self.temperature)
        second, second_accuracy = contrastive_loss(queries[1], all_keys[0], self.temperature)
        key_std = all_keys[0].float().std(dim=0).mean() * math.sqrt(all_keys[0].shape[1])
        return {
            "loss": first + second,
            "accuracy": (first_accuracy + second_accuracy) / 2,
            "key_std": key_std,
        }


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE, scaled by 2 T, of queries whose own keys stand at the same place of this process's part of the keys.

    Args:
        queries: (B, D) normalised.
        keys: (W B, D) normalised, of all processes in rank order.
        temperature: T.

    Returns:
        the loss, and the fraction of queries whose own key is the nearest in per cent.
    """
    logits = queries @ keys.T / temperature  # (B, W B)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    target = torch.arange(len(queries), device=queries.device) + rank * len(queries)
    accuracy = 100 * (logits.argmax(dim=1) == target).float().mean()
    return 2 * temperature * F.cross_entropy(logits, target), accuracy


def batch_norm_mlp(in_features: int, hidden_features: int, out_features: int, num_layers: int) -> nn.Sequential:
    """Linear layers, each with a batch norm after it, the inner ones with ReLU; that of the output learns no scale.

    Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021), section 5.

    Args:
        in_features: width of the input.
        hidden_features: width between the layers.
        out_features: width of the output.
        num_layers: linear layers.

    Returns:
        a network (B, in_features) -> (B, out_features).
    """
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [
            nn.Linear(in_features, hidden_features, bias=False),  # the batch norm has a bias
            nn.BatchNorm1d(hidden_features),
            nn.ReLU(inplace=True),
        ]
        in_features = hidden_features
    return nn.Sequential(
        *layers, nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features, affine=False)
    )
