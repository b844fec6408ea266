"""Training in two processes."""

import os
import socket

import torch
from accelerate.state import AcceleratorState

from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import Recipe


def _train(rank: int, recipe: Recipe, port: int) -> None:
    variables = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ |= {name: str(value) for name, value in variables.items()}
    AcceleratorState._reset_state(reset_partial_state=True)  # what the parent's runs left
    train(recipe, progress_bar=False)


def train_in_two_processes(recipe: Recipe) -> None:
    """Trains in forks of this process, before it has a process group of its own, without the seconds of imports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_train, (recipe, port), nprocs=2, start_method="fork")
