"""The data order, which sample of which epoch is read at which training step, and the randomness of a sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """One visit to a sample: every random choice made for it is a function of (seed, epoch, index)."""

    epoch: int
    index: int  # type: ignore[assignment]  # a tuple's method of this name is not wanted here


def sample_seed(seed: int, key: Sequence[int]) -> int:
    """Seed of 63 bits for one visit to a sample, a function of (seed, key) alone."""
    return int(np.random.SeedSequence(seed, spawn_key=tuple(key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generator within the block; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        yield


class EndlessSampler(Sampler[list[SampleKey]]):
    """Batches without end: seeded permutations of the data set, one after the other without a gap.

    Step ``s`` reads positions ``s * batch_size`` to ``(s + 1) * batch_size`` of the endless order, split over the
    ranks in rank order. The global batch of a step thus depends on the seed alone: not on the number of processes or
    workers, nor on where a run was resumed.

    Args:
        length: number of samples in the data set.
        batch_size: size of the global batch, over all ranks; it may exceed ``length``.
        seed: seed of the permutations.
        rank: this process.
        world_size: number of processes; must divide ``batch_size``.
        start_step: first step to yield, to resume exactly.
        shuffle: permute every epoch; ``False`` keeps the order of the data set.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        shuffle: bool = True,
    ) -> None:
        if length < 1:
            raise ValueError(f"length: expected at least 1 sample, got {length}; check the path of the data set")
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size: expected a positive multiple of the {world_size} processes, got {batch_size}; "
                f"set it to {max(1, round(batch_size / max(1, world_size))) * max(1, world_size)}, for example"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1} with world_size {world_size}, got {rank}")
        if start_step < 0:
            raise ValueError(f"start_step: expected 0 or more, got {start_step}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.shuffle = shuffle

    def order(self, epoch: int) -> np.ndarray:
        """Return the sample indices of one epoch in reading order, (length,) int64."""
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        local = self.batch_size // self.world_size
        start = self.start_step * self.batch_size + self.rank * local
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            keys = []
            for position in range(start, start + local):
                position_epoch, offset = divmod(position, self.length)
                if position_epoch != epoch:
                    epoch, order = position_epoch, self.order(position_epoch)
                keys.append(SampleKey(epoch, int(order[offset])))
            yield keys
            start += self.batch_size
