"""MoCo-v3: the views of an image find each other among the views of all images.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021), Algorithm 1.

Shape legend: B images of this process, W processes, D width of the compared space, T temperature.
"""

import math
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.objectives.gather import gather
from grouping_zoo.objectives.projection import batch_norm_mlp


class MoCoV3Objective(nn.Module):
    """Symmetric contrastive loss between the queries of one view and the momentum encoder's keys of the other.

    With normalised queries q and keys k of two views of W B images, the loss is L(q1, k2) + L(q2, k1), where
        L(q, k) = 2 T mean_i -log softmax_j(q_i . k_j / T)[i].

    Args:
        model: the encoder that is trained and published: any timm model without head, images (B, 3, H, W) to features;
            it also gets `superpixels=` where the batch has them.
        hidden_dim: hidden width of projector and predictor.
        out_dim: width D of the compared space.
        temperature: T.
        momentum: share of the momentum encoder that stays at an update; it rises to 1 by a half cosine.
        freeze_patch_embed: leave the patch embedding as it was drawn, as MoCo-v3 does with plain ViTs; CAST trains its
            stem of convolutions.

    Raises:
        ValueError: on settings out of their range, or a model without patch embedding that is to be frozen.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patch_embed: bool = False,
    ) -> None:
        super().__init__()
        for name, width in (("hidden_dim", hidden_dim), ("out_dim", out_dim)):
            if width < 1:
                raise ValueError(f"{name}: expected at least 1, got {width}; change {name}")
        if temperature <= 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}; 0.2 is usual")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected 0 to below 1, got {momentum}; 0.99 is usual")
        if freeze_patch_embed:
            if not isinstance(getattr(model, "patch_embed", None), nn.Module):
                raise ValueError(
                    f"freeze_patch_embed: expected a model with a patch embedding, got {type(model).__name__}; "
                    f"set false"
                )
            model.patch_embed.requires_grad_(False)
        self.temperature = temperature
        self.momentum = momentum
        self.model: Any = model
        features: Any = getattr(model, "head_hidden_size", None) or model.num_features
        self.projector = batch_norm_mlp(features, hidden_dim, out_dim, num_layers=3)
        self.predictor = batch_norm_mlp(out_dim, hidden_dim, out_dim, num_layers=2)
        self.momentum_model: Any = deepcopy(self.model).requires_grad_(False)
        self.momentum_projector = deepcopy(self.projector).requires_grad_(False)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            batch: "views", two tensors (B, 3, H, W) normalised; and "superpixels", two tensors (B, H, W) int64, for
                models that take them.

        Returns:
            "loss"; "accuracy", the share of queries whose own key is the nearest, in per cent; and "key_deviation",
            the deviation of the normalised keys over images times sqrt(D): about 1 as it should be, 0 where all images
            have collapsed to one point.
        """
        views = batch["views"]
        extras = [{"superpixels": labels} for labels in batch["superpixels"]] if "superpixels" in batch else [{}, {}]
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
        deviation = all_keys[0].float().std(dim=0).mean() * math.sqrt(all_keys[0].shape[1])
        return {
            "loss": first + second,
            "accuracy": (first_accuracy + second_accuracy) / 2,
            "key_deviation": deviation,
        }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the momentum encoder towards the encoder by 1 - m, m = 1 - (1 - momentum) (1 + cos(pi progress)) / 2.

        Args:
            progress: trained share, 0 to 1.
        """
        stay = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for slow, trained in self._pairs():
            slow.lerp_(trained, 1 - stay)

    @torch.no_grad()
    def restart_momentum(self) -> None:
        """Makes the momentum encoder equal to the encoder, whose weights were replaced."""
        self.momentum_model.load_state_dict(self.model.state_dict())
        self.momentum_projector.load_state_dict(self.projector.state_dict())

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter of the momentum encoder with the trained one; statistics of batch norms are its own."""
        slow = [*self.momentum_model.parameters(), *self.momentum_projector.parameters()]
        trained = [*self.model.parameters(), *self.projector.parameters()]
        return list(zip(slow, trained, strict=True))


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE, scaled by 2 T, of queries whose own keys stand at the same place of this process's part of the keys.

    Args:
        queries: (B, D) normalised.
        keys: (W B, D) normalised, of all processes in rank order.
        temperature: T.

    Returns:
        the loss, and the share of queries whose own key is the nearest in per cent.
    """
    logits = queries @ keys.T / temperature  # (B, W B)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    target = torch.arange(len(queries), device=queries.device) + rank * len(queries)
    accuracy = 100 * (logits.argmax(dim=1) == target).float().mean()
    return 2 * temperature * F.cross_entropy(logits, target), accuracy
