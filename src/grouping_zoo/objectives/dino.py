"""DINO: a student that sees any crop of an image tells what its own moving average, the teacher, tells of large ones.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021), Algorithm 1 and section 3.

Shape legend: B images of this process, V crops of an image, the first G of them global, P prototypes.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.objectives.gather import gather

Centering = Literal["mean", "sinkhorn"]
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


class DINOObjective(nn.Module):
    """Cross entropy from the teacher's view of each global crop to the student's of every other crop.

    With logits t and s over prototypes, centre c and temperatures T_t and T_s, the loss is the mean over pairs of crops
    (i, j), i global, j another crop of the same image, and over images, of
        - sum_p softmax((t_i - c) / T_t)[p] log softmax(s_j / T_s)[p].
    The centre is a moving average of the teacher's mean logits over all processes. With "sinkhorn" Sinkhorn-Knopp's
    normalisation takes its place (see `sinkhorn`), which lets short trainings start sooner. The teacher, in evaluation
    mode, is a moving average of the student, its running statistics too, and is what is published.

    Args:
        model: any timm model without head, images (B, 3, H, W) to features, for crops of all sizes that come. It also
            gets `superpixels=` where the batch has them. It becomes the student.
        num_prototypes: P.
        hidden_dim: hidden width of the heads.
        bottleneck_dim: width of the features that are compared with prototypes.
        head_batch_norm: batch norm in the heads: untrained features that are nearly the same for all images differ
            after it, which lets short trainings start sooner.
        num_global_crops: G.
        student_temperature: T_s.
        teacher_temperature: T_t after its warm-up.
        warmup_teacher_temperature: T_t at the start, from where it rises linearly.
        teacher_temperature_warmup: share of the training, 0 to 1, that this takes.
        momentum: share of the teacher that stays at an update; it rises to 1 by a half cosine.
        centering: "mean", the paper's, or "sinkhorn".
        center_momentum: share of the centre that stays at a batch; with "mean" alone.
        freeze_prototypes: share of the training, 0 to 1, at whose start the last layer stays as it was drawn.
        entropy_images: images of each batch whose grouping entropies are logged, of a model that has
            `assignment_entropies`; 0 for none.

    Raises:
        ValueError: on settings out of their range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_batch_norm: bool = False,
        num_global_crops: int = 2,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        teacher_temperature_warmup: float = 0.05,
        momentum: float = 0.996,
        centering: Centering = "mean",
        center_momentum: float = 0.9,
        freeze_prototypes: float = 1 / 600,
        entropy_images: int = 2,
    ) -> None:
        super().__init__()
        if num_prototypes < 2:
            raise ValueError(
                f"num_prototypes: expected at least 2, for one alone tells nothing apart, got {num_prototypes}; "
                "change num_prototypes"
            )
        if entropy_images < 0:
            raise ValueError(f"entropy_images: expected 0 or more, got {entropy_images}; set 0 for none")
        _require_positive(
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            num_global_crops=num_global_crops,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            warmup_teacher_temperature=warmup_teacher_temperature,
        )
        _require_share(
            teacher_temperature_warmup=teacher_temperature_warmup,
            momentum=momentum,
            center_momentum=center_momentum,
            freeze_prototypes=freeze_prototypes,
        )
        if centering not in ("mean", "sinkhorn"):
            raise ValueError(f"centering: expected 'mean' or 'sinkhorn', got {centering!r}; change centering")
        self.num_global_crops = num_global_crops
        self.centering = centering
        self.student_temperature = student_temperature
        self.teacher_temperatures = (warmup_teacher_temperature, teacher_temperature)
        self.teacher_temperature_warmup = teacher_temperature_warmup
        self.momentum = momentum
        self.center_momentum = center_momentum
        self.freeze_prototypes = freeze_prototypes
        self.entropy_images = entropy_images if hasattr(model, "assignment_entropies") else 0
        features: Any = getattr(model, "head_hidden_size", None) or model.num_features
        self.student: Any = model
        self.student_head = DINOHead(features, num_prototypes, hidden_dim, bottleneck_dim, head_batch_norm)
        self.model: Any = deepcopy(model).requires_grad_(False).eval()
        self.teacher_head = deepcopy(self.student_head).requires_grad_(False).eval()
        # Buffers, so that a resumed run goes on with them.
        self.progress: Tensor
        self.center: Tensor
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("center", torch.zeros(num_prototypes))

    def train(self, mode: bool = True) -> "DINOObjective":
        """Training mode for the student alone."""
        super().train(mode)
        self.model.eval()
        self.teacher_head.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of a batch; moves the centre.

        Args:
            batch: "views", V tensors (B, 3, H, W), global crops first, sizes may differ; and "superpixels", V tensors
                (B, H, W) int64, for models that take them.

        Returns:
            "loss"; of the teacher's distributions over prototypes "teacher_entropy", "teacher_kl", from them to the
            student's, and "teacher_information", how much they tell of which image it is, in nats: 0 where all images
            have collapsed to one output. Of a model with grouping entropies "marginal_entropy_L" and
            "conditional_entropy_L" of each layer L, averaged over heads.
        """
        views, superpixels = batch["views"], batch.get("superpixels")
        number = self.num_global_crops
        if len(views) < max(number, 2):
            raise ValueError(f"views: expected at least {max(number, 2)} crops, got {len(views)}; make more crops")
        frozen = bool(self.progress < self.freeze_prototypes)
        student = self.student_head(_encode(self.student, views, superpixels), frozen)  # (V * B, P)
        with torch.no_grad():
            global_superpixels = None if superpixels is None else superpixels[:number]
            teacher = self.teacher_head(_encode(self.model, views[:number], global_superpixels))  # (G * B, P)
        with torch.autocast(student.device.type, enabled=False):
            log_student = (student.float() / self.student_temperature).log_softmax(dim=1)
            targets = self._targets(teacher.float())
            loss = dino_loss(targets.chunk(number), log_student.chunk(len(views)))
            figures = _figures(targets, loss.detach())
        return {"loss": loss, **figures, **self._grouping_entropies(views[0])}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the teacher towards the student by 1 - m, m = 1 - (1 - momentum) (1 + cos(pi progress)) / 2.

        Args:
            progress: trained share, 0 to 1.
        """
        self.progress.fill_(progress)
        stay = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for slow, trained in self._pairs():
            if slow.is_floating_point():
                slow.lerp_(trained, 1 - stay)
            else:
                slow.copy_(trained)

    @torch.no_grad()
    def restart_teacher(self) -> None:
        """Makes the teacher equal to the student, whose weights were replaced."""
        for slow, trained in self._pairs():
            slow.copy_(trained)

    def teacher_temperature(self) -> Tensor:
        """T_t at this point of the training."""
        start, end = self.teacher_temperatures
        warm = 1.0 if not self.teacher_temperature_warmup else self.progress / self.teacher_temperature_warmup
        return torch.as_tensor(start + (end - start) * warm, device=self.center.device).clamp(
            min=min(start, end), max=max(start, end)
        )

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter and statistic of the teacher with the student's."""
        slow = [*self.model.state_dict().values(), *self.teacher_head.state_dict().values()]
        trained = [*self.student.state_dict().values(), *self.student_head.state_dict().values()]
        return list(zip(slow, trained, strict=True))

    def _targets(self, logits: Tensor) -> Tensor:
        """The teacher's distributions (G * B, P) from its logits; moves the centre."""
        if self.centering == "sinkhorn":
            return sinkhorn(logits / self.teacher_temperature())
        targets = ((logits - self.center) / self.teacher_temperature()).softmax(dim=1)
        self._move_center(logits)
        return targets

    @torch.no_grad()
    def _move_center(self, logits: Tensor) -> None:
        """Moves the centre towards the mean of the teacher's logits (G * B, P) over all processes."""
        mean = gather(logits.mean(dim=0, keepdim=True)).mean(dim=0)
        self.center.lerp_(mean, 1 - self.center_momentum)

    @torch.no_grad()
    def _grouping_entropies(self, images: Tensor) -> dict[str, Tensor]:
        if not self.entropy_images:
            return {}
        found = self.model.assignment_entropies(images[: self.entropy_images])
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


def _encode(model: Any, views: Sequence[Tensor], superpixels: Sequence[Tensor] | None) -> Tensor:
    """Features of all crops, (V * B, C); neighbours of one size go through the network together."""
    features = []
    for _, group in groupby(range(len(views)), key=lambda i: views[i].shape[-2:]):
        together = list(group)
        extra = {} if superpixels is None else {"superpixels": torch.cat([superpixels[i] for i in together])}
        features.append(model(torch.cat([views[i] for i in together]), **extra))
    return torch.cat(features)


def _figures(targets: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """What shows a collapse, of the teacher's distributions (G * B, P)."""
    entropy = torch.special.entr(targets).sum(dim=1).mean()
    information = torch.special.entr(targets.mean(dim=0)).sum() - entropy
    return {"teacher_entropy": entropy, "teacher_kl": loss - entropy, "teacher_information": information}


def _require_positive(**settings: float) -> None:
    for name, value in settings.items():
        if value <= 0:
            raise ValueError(f"{name}: expected more than 0, got {value}; change {name}")


def _require_share(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {value}; change {name}")
