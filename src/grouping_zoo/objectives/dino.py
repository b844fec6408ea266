"""DINO: a student learns, from any crop of an image, the output of its own moving average for the large crops.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021), Algorithm 1 and section 3.

Shape legend: B images of this process, V crops of an image, the first G of them global, P prototypes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.models.family import as_grouping_network
from grouping_zoo.objectives.encoder import feature_width, view_inputs
from grouping_zoo.objectives.gather import gather
from grouping_zoo.objectives.momentum import MomentumObjective, momentum_copy
from grouping_zoo.settings import require

SINKHORN_ITERATIONS = 3


class DINOHead(nn.Module):
    """Feature to prototypes: an MLP of three layers to a bottleneck, normalised, then a weight-normalised layer.

    The norm of the last layer's weights is fixed at 1, so that the logits are cosines.

    Args:
        in_features: width of the feature.
        num_prototypes: P.
        hidden_dim: hidden width of the MLP.
        bottleneck_dim: its output's width.
        batch_norm: normalise the hidden layers over the batch.
    """

    def __init__(
        self,
        in_features: int,
        num_prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden_dim),
            nn.BatchNorm1d(hidden_dim) if batch_norm else nn.Identity(),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim) if batch_norm else nn.Identity(),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, freeze_prototypes: bool = False) -> Tensor:
        """Features (B, in_features) to logits (B, P)."""
        prototypes = F.normalize(self.prototypes, dim=1)
        if freeze_prototypes:
            # A zero gradient rather than none: data parallelism waits for every parameter's.
            prototypes = prototypes.detach() + 0 * prototypes
        return F.linear(F.normalize(self.mlp(x), dim=1), prototypes)


@dataclass(kw_only=True)
class DINOConfig:
    """Settings of `DINOObjective`."""

    num_prototypes: int = 65536
    """P."""
    hidden_dim: int = 2048
    """Hidden width of the heads."""
    bottleneck_dim: int = 256
    """Width of the features that are compared with prototypes."""
    head_batch_norm: bool = False
    """Batch norm in the heads: untrained features that are nearly the same for all images differ after it, which lets
    short trainings start sooner."""
    student_temperature: float = 0.1
    """T_s."""
    teacher_temperature: float = 0.07
    """T_t after its warm-up."""
    warmup_teacher_temperature: float = 0.04
    """T_t at the start, from where it rises linearly."""
    teacher_temperature_warmup: float = 0.05
    """Fraction of the training, 0 to 1, that this takes."""
    momentum: float = 0.996
    """Fraction of the teacher that stays at an update; it rises to 1 by a half cosine."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """mean is the paper's; sinkhorn lets short trainings start sooner."""
    center_momentum: float = 0.9
    """Fraction of the centre that stays at a batch; with centering=mean alone."""
    freeze_prototypes: float = 1 / 600
    """Fraction of the training, 0 to 1, at whose start the last layer stays as it was drawn."""
    entropy_images: int = 2
    """Images of each batch whose grouping entropies are logged, of a network that has them; 0 for none."""

    def __post_init__(self) -> None:
        require(self, "objective.num_prototypes", self.num_prototypes >= 2, "at least 2")
        require(self, "objective.entropy_images", self.entropy_images >= 0, "0 or more")
        positive = ("hidden_dim", "bottleneck_dim", "student_temperature", "teacher_temperature")
        for name in (*positive, "warmup_teacher_temperature"):
            require(self, f"objective.{name}", getattr(self, name) > 0, "more than 0")
        for name in ("teacher_temperature_warmup", "momentum", "center_momentum", "freeze_prototypes"):
            require(self, f"objective.{name}", 0 <= getattr(self, name) <= 1, "0 to 1")
        require(self, "objective.centering", self.centering in ("mean", "sinkhorn"), "mean or sinkhorn")


