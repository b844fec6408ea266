"""Common part of the tasks that train a network on images alone."""

from grouping_zoo.engine.vision import VisionTask
from grouping_zoo.models.family import as_grouping_network
from grouping_zoo.objectives.momentum import MomentumObjective


class SelfSupervisedTask(VisionTask):
    """See `VisionTask`; a subclass makes a `MomentumObjective`."""

    def check_network(self) -> None:
        """See `VisionTask`: a network that gives one feature an image."""
        network = as_grouping_network(self.network)
        if network is not None and network.predicts_pixels:
            raise ValueError(
                "model.architecture: expected a network with one feature an image, got "
                f"{self.recipe.model.architecture}, which gives one a pixel; choose another, or task: supervised with "
                "target: mask"
            )

    def load_weights(self, source: str) -> None:
        """Start the network and its slow copy from a checkpoint; see `VisionTask.load_weights`."""
        super().load_weights(source)
        assert isinstance(self.objective, MomentumObjective)
        self.objective.restart_momentum()
