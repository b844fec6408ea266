"""The task "supervised": any timm model trained on the classes of images, or a feature pyramid on those of pixels."""

from dataclasses import dataclass, field, replace
from typing import Any

import timm

from grouping_zoo.data.augmented import AugmentationConfig, AugmentedDataset, Target
from grouping_zoo.data.sets import Knowledge, set_names
from grouping_zoo.data.sets.label_maps import IGNORE_INDEX
from grouping_zoo.engine.vision import VisionRecipe, VisionTask
from grouping_zoo.hf.checkpoint_folder import timm_source
from grouping_zoo.models.family import as_grouping_network
from grouping_zoo.objectives.supervised import ClassificationConfig, ClassificationObjective, SegmentationObjective


@dataclass(kw_only=True)
class SupervisedRecipe(VisionRecipe):
    """A supervised training run."""

    target: Target = "class"
    """Kind of label: the class of an image, or of each pixel."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)
    """For target=class alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "mask" and self.objective != ClassificationConfig():
            raise ValueError(f"objective: expected nothing with target=mask, got {self.objective}; leave it out")
        data_set = self.data.data_set
        needed: Knowledge = "label" if self.target == "class" else "mask"
        if needed not in data_set.knows:
            raise ValueError(
                f"data.source: expected images with {needed}s with target={self.target}, got {self.data.spec}; choose "
                f"one of {set_names((needed,))}"
            )
        if self.target == "class" and data_set.has_objects and self.data.max_objects != 1:
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
        self.inputs = replace(self.inputs, input_makers={})
        wanted = recipe.target == "mask"
        self.auto_class = "AutoModelFor" + ("SemanticSegmentation" if wanted else "ImageClassification")
        if wanted:
            self.objective = SegmentationObjective(self.network, ignore_index=IGNORE_INDEX)
        else:
            name = recipe.objective.teacher
            teacher = None if name is None else open_teacher(name)
            self.objective = ClassificationObjective(self.network, recipe.objective, teacher)
        data, seed = recipe.data, recipe.run.seed
        self.dataset = AugmentedDataset(
            self.source, data.image_size, self.inputs, recipe.augmentation, recipe.target, seed
        )

    def head_classes(self) -> list[str]:
        """Return the names of the classes of images, or of the values of masks, background included."""
        names = self.source.object_names if self.recipe.target == "class" else self.source.class_names
        if not names:
            raise ValueError("data.source: expected images with classes, but the source knows none; choose another one")
        return list(names)

    def check_network(self) -> None:
        """See `VisionTask`: a network for images or pixels, whichever the target is."""
        wanted, architecture = self.recipe.target == "mask", self.recipe.model.architecture
        grouping_network = as_grouping_network(self.network)
        if (grouping_network is not None and grouping_network.predicts_pixels) != wanted:
            expected = "one that predicts pixels, such as a VT-FPN," if wanted else "a classifier"
            raise ValueError(
                f"model.architecture: expected {expected} with target={self.recipe.target}, got {architecture}"
            )


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
