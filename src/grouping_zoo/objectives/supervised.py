"""Training with labels: of images, with mixing and a teacher, or of pixels.

Distillation: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), section 2; with the weights 0.8 and
0.2 it is the advanced recipe of Wu et al., "Visual Transformers" (2020), section 5.2.

Shape legend: B images, K classes, (H, W) image, (h, w) prediction.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup, resolve_model_data_config
from torch import Tensor, nn

from grouping_zoo.objectives.gather import mean_over_processes
from grouping_zoo.settings import require

Network = Any
"""A timm model: a module with `num_classes` and `pretrained_cfg`."""


@dataclass(kw_only=True)
class ClassificationConfig:
    """Settings of `ClassificationObjective`."""

    label_smoothing: float = 0.0
    """Fraction of the target that is spread over all classes alike."""
    mixup_alpha: float = 0.0
    """Of the Beta distribution that mixes two images; 0 for none."""
    cutmix_alpha: float = 0.0
    """Of the Beta distribution of the area that one image gets from another; 0 for none. With both, each batch is mixed
    one way or the other by chance."""
    teacher: str | None = None
    """timm name of a model with weights, checkpoint folder or hub name; its classes must be those of the data."""
    distillation_weight: float = 0.0
    """w."""
    temperature: float = 1.0
    """t."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "distillation_weight"):
            require(self, f"objective.{name}", 0 <= getattr(self, name) <= 1, "a fraction from 0 to 1")
        for name in ("mixup_alpha", "cutmix_alpha"):
            require(self, f"objective.{name}", getattr(self, name) >= 0, "at least 0, 0 for none")
        require(self, "objective.temperature", self.temperature > 0, "a number above 0")
        both_or_neither = bool(self.distillation_weight) == (self.teacher is not None)
        require(
            self, "objective.teacher", both_or_neither, "null where objective.distillation_weight is 0, and only there"
        )


class ClassificationObjective(nn.Module):
    """(1 - w) CE(target, softmax(z)) + w t^2 CE(softmax(z_teacher / t), softmax(z / t)).

    The target is the label, smoothed and mixed; mixed images reach the teacher as they reach the network.

    Args:
        model: timm model, images -> z (B, K).
        config: the settings.
        teacher: the timm model that `config.teacher` names, of the same classes, kept frozen; it sees the images at its
            own size and normalisation.

    Raises:
        ValueError: on a teacher of other classes, or one that is missing.
    """

    def __init__(self, model: Network, config: ClassificationConfig, teacher: Network | None = None) -> None:
        super().__init__()
        fits = (teacher is None) == (config.teacher is None)
        require(config, "config.teacher", fits, "the teacher's name with the argument teacher, and null without")
        self.model = model
        self.config = config
        self.mixup: Mixup | None = None
        if config.mixup_alpha or config.cutmix_alpha:
            # The smoothing happens in the cross-entropy, with and without mixing alike.
            mixup, cutmix = config.mixup_alpha, config.cutmix_alpha
            self.mixup = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=model.num_classes)
        self.teacher = None if teacher is None else FrozenTeacher(teacher, model)

    def after_step(self, progress: float) -> None:
        """Nothing here depends on how far the training has come."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            batch: `pixel_values` (B, 3, H, W) and `label` (B,) int64. With mixing B must be even.

        Returns:
            `loss`, and by what it is made of: `cross_entropy`, `distillation`, `accuracy` in per cent (where images
            are not mixed).
        """
        images, target = batch["pixel_values"], batch["label"]
        mixing = self.mixup is not None and self.training
        if mixing:
            images, target = self._mix(images, target)
        logits = self.model(images).float()
        loss = cross_entropy = F.cross_entropy(logits, target, label_smoothing=self.config.label_smoothing)
        found = {"cross_entropy": cross_entropy.detach()}
        if self.teacher is not None:
            t, weight = self.config.temperature, self.config.distillation_weight
            distillation = t**2 * F.cross_entropy(logits / t, (self.teacher(images) / t).softmax(dim=1))
            loss = (1 - weight) * cross_entropy + weight * distillation
            found["distillation"] = distillation.detach()
        if not mixing:
            found["accuracy"] = 100 * (logits.argmax(dim=1) == target).float().mean()
        return {"loss": loss, **found}

    def _mix(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and targets (B, K)."""
        assert self.mixup is not None
        if len(images) % 2:
            raise ValueError(
                f"objective.mixup_alpha, objective.cutmix_alpha: expected an even number of images a batch, got "
                f"{len(images)}; change run.batch_size"
            )
        # timm draws from numpy's global state, which a resumed run does not restore; it does restore torch's.
        state = np.random.get_state()
        np.random.seed(int(torch.randint(2**31, ())))
        try:
            return self.mixup(images.clone(), label)
        finally:
            np.random.set_state(state)


class FrozenTeacher(nn.Module):
    """A network whose logits another one learns.

    Args:
        model: the teacher.
        student: whose images it gets, normalised for the student.

    Raises:
        ValueError: if the two have other classes.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: Network, student: Network) -> None:
        super().__init__()
        if model.num_classes != student.num_classes:
            raise ValueError(
                f"teacher: expected the {student.num_classes} classes of the network, got {model.num_classes}; "
                "choose a teacher trained on the same classes"
            )
        self.model = model.eval().requires_grad_(False)
        own, given = resolve_model_data_config(model), resolve_model_data_config(student)
        self.size = tuple(own["input_size"][1:])
        mean, std, given_mean, given_std = (
            torch.tensor(value).view(-1, 1, 1) for value in (own["mean"], own["std"], given["mean"], given["std"])
        )
        self.register_buffer("scale", given_std / std, persistent=False)
        self.register_buffer("shift", (given_mean - mean) / std, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The student's images (B, 3, H, W) to the teacher's logits (B, K)."""
        images = images * self.scale + self.shift
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return self.model(images).float()

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in evaluation mode."""
        return super().train(False)


class SegmentationObjective(nn.Module):
    """Cross-entropy of every pixel, the prediction interpolated to the mask's size.

    Args:
        model: images -> logits (B, K, h, w).
        ignore_index: class in the mask that does not count.
    """

    def __init__(self, model: nn.Module, *, ignore_index: int = 255) -> None:
        super().__init__()
        self.model = model
        self.ignore_index = ignore_index

    def after_step(self, progress: float) -> None:
        """Nothing here depends on how far the training has come."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            batch: `pixel_values` (B, 3, H, W) and `mask` (B, H, W) int64.

        Returns:
            `loss`, the mean over the pixels of all processes that count (0 where there are none), and
            `pixel_accuracy` in per cent.
        """
        mask = batch["mask"]
        logits = self.model(batch["pixel_values"]).float()
        logits = F.interpolate(logits, size=mask.shape[-2:], mode="bilinear", align_corners=False)
        counted = mask != self.ignore_index
        total = F.cross_entropy(logits, mask, ignore_index=self.ignore_index, reduction="sum")
        right = (logits.argmax(dim=1) == mask) & counted
        return {
            "loss": mean_over_processes(total, counted.sum()),
            "pixel_accuracy": 100 * right.sum() / counted.sum().clamp(min=1),
        }
