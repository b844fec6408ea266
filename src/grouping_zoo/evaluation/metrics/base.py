"""Base classes of metrics: accumulators fed batch by batch, which know the titles and units of their values."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

Scores = Mapping[str, float]


class Quantity(NamedTuple):
    """Title of a number, and its unit, "" for none."""

    title: str
    unit: str = "%"


QUANTITIES: dict[str, Quantity] = {}
"""Name -> quantity, for all names that metrics and tasks declare."""


def quantity(name: str) -> Quantity:
    """Return the title and unit of a value called "name" or "name/class"; undeclared ones are in per cent."""
    base = name.partition("/")[0]
    return QUANTITIES.get(base, Quantity(base.replace("_", " ")))


class Metric(ABC):
    """An accumulator in the shape of torchmetrics, without its exchange between processes.

    Every process is fed all batches in the order of the images (see `EvaluationContext.results`), so that several
    processes compute what one does, to the last bit.

    Attributes:
        quantities: title and unit of the names that `compute` gives, where they differ from the default.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        QUANTITIES.update(cls.quantities)

    @abstractmethod
    def update(self, prediction: Any, truth: Any) -> None:
        """Count a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the value of each name; "name/class" for that of one class, level or setting.

        Raises:
            ValueError: if nothing was counted.
        """


class ImageMeanMetric(Metric):
    """The mean over images of what a pure function finds in each.

    Args:
        ignore_index: true label of pixels that do not count; an image of nothing else is left out.

    Attributes:
        requirement: what an image must have to count.
    """

    requirement: ClassVar[str] = "a labelled pixel"

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        self._scores: list[Scores] = []

    @abstractmethod
    def score(self, prediction: Any, truth: Any) -> Scores:
        """Return the values of one image; a name that is missing is averaged over the other images."""

    def scores(self, prediction: Iterable[Any], truth: Any) -> list[Scores]:
        """Return `score` of each image of a batch: the costly part, which processes can share before `add`."""
        return [
            self.score(one, true)
            for one, true in zip(prediction, truth, strict=True)
            if self.ignore_index is None or bool((true != self.ignore_index).any())
        ]

    def add(self, scores: Iterable[Scores]) -> None:
        """Count what `scores` gave."""
        self._scores.extend(scores)

    def update(self, prediction: Any, truth: Any) -> None:
        """Count a batch of predictions and true label maps (B, H, W)."""
        self.add(self.scores(prediction, truth))

    def compute(self) -> dict[str, float]:
        """See `Metric`."""
        names = dict.fromkeys(name for scores in self._scores for name in scores)
        if not names:
            raise ValueError(
                f"evaluation set: expected an image with {self.requirement}, got none; is the split empty?"
            )
        return {name: float(np.mean([scores[name] for scores in self._scores if name in scores])) for name in names}
