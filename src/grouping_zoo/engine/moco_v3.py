"""The task "moco_v3": any timm model trained on images alone by MoCo-v3."""

from dataclasses import asdict, dataclass, field

from grouping_zoo.data.multi_view import TwoViewConfig, two_views
from grouping_zoo.engine.vision import VisionRecipe, VisionTask, check_gives_features
from grouping_zoo.objectives.moco_v3 import MoCoV3Objective


@dataclass(kw_only=True)
class MoCoV3Config:
    """Arguments of `grouping_zoo.objectives.moco_v3.MoCoV3Objective`, where they are explained."""

    hidden_dim: int = 4096
    out_dim: int = 256
    temperature: float = 0.2
    momentum: float = 0.99
    freeze_patch_embed: bool = False


@dataclass(kw_only=True)
class MoCoV3Recipe(VisionRecipe):
    """A MoCo-v3 training run."""

    views: TwoViewConfig = field(default_factory=TwoViewConfig)
    objective: MoCoV3Config = field(default_factory=MoCoV3Config)

    def build(self) -> "MoCoV3Task":
        """Makes the network, the objective and the data."""
        return MoCoV3Task(self)


class MoCoV3Task(VisionTask):
    """See `grouping_zoo.engine.task.Task`."""

    method = "MoCo-v3"

    def __init__(self, recipe: MoCoV3Recipe) -> None:
        super().__init__(recipe)
        check_gives_features(self.network, recipe.model.architecture)
        self.objective = MoCoV3Objective(self.network, **asdict(recipe.objective))
        self.dataset = two_views(self.source, recipe.data.image_size, self.tensors, recipe.views, recipe.run.seed)

    def load_weights(self, source: str) -> None:
        """Starts both encoders from a checkpoint; see `VisionTask.load_weights`."""
        super().load_weights(source)
        assert isinstance(self.objective, MoCoV3Objective)
        self.objective.restart_momentum()
