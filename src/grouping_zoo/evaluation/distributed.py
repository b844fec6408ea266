"""Shares a set of images over the processes of `accelerate launch`, so that the figures are those of one process."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

Result = TypeVar("Result")


class Unreadable(NamedTuple):
    """What a data set gives in place of an image that cannot be read."""

    name: str
    reason: str


class Processes:
    """The processes that work on one evaluation; a single one where none were launched.

    Each batch of images is computed by one process and its result given to all of them, batch by batch in the order
    of the images. The batches are those of a single process, so the figures are the same to the last bit, however
    many images there are; and no more is held than one batch's result of each process.

    Args:
        device: where to compute; with several processes on accelerators, "cuda" gives each its own.

    Attributes:
        count: how many there are.
        number: this one's, from 0.
        device: where this one computes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.count, self.number, self.device = 1, 0, torch.device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device == "cpu")
            self.count, self.number, self.device = state.num_processes, state.process_index, state.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.number == 0

    def shared(
        self,
        images: Dataset[Any],
        function: Callable[[dict[str, Any]], Result],
        *,
        batch_size: int,
        workers: int = 0,
        description: str = "images",
        progress: bool = False,
    ) -> Iterator[tuple[Result | None, list[Unreadable]]]:
        """What a function gives for every batch.

        Args:
            images: samples as dictionaries, or `Unreadable`.
            function: from a batch, as `default_collate` makes it, to what all processes are to know: anything that
                can be pickled, tensors on the CPU.
            batch_size: images a batch.
            workers: processes that read images for each process.
            description: of the progress bar.
            progress: show one, on the first process.

        Yields:
            the batches' results, None for a batch without a readable image, and the images that cannot be read.
        """
        total = len(images)  # type: ignore[arg-type]  # data sets here are map-style
        batches = [list(range(start, min(start + batch_size, total))) for start in range(0, total, batch_size)]
        mine = batches[self.number :: self.count]
        loader = iter(DataLoader(images, batch_sampler=mine, collate_fn=_collate, num_workers=workers))
        rounds = range(0, len(batches), self.count)
        for _ in tqdm(
            rounds, desc=description, unit="batch", leave=False, disable=None if progress and self.is_first else True
        ):
            own = None
            if (found := next(loader, None)) is not None:
                batch, unreadable = found
                own = (None if batch is None else function(batch), unreadable)
            yield from (one for one in self._gathered(own) if one is not None)

    def of_first(self, value: Result) -> Result:
        """The first process's value, in every process."""
        return self._gathered(value)[0]

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in each of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])


def _collate(samples: list[Mapping[str, Any] | Unreadable]) -> tuple[dict[str, Any] | None, list[Unreadable]]:
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    return (default_collate(readable) if readable else None), unreadable
