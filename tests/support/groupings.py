"""Groupings that are known beforehand, and networks that make them."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from grouping_zoo import Grouping
from grouping_zoo.hf.base import ZooPreTrainedModel
from grouping_zoo.models.family import GroupingNetwork


def grouping_of(parents: list[np.ndarray], **place: Any) -> Grouping:
    """A hard grouping with these parents."""
    counts = [len(parent) for parent in parents[1:]] + [int(parents[-1].max()) + 1]
    assignments = [
        torch.nn.functional.one_hot(torch.from_numpy(parent), count).float()[None, None]
        for parent, count in zip(parents, counts, strict=True)
    ]
    return Grouping(assignments=assignments, tokens=[torch.zeros(1, count, 2) for count in counts], **place)


def random_parents(sizes: tuple[int, ...] = (200, 64, 32, 16, 8)) -> list[np.ndarray]:
    """A random tree in which every group has a child."""
    rng = np.random.default_rng(0)
    return [
        rng.permutation(np.concatenate([np.arange(coarse), rng.integers(0, coarse, fine - coarse)]))
        for fine, coarse in pairwise(sizes)
    ]


class Stripes(GroupingNetwork):
    """Tokens on a grid of 8-pixel cells; head a groups them by their row (even) or column (odd) plus a layer."""

    grouping_levels = 2
    grouping_heads = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)  # a classifier's name, and that of an argument
        self.passes = 0

    @property
    def grouping_args(self) -> dict[str, Any]:
        return {"num_stripes": 6, "layer": -1, "head": None}

    def forward_grouping(
        self, x: Tensor, layer: int = -1, head: int | None = None, num_stripes: int | None = None
    ) -> Grouping:
        self.passes += 1
        number = num_stripes or 6
        height, width = x.shape[-2] // 8, x.shape[-1] // 8
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        heads = [(index.flatten() + layer + 1) % number for index in (rows, columns, rows)]
        chosen = heads if head is None else [heads[head]]
        assignment = nn.functional.one_hot(torch.stack(chosen), number).float()[None]  # (1, A, N, M)
        return Grouping(assignments=[assignment], tokens=[torch.zeros(1, number, 2)], grid=(height, width))


class Looking(Stripes):
    """Five tokens that look at a cell each, beside one way to group."""

    grouping_heads = 1
    has_token_attention = True

    @property
    def grouping_args(self) -> dict[str, Any]:
        return {}

    def forward_grouping_with_attention(self, x: Tensor) -> tuple[Grouping, Tensor]:
        cells = (x.shape[-2] // 8) * (x.shape[-1] // 8)
        attention = self.head.weight * torch.eye(5, cells)[None].unflatten(2, (x.shape[-2] // 8, -1))
        return self.forward_grouping(x, head=0), attention


class StripesModel(ZooPreTrainedModel):
    """A transformers model around a network that no checkpoint holds."""

    config_class = PreTrainedConfig

    def __init__(self, network: GroupingNetwork) -> None:
        super().__init__(PreTrainedConfig(pretrained_cfg={"input_size": [3, 64, 64]}))
        self.model = network
        self.post_init()
        self.eval()