class DINOObjective(MomentumObjective):
    """Cross entropy from the teacher's view of each global crop to the student's of every other crop.

    With logits t and s over prototypes, centre c and temperatures T_t and T_s, the loss is the mean over pairs of crops
    (i, j), i global, j another crop of the same image, and over images, of
        - sum_p softmax((t_i - c) / T_t)[p] log softmax(s_j / T_s)[p].
    The centre is a moving average of the teacher's mean logits over all processes. With "sinkhorn" Sinkhorn-Knopp's
    normalisation takes its place (see `sinkhorn`). The teacher, in evaluation mode, is a moving average of the student,
    its running statistics too, and is what is published.

    Args:
        model: any timm model without head, images (B, 3, H, W) to features, for crops of all sizes that come. It
            becomes the student.
        config: the settings.
        num_global_crops: G.

    Raises:
        ValueError: if there are no global crops.
    """

    averages_statistics = True

    def __init__(self, model: nn.Module, config: DINOConfig, num_global_crops: int = 2) -> None:
        super().__init__(config.momentum)
        if num_global_crops < 1:
            raise ValueError(f"num_global_crops: expected at least 1, got {num_global_crops}; set 2")
        self.config = config
        self.num_global_crops = num_global_crops
        self.student: Any = model
        prototypes, hidden, bottleneck = config.num_prototypes, config.hidden_dim, config.bottleneck_dim
        self.student_head = DINOHead(feature_width(model), prototypes, hidden, bottleneck, config.head_batch_norm)
        self.model: Any = momentum_copy(model).eval()
        self.teacher_head = momentum_copy(self.student_head).eval()
        # Buffers, so that a resumed run goes on with them.
        self.progress: Tensor
        self.center: Tensor
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("center", torch.zeros(prototypes))

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return teacher and student, and their heads."""
        return [(self.model, self.student), (self.teacher_head, self.student_head)]

    def train(self, mode: bool = True) -> "DINOObjective":
        """Set the student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        self.teacher_head.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch; moves the centre.

        Args:
            batch: "views", V tensors (B, 3, H, W), global crops first, sizes may differ; and V tensors under the name
                of each extra input of the network.

        Returns:
            "loss"; of the teacher's distributions over prototypes "teacher_entropy", "teacher_kl", from them to the
            student's, and "teacher_information", how much they tell of which image it is, in nats: 0 where all images
            have collapsed to one output. Of a model with grouping entropies "marginal_entropy_L" and
            "conditional_entropy_L" of each layer L, averaged over heads.
        """
        views, extra = batch["views"], view_inputs(self.student, batch)
        number = self.num_global_crops
        if len(views) < max(number, 2):
            raise ValueError(f"views: expected at least {max(number, 2)} crops, got {len(views)}; make more crops")
        frozen = bool(self.progress < self.config.freeze_prototypes)
        student = self.student_head(_encode(self.student, views, extra), frozen)  # (V * B, P)
        with torch.no_grad():
            teacher = self.teacher_head(_encode(self.model, views[:number], extra[:number]))  # (G * B, P)
        with torch.autocast(student.device.type, enabled=False):
            log_student = (student.float() / self.config.student_temperature).log_softmax(dim=1)
            targets = self._targets(teacher.float())
            loss = dino_loss(targets.chunk(number), log_student.chunk(len(views)))
            metrics = _collapse_metrics(targets, loss.detach())
        return {"loss": loss, **metrics, **self._grouping_entropies(views[0])}

    def after_step(self, progress: float) -> None:
        """Note the trained fraction, 0 to 1, and move the teacher towards the student."""
        self.progress.fill_(progress)
        super().after_step(progress)

    def teacher_temperature(self) -> Tensor:
        """T_t at this point of the training."""
        start, end = self.config.warmup_teacher_temperature, self.config.teacher_temperature
        warmup = self.config.teacher_temperature_warmup
        warm = 1.0 if not warmup else self.progress / warmup
        return torch.as_tensor(start + (end - start) * warm, device=self.center.device).clamp(
            min=min(start, end), max=max(start, end)
        )

    def _targets(self, logits: Tensor) -> Tensor:
        """The teacher's distributions (G * B, P) from its logits; moves the centre."""
        if self.config.centering == "sinkhorn":
            return sinkhorn(logits / self.teacher_temperature())
        targets = ((logits - self.center) / self.teacher_temperature()).softmax(dim=1)
        self._move_center(logits)
        return targets

    @torch.no_grad()
    def _move_center(self, logits: Tensor) -> None:
        """Move the centre towards the mean of the teacher's logits (G * B, P) over all processes."""
        mean = gather(logits.mean(dim=0, keepdim=True)).mean(dim=0)
        self.center.lerp_(mean, 1 - self.config.center_momentum)

    @torch.no_grad()
    def _grouping_entropies(self, images: Tensor) -> dict[str, Tensor]:
        network, number = as_grouping_network(self.model), self.config.entropy_images
        if not number or network is None or not network.has_assignment_entropies:
            return {}
        found = network.assignment_entropies(images[:number])
        values = {"marginal_entropy": found.marginal, "conditional_entropy": found.conditional}  # (layers, heads)
        return {
            f"{name}_{layer}": value
            for name, entropies in values.items()
            for layer, value in enumerate(entropies.mean(dim=1))
        }


def dino_loss(targets: Sequence[Tensor], log_student: Sequence[Tensor]) -> Tensor:
    """Mean cross entropy over all pairs of a target and another crop.

    Args:
        targets: the teacher's distributions of the global crops, each (B, P).
        log_student: the student's log-probabilities of all crops, the same global ones first, each (B, P).
    """
    pairs = [
        -(target * found).sum(dim=1).mean()
        for i, target in enumerate(targets)
        for j, found in enumerate(log_student)
        if i != j
    ]
    return torch.stack(pairs).mean()


def sinkhorn(logits: Tensor, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Distributions that use all prototypes alike over the images of all processes.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (2020), section 3.1:
    exp(logits) is divided by its sums over images and over prototypes in turn.

    Args:
        logits: of this process's images (n, P), divided by their temperature.
        iterations: rounds of the two divisions.

    Returns:
        (n, P); rows sum to 1.
    """
    for _ in range(iterations):
        mass = gather(logits.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)  # (P,), over all processes
        logits = (logits - mass).log_softmax(dim=1)
    return logits.exp()


def _encode(model: Any, views: Sequence[Tensor], extra: Sequence[dict[str, Tensor]]) -> Tensor:
    """Features of all crops, (V * B, C); neighbours of one size go through the network together."""
    features = []
    for _, group in groupby(zip(views, extra, strict=True), key=lambda crop: crop[0].shape[-2:]):
        images, inputs = zip(*group, strict=True)
        together = {name: torch.cat([given[name] for given in inputs]) for name in inputs[0]}
        features.append(model(torch.cat(images), **together))
    return torch.cat(features)


def _collapse_metrics(targets: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Entropy, divergence and information of the teacher's distributions (G * B, P), which show a collapse."""
    entropy = torch.special.entr(targets).sum(dim=1).mean()
    information = torch.special.entr(targets.mean(dim=0)).sum() - entropy
    return {"teacher_entropy": entropy, "teacher_kl": loss - entropy, "teacher_information": information}
