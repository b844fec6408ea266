"""Endless batches of a task's data set, exactly resumable."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from grouping_zoo.data.sampling import EndlessSampler
from grouping_zoo.engine.recipe import RunConfig
from grouping_zoo.engine.stop_request import signals_blocked
from grouping_zoo.engine.task import Task


class EndlessLoader:
    """Iterator over this process' micro-batches, without end; leaving it as a context ends its workers.

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
            "worker_init_fn": _ignore_interrupts,
            # The loader's own generator, lest it draws from the global one, whose state the noise depends on.
            "generator": torch.Generator().manual_seed(config.seed),
        }
        self.workers: set[BaseProcess] = set()
        self.stream: StatefulDataLoader | None = None
        self.batches: Iterator[Any] = iter(())

    def start(self, step: int, state: dict[str, Any] | None = None) -> None:
        """Go to the first batch of update `step`; a stream does so by its `state_dict()` of then."""
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
        with self.starting_workers():
            self.batches = iter(DataLoader(self.task.dataset, batch_sampler=sampler, **self.options))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.batches)
        except BaseException as error:
            # The frames of its traceback would keep the iterator, and so the workers, beyond this loader.
            raise error.with_traceback(None)  # noqa: B904

    def __enter__(self) -> "EndlessLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        # The last references to the iterators, which end their workers, all but those that hang.
        self.stream, self.batches = None, iter(())
        _kill(self.workers)

    @contextmanager
    def starting_workers(self) -> Iterator[None]:
        """Have the loader processes that start inside outlive signals to the process group, but not this loader.

        The trainer needs them until it has saved its state, after Ctrl-C as after a SIGTERM to the group.
        """
        before = set(multiprocessing.active_children())
        with signals_blocked():
            yield
        self.workers.update(set(multiprocessing.active_children()) - before)

    def state_dict(self) -> dict[str, Any] | None:
        """Position of the stream after the batch read last; None for map-style data, whose step says it all."""
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
        return self._repeat(stream, may_be_at_its_end=state is not None)

    def _repeat(self, stream: StatefulDataLoader, may_be_at_its_end: bool) -> Iterator[Any]:
        while True:
            empty = True
            with self.starting_workers():
                batches = iter(stream)
            for batch in batches:
                empty = False
                yield batch
            if empty and not may_be_at_its_end:
                raise ValueError(
                    "data: expected a stream with at least one batch for every process and worker, got none; "
                    "lower run.batch_size or run.num_workers, or check the source"
                )
            may_be_at_its_end = False


def _ignore_interrupts(worker_id: int) -> None:
    """Leave Ctrl-C to the trainer, also where signals cannot be blocked (Windows)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _kill(workers: Iterable[BaseProcess]) -> None:
    """End processes that may hang, and that an iterator may still count on."""
    if alive := [worker for worker in workers if worker.is_alive()]:
        with _deaths_unwatched():
            for worker in alive:
                worker.kill()
                worker.join()


@contextmanager
def _deaths_unwatched() -> Iterator[None]:
    """Keep torch's handler, which raises when a worker is killed, from being called."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, handler)
