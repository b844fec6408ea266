"""The task "dino": any timm model trained on images alone by DINO."""

from dataclasses import dataclass, field

from grouping_zoo.data.multi_view import MultiCropConfig, multi_crop
from grouping_zoo.engine.self_supervised import SelfSupervisedTask
from grouping_zoo.engine.vision import VisionRecipe
from grouping_zoo.objectives.dino import DINOConfig, DINOObjective


@dataclass(kw_only=True)
class DINORecipe(VisionRecipe):
    """A DINO training run."""

    views: MultiCropConfig = field(default_factory=MultiCropConfig)
    objective: DINOConfig = field(default_factory=DINOConfig)

    def build(self) -> "DINOTask":
        """Build the network, the objective and the data."""
        return DINOTask(self)


class DINOTask(SelfSupervisedTask):
    """See `grouping_zoo.engine.task.Task`; the teacher is what is evaluated and published."""

    method = "DINO"

    def __init__(self, recipe: DINORecipe) -> None:
        super().__init__(recipe)
        self.objective = DINOObjective(self.network, recipe.objective)
        self.dataset = multi_crop(self.source, recipe.data.image_size, self.inputs, recipe.views, recipe.run.seed)
