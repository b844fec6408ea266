"""Gathering of features over processes without losing their gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All processes' tensors, joined; the backward pass sums every process's gradient of our part.

    Together with the averaging of gradients over processes (DistributedDataParallel) this gives exactly the gradient
    of the mean of the processes' losses, with no factor of the world size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Join (B, ...) of all processes to (B * processes, ...) in rank order, keeping gradients.

    Every process must bring the same shape. Without a process group the tensor itself comes back.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x) if x.is_floating_point() else _all_gather(x)


def mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """This process's term of a mean whose count differs between processes: the processes' average is the mean."""
    counts = gather(count.reshape(1))
    return total * len(counts) / counts.sum().clamp(min=1)


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
