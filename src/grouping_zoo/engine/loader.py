"""Endless batches of a task's data set, resumable exactly."""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from grouping_zoo.data.sampling import EndlessSampler
from grouping_zoo.engine.recipe import RunConfig
from grouping_zoo.engine.task import Task


class EndlessLoader:
    """An iterator over this process' micro-batches, without end; leaving it as a context ends its workers.

    For map-style data the order depends on the seed and the step alone. A stream goes on from the position that it
    noted, which also depends on the number of processes and workers.

    Args:
        task: gives data set and collate function.
        config: batch size, seed, workers.
        rank: this process.
        world_size: number of processes.
        pin_memory: for a fast copy to an accelerator.

    Raises:
        ValueError: if the batch cannot be split.
    """

    def __init__(self, task: Task, config: RunConfig, rank: int, world_size: int, pin_memory: bool) -> None:
        divisor = world_size * config.accumulation_steps
        if config.batch_size % divisor:
            raise ValueError(
                f"run.batch_size: expected a multiple of {divisor} ({world_size} processes x "
                f"{config.accumulation_steps} accumulation steps), got {config.batch_size}; change run.batch_size or "
                f"the number of processes"
            )
        self.task, self.config, self.rank, self.world_size = task, config, rank, world_size
        self.options: dict[str, Any] = {
            "num_workers": config.num_workers,
            "collate_fn": task.collate,
            "pin_memory": pin_memory,
            "worker_init_fn": _leave_interrupts_to_the_trainer,
            # The loader's own generator, lest it draws from the global one, whose state the noise depends on.
            "generator": torch.Generator().manual_seed(config.seed),
        }
        self.stream: StatefulDataLoader | None = None
        self.batches: Iterator[Any] = iter(())

    def start(self, step: int, state: dict[str, Any] | None = None) -> None:
        """Goes to the first batch of update `step`; a stream does so by its `state_dict()` of then."""
        if isinstance(self.task.dataset, IterableDataset):
            self.batches = self._read_stream(state)
            return
        sampler = EndlessSampler(
            len(self.task.dataset),  # type: ignore[arg-type]
            self.config.batch_size // self.config.accumulation_steps,
            self.config.seed,
            self.rank,
            self.world_size,
            step * self.config.accumulation_steps,
        )
        self.batches = iter(DataLoader(self.task.dataset, batch_sampler=sampler, **self.options))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.batches)

    def __enter__(self) -> "EndlessLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        # The last references to the workers, which end with them.
        self.stream, self.batches = None, iter(())

    def state_dict(self) -> dict[str, Any] | None:
        """The stream's position after the batch read last; None for map-style data, whose step says it all."""
        if self.stream is None:
            return None
        return {"num_workers": self.config.num_workers, "position": self.stream.state_dict()}

    def _read_stream(self, state: dict[str, Any] | None) -> Iterator[Any]:
        stream = StatefulDataLoader(
            self.task.dataset,
            batch_size=self.config.batch_size // self.config.accumulation_steps // self.world_size,
            drop_last=True,
            # Workers that live on keep the stream's own count of epochs.
            persistent_workers=self.config.num_workers > 0,
            **self.options,
        )
        if state is not None:
            if state["num_workers"] != self.config.num_workers:
                raise ValueError(
                    f"run.num_workers: expected {state['num_workers']}, as the interrupted run read its stream, got "
                    f"{self.config.num_workers}; set run.num_workers={state['num_workers']}"
                )
            stream.load_state_dict(state["position"])
        self.stream = stream
        return _repeat(stream, may_be_at_its_end=state is not None)


def _repeat(stream: StatefulDataLoader, may_be_at_its_end: bool) -> Iterator[Any]:
    while True:
        empty = True
        for batch in stream:
            empty = False
            yield batch
        if empty and not may_be_at_its_end:
            raise ValueError(
                "data: expected a stream with at least one batch for every process and worker, got none; "
                "lower run.batch_size or run.num_workers, or check the source"
            )
        may_be_at_its_end = False


def _leave_interrupts_to_the_trainer(worker_id: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the trainer needs its workers until it has saved its state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
