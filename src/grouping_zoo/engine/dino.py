"""The task "dino": any timm model trained on images alone by DINO."""

from dataclasses import asdict, dataclass, field

from grouping_zoo.data.multi_view import MultiCropConfig, multi_crop
from grouping_zoo.engine.vision import VisionRecipe, VisionTask, check_gives_features
from grouping_zoo.objectives.dino import Centering, DINOObjective


@dataclass(kw_only=True)
class DINOConfig:
    """Arguments of `grouping_zoo.objectives.dino.DINOObjective`, where they are explained."""

    num_prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_batch_norm: bool = False
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    warmup_teacher_temperature: float = 0.04
    teacher_temperature_warmup: float = 0.05
    momentum: float = 0.996
    centering: Centering = "mean"
    center_momentum: float = 0.9
    freeze_prototypes: float = 1 / 600
    entropy_images: int = 2


@dataclass(kw_only=True)
class DINORecipe(VisionRecipe):
    """A DINO training run."""

    views: MultiCropConfig = field(default_factory=MultiCropConfig)
    objective: DINOConfig = field(default_factory=DINOConfig)

    def build(self) -> "DINOTask":
        """Makes the network, the objective and the data."""
        return DINOTask(self)


class DINOTask(VisionTask):
    """See `grouping_zoo.engine.task.Task`; the teacher is what is evaluated and published."""

    method = "DINO"

    def __init__(self, recipe: DINORecipe) -> None:
        super().__init__(recipe)
        check_gives_features(self.network, recipe.model.architecture)
        self.objective = DINOObjective(self.network, **asdict(recipe.objective))
        self.dataset = multi_crop(self.source, recipe.data.image_size, self.tensors, recipe.views, recipe.run.seed)

    def load_weights(self, source: str) -> None:
        """Starts student and teacher from a checkpoint; see `VisionTask.load_weights`."""
        super().load_weights(source)
        assert isinstance(self.objective, DINOObjective)
        self.objective.restart_teacher()
