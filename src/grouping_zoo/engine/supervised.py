"""The task "supervised": any timm model trained on the classes of images, or a feature pyramid on those of pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.data.image_source import BUILT_IN, ImageSource
from grouping_zoo.data.labelled_views import AugmentationConfig, LabelledViews, Target
from grouping_zoo.engine.vision import (
    VisionRecipe,
    VisionTask,
    check_classes,
    check_splits,
    open_source,
)
from grouping_zoo.evaluation.recognition import top_k_accuracy
from grouping_zoo.evaluation.segmentation import evaluate_segmentation
from grouping_zoo.hf.checkpoint_folder import timm_source
from grouping_zoo.models.vt_fpn import SemanticFPN
from grouping_zoo.objectives.supervised import ClassificationConfig, ClassificationObjective, SegmentationObjective

IGNORE_INDEX = 255
WITHOUT_MASKS = ("photos", "folder", "hub")


@dataclass(kw_only=True)
class HeldOutConfig:
    """Evaluation on held-out images."""

    images: int = 0
    """How many, drawn by chance; 0 for no evaluation."""
    split: str | None = "validation"
    """Where they are; see data.split."""

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"evaluation.images: expected 0 or more, got {self.images}; set 0 for no evaluation")


@dataclass(kw_only=True)
class SupervisedRecipe(VisionRecipe):
    """A supervised training run."""

    target: Target = "class"
    """Kind of label: the class of an image, or of each pixel."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)
    """For target=class alone."""
    # Judged by its own answers, not by its features' neighbours.
    evaluation: HeldOutConfig = field(default_factory=HeldOutConfig)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "mask" and self.objective != ClassificationConfig():
            raise ValueError(f"objective: expected nothing with target=mask, got {self.objective}; leave it out")
        if self.target == "mask" and self.data.source in WITHOUT_MASKS:
            raise ValueError(f"data.source: expected images with masks with target=mask, got {self.data.source}")
        if self.target == "class" and self.data.source == "scenes" and self.data.max_objects != 1:
            raise ValueError(
                f"data.max_objects: expected 1 with target=class, for a scene of several objects has no class, got "
                f"{self.data.max_objects}; set 1"
            )

    def build(self) -> "SupervisedTask":
        """Build the network, the objective and the data."""
        return SupervisedTask(self)


class SupervisedTask(VisionTask):
    """See `grouping_zoo.engine.task.Task`."""

    method = "labels"
    recipe: SupervisedRecipe

    def __init__(self, recipe: SupervisedRecipe) -> None:
        super().__init__(recipe)
        # Mixup blends pixels, not superpixels: the network makes its own.
        self.tensors = replace(self.tensors, superpixel_method=None)
        is_pyramid, wanted = isinstance(self.network, SemanticFPN), recipe.target == "mask"
        if is_pyramid != wanted:
            raise ValueError(
                f"model.architecture: expected {'a VT-FPN or semantic FPN' if wanted else 'a classifier'} with "
                f"target={recipe.target}, got {recipe.model.architecture}"
            )
        self.auto_class = "AutoModelFor" + ("SemanticSegmentation" if wanted else "ImageClassification")
        if wanted:
            self.objective = SegmentationObjective(self.network, ignore_index=IGNORE_INDEX)
        else:
            name = recipe.objective.teacher
            teacher = None if name is None else open_teacher(name)
            self.objective = ClassificationObjective(self.network, recipe.objective, teacher)
        data, seed = recipe.data, recipe.run.seed
        self.dataset = LabelledViews(
            self.source, data.image_size, self.tensors, recipe.augmentation, recipe.target, seed
        )

    def head_classes(self) -> list[str]:
        """Those of the source; masks of scenes have the background as their class 0."""
        names = list(self.source.class_names)
        if not names:
            raise ValueError("data: expected images with classes, but the source knows none; choose another one")
        return ["background", *names] if self.recipe.target == "mask" and self.recipe.data.source == "scenes" else names

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 accuracy, or mean IoU; none if the recipe asks for none.

        The images are resized and cropped to the training size, masks with them.
        """
        if not self.recipe.evaluation.images:
            return {}
        device = next(model.parameters()).device
        loader = self.judged_batches(self._held_out(), self.recipe.evaluation.images)
        if self.recipe.target == "class":
            found = [(model(batch["pixel_values"].to(device)).float().cpu(), batch["label"]) for batch in loader]
            logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
            return {f"top{k}_accuracy": top_k_accuracy(logits, labels, k) for k in (1, 5)}

        def predict(images: Tensor) -> Tensor:
            logits = model(images.to(device)).float()
            return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False).argmax(dim=1)

        pairs: Iterator[tuple[Tensor, Tensor]] = ((batch["pixel_values"], batch["mask"]) for batch in loader)
        return evaluate_segmentation(predict, pairs, self.head_classes(), ignore_index=IGNORE_INDEX)

    def _check_evaluation(self) -> None:
        if self.recipe.evaluation.images:
            check_splits(self.recipe.data.split, self.recipe.evaluation.split)
            self._held_out()

    def _held_out(self) -> ImageSource:
        data, settings = self.recipe.data, self.recipe.evaluation
        of_scenes = dict(length=settings.images, recolor=0.0) if data.source in BUILT_IN else {}
        source = open_source(data, self.recipe.run.seed, split=settings.split, **of_scenes)
        check_classes(self.source, source, data.split, settings.split)
        return source


def open_teacher(name: str) -> Any:
    """A timm model with its weights.

    Args:
        name: timm name, checkpoint folder, packaged checkpoint or hub name.

    Raises:
        ValueError: if there is no such model, or none with weights that can be read or fetched.
    """
    source = name if timm.is_model(name.split(".")[0]) else timm_source(name)
    try:
        return timm.create_model(source, pretrained=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"objective.teacher: expected a model with weights, got {name}: {error}") from None
