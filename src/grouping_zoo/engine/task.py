"""Interface between a training task and the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.utils.data import Dataset


class Task(Protocol):
    """Objective, data, evaluation and export of a training.

    Attributes:
        objective: `objective(batch) -> {"loss": scalar, ...}` with `.model`, the network that is averaged, evaluated
            and exported, and `after_step(progress)`, called after each update with the trained fraction, 0 to 1. Its
            buffers are part of the training state.
        dataset: map-style and indexed by `SampleKey(epoch, index)`; or an `IterableDataset` with `state_dict` and
            `load_state_dict`. The latter shards itself over processes and workers and is iterated anew whenever it
            ends, so it keeps its own epoch. Neither may draw from the global random state.
        collate: list of samples -> batch.
    """

    objective: nn.Module
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a network that is in evaluation mode.

        Called on every process at once with the same weights, which may share the work; the first process' result is
        recorded. A metric that is undefined is NaN: null in the log, and left out of the checkpoint.
        """
        ...

    def export(self, model: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        """Write the checkpoint into an empty folder. Called on the first process alone."""
        ...

    def load_weights(self, source: str) -> None:
        """Start the network from the weights of the checkpoint folder or name `source` (`run.init_from`)."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """Data set that can tell whether its samples are still the same; the loop warns on resume if they are not."""

    def fingerprint(self) -> str:
        """Digest of what is cheap to list, such as the names and sizes of the files."""
        ...
