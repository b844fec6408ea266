"""Common part of the tasks that train a network on images alone."""

from grouping_zoo.engine.vision import VisionRecipe, VisionTask, check_gives_features
from grouping_zoo.objectives.momentum import MomentumObjective


class SelfSupervisedTask(VisionTask):
    """See `VisionTask`; a subclass makes a `MomentumObjective`.

    Raises:
        ValueError: of a network that segments.
    """

    def __init__(self, recipe: VisionRecipe) -> None:
        super().__init__(recipe)
        check_gives_features(self.network, recipe.model.architecture)

    def load_weights(self, source: str) -> None:
        """Start the network and its slow copy from a checkpoint; see `VisionTask.load_weights`."""
        super().load_weights(source)
        assert isinstance(self.objective, MomentumObjective)
        self.objective.restart_momentum()
