"""The task "moco_v3": any timm model trained on images alone by MoCo-v3."""

from dataclasses import dataclass, field

from grouping_zoo.data.multi_view import TwoViewConfig, two_views
from grouping_zoo.engine.self_supervised import SelfSupervisedTask
from grouping_zoo.engine.vision import VisionRecipe
from grouping_zoo.objectives.moco_v3 import MoCoV3Config, MoCoV3Objective


@dataclass(kw_only=True)
class MoCoV3Recipe(VisionRecipe):
    """A MoCo-v3 training run."""

    views: TwoViewConfig = field(default_factory=TwoViewConfig)
    objective: MoCoV3Config = field(default_factory=MoCoV3Config)

    def build(self) -> "MoCoV3Task":
        """Build the network, the objective and the data."""
        return MoCoV3Task(self)


class MoCoV3Task(SelfSupervisedTask):
    """See `grouping_zoo.engine.task.Task`."""

    method = "MoCo-v3"

    def __init__(self, recipe: MoCoV3Recipe) -> None:
        super().__init__(recipe)
        self.objective = MoCoV3Objective(self.network, recipe.objective)
        self.dataset = two_views(self.source, recipe.data.image_size, self.inputs, recipe.views, recipe.run.seed)
