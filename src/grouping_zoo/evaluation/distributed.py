"""Work on a set of images shared by the processes of `accelerate launch`, with the results of one process."""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from grouping_zoo.data.evaluation_dataset import collate_readable
from grouping_zoo.data.images import Unreadable

Result = TypeVar("Result")


class Ranks:
    """The processes that work on one evaluation; a single one where none were launched.

    Each batch of images is computed by one process and its result given to all of them, batch by batch in the order
    of the images. The batches are those of a single process, so the results are the same to the last bit, however
    many images there are; and no more is held than one batch's result of each process.

    Args:
        device: where to compute; with several processes on accelerators, "cuda" gives each its own.

    Attributes:
        count: how many there are.
        rank: this one's number, from 0.
        device: where this one computes.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.count, self.rank, self.device = 1, 0, torch.device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            state = PartialState(cpu=self.device.type == "cpu")
            self.count, self.rank, self.device = state.num_processes, state.process_index, state.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def map_batches(
        self,
        function: Callable[[dict[str, Any]], Result],
        images: Dataset[Any],
        *,
        batch_size: int,
        workers: int = 0,
        description: str = "images",
        progress: bool = False,
    ) -> Iterator[tuple[Result | None, list[Unreadable]]]:
        """Call a function with every batch, in one process each.

        Args:
            function: from a batch, as `default_collate` makes it, to what all processes are to know: anything that
                can be pickled, tensors on the CPU.
            images: samples as dictionaries, or `Unreadable`.
            batch_size: images a batch.
            workers: processes that read images for each process.
            description: of the progress bar.
            progress: show one, on the main process.

        Yields:
            the batches' results, None for a batch without a readable image, and the images that cannot be read.
        """
        total = len(images)  # type: ignore[arg-type]  # data sets here are map-style
        batches = [list(range(start, min(start + batch_size, total))) for start in range(0, total, batch_size)]
        mine = batches[self.rank :: self.count]
        loader = iter(DataLoader(images, batch_sampler=mine, collate_fn=collate_readable, num_workers=workers))
        rounds = range(0, len(batches), self.count)
        for _ in tqdm(
            rounds, desc=description, unit="batch", leave=False, disable=None if progress and self.is_main else True
        ):
            own = None
            if (found := next(loader, None)) is not None:
                batch, unreadable = found
                own = (None if batch is None else function(batch), unreadable)
            yield from (one for one in self._gather(own) if one is not None)

    def from_main(self, value: Result) -> Result:
        """Return the main process's value, in every process."""
        return self._gather(value)[0]

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in each of them."""
        return [value] if self.count == 1 else gather_object([value])
