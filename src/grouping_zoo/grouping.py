"""The one answer of every model here: how an image's tokens fall into groups, level by level.

Everything above the models (segmentation, evaluation, pictures, command line) speaks only `Grouping`.

Shape legend: B batch, A assignment heads, N_l tokens of level l, C token width, (h, w) token grid,
(H, W) output size in pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree


# eq=False: comparing tensors field by field has no single truth value.
@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """Soft assignments of an image's tokens to groups, from fine to coarse.

    Level 0 is the tokens that lie on the image; level l (1, 2, ...) is the groups that `assignments[l - 1]`
    makes of level l - 1; level -1 is the coarsest. Invariants: rows of every assignment sum to 1; the hard
    labels are nested (pixels that share a label at one level share it at every coarser one); every pixel has a
    group; a batch gives what its images give one by one.

    Args:
        assignments: for each level the soft assignment to the next, (B, A, N_l, N_{l+1}), float, rows sum to 1.
            Several heads A are averaged; where each head groups on its own, take one with `head`.
        tokens: for each level from 1 on its groups' features, (B, N_{l+1}, C).
        grid: (h, w) when level 0 is a regular grid of tokens in row-major order.
        extent: the part of the grid's height and width that the image covers, each in (0, 1]: below 1 where the
            image was padded at the bottom and right to a whole number of patches.
        superpixels: (B, H, W) int64 map from pixel to level-0 token, instead of `grid`.

    Raises:
        ValueError: on parts that do not fit together.
    """

    assignments: Sequence[Tensor]
    tokens: Sequence[Tensor]
    grid: tuple[int, int] | None = None
    extent: tuple[float, float] = (1.0, 1.0)
    superpixels: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.assignments:
            raise ValueError("Grouping: expected at least one assignment, got none; the model has no grouping level")
        if (self.grid is None) == (self.superpixels is None):
            raise ValueError("Grouping: expected either `grid` or `superpixels`, got both or neither")
        if len(self.tokens) != len(self.assignments):
            raise ValueError(
                f"Grouping: expected the tokens of {len(self.assignments)} levels, one for each assignment, "
                f"got {len(self.tokens)}"
            )
        sizes = [tuple(a.shape) for a in self.assignments]
        chained = all(len(s) == 4 for s in sizes) and all(a[3] == b[2] for a, b in pairwise(sizes))
        if not chained:
            raise ValueError(
                f"Grouping: expected assignments (B, heads, N_l, N_l+1), each starting where the one before ends, "
                f"got shapes {sizes}"
            )
        batch = sizes[0][0]
        groups = [tuple(t.shape[:2]) for t in self.tokens]
        if any(s[0] != batch for s in sizes) or groups != [(batch, s[3]) for s in sizes]:
            raise ValueError(
                f"Grouping: expected tokens (B, N_l+1, C) of the groups that assignments of shapes {sizes} make, "
                f"got (B, N_l+1) {groups}"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != sizes[0][2]:
            raise ValueError(f"Grouping: grid {self.grid} does not hold the {sizes[0][2]} tokens of level 0")
        if not all(0 < part <= 1 for part in self.extent):
            raise ValueError(f"Grouping: extent: expected two numbers in (0, 1], got {self.extent}")
        self._check_superpixels(batch)

    def _check_superpixels(self, batch: int) -> None:
        labels = self.superpixels
        if labels is not None and (labels.ndim != 3 or len(labels) != batch or labels.dtype != torch.int64):
            raise ValueError(
                f"Grouping: superpixels: expected int64 labels ({batch}, H, W), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.assignments[0].shape[0]

    @property
    def num_levels(self) -> int:
        """Number of levels, the tokens on the image included."""
        return len(self.assignments) + 1

    def num_groups(self, level: int = -1) -> int:
        """Number of groups (tokens at level 0) of a level."""
        level = self._level(level)
        return self.assignments[0].shape[2] if level == 0 else self.assignments[level - 1].shape[3]

    def head(self, index: int) -> "Grouping":
        """The grouping of one assignment head alone."""
        heads = self.assignments[0].shape[1]
        if not -heads <= index < heads:
            raise ValueError(f"head: expected -{heads} to {heads - 1}, got {index}")
        index %= heads
        return replace(self, assignments=[a[:, index : index + 1] for a in self.assignments])

    def compose(self, level: int = -1) -> Tensor:
        """Soft assignment of the level-0 tokens to the groups of `level`: the product of the assignments.

        Returns:
            (B, N_0, N_level), rows sum to 1; the identity at level 0.
        """
        level = self._level(level)
        if level == 0:
            eye = torch.eye(self.num_groups(0), device=self.assignments[0].device, dtype=self.assignments[0].dtype)
            return eye.expand(self.batch_size, -1, -1)
        composed = self._mean_assignment(0)
        for index in range(1, level):
            composed = composed @ self._mean_assignment(index)
        return composed

    def parents(self, level: int) -> Tensor:
        """The group of the next coarser level that each group of `level` belongs to most.

        Returns:
            (B, N_level) int64, values in [0, N_{level+1}).
        """
        level = self._level(level)
        if level == self.num_levels - 1:
            raise ValueError(f"parents: level {level} is the coarsest; expected 0 to {level - 1}")
        return self._mean_assignment(level).argmax(dim=-1)

    def labels(self, level: int = -1, size: tuple[int, int] | None = None) -> Tensor:
        """Hard group of every pixel: the chain of `parents` from the pixel's token up.

        Args:
            level: which level; 0 gives the tokens themselves.
            size: (H, W) of the map; the token grid's (or the superpixel map's) own size if omitted.

        Returns:
            (B, H, W) int64, values in [0, N_level). Nested over levels.
        """
        level = self._level(level)
        chain = torch.arange(self.num_groups(0), device=self.assignments[0].device).expand(self.batch_size, -1)
        for finer in range(level):
            chain = self.parents(finer).gather(1, chain)  # (B, N_0)
        tokens = self._token_map(size)  # (B, H, W)
        return chain.gather(1, tokens.flatten(1)).view(tokens.shape)

    def probabilities(self, level: int = -1, size: tuple[int, int] | None = None) -> Tensor:
        """Soft group of every pixel; between grid tokens interpolated bilinearly.

        Returns:
            (B, N_level, H, W) float, sums to 1 over the groups.
        """
        composed = self.compose(level).transpose(1, 2)  # (B, N_level, N_0)
        if self.grid is None:
            tokens = self._token_map(size)
            index = tokens.flatten(1)[:, None].expand(-1, composed.shape[1], -1)
            return composed.gather(2, index).unflatten(2, tuple(tokens.shape[1:]))
        maps = composed.unflatten(2, self.grid)  # (B, N_level, h, w)
        if size is None:
            return maps
        height, width = size
        full = (round(height / self.extent[0]), round(width / self.extent[1]))
        maps = F.interpolate(maps.float(), size=full, mode="bilinear", align_corners=False)
        return maps[..., :height, :width]

    def entropy(self) -> list[Tensor]:
        """Mean entropy of each level's assignments, in nats: 0 when hard, log N_{l+1} when undecided.

        Returns:
            for each assignment (B,), averaged over heads and tokens.
        """
        return [torch.special.entr(a.float()).sum(-1).mean((1, 2)) for a in self.assignments]

    def to(self, *args: Any, **kwargs: Any) -> "Grouping":
        """Moves or casts every tensor, with the arguments of `torch.Tensor.to`; superpixels stay integers."""
        superpixels = self.superpixels
        if superpixels is not None:
            superpixels = superpixels.to(*args, **kwargs).to(torch.int64)
        return replace(
            self,
            assignments=[a.to(*args, **kwargs) for a in self.assignments],
            tokens=[t.to(*args, **kwargs) for t in self.tokens],
            superpixels=superpixels,
        )

    def __getitem__(self, index: int | slice) -> "Grouping":
        """The grouping of some images; an int keeps a batch of one."""
        if isinstance(index, int):
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"image {index} of a grouping of {self.batch_size} images")
            index %= self.batch_size
            index = slice(index, index + 1)
        return replace(
            self,
            assignments=[a[index] for a in self.assignments],
            tokens=[t[index] for t in self.tokens],
            superpixels=None if self.superpixels is None else self.superpixels[index],
        )

    def _level(self, level: int) -> int:
        if not -self.num_levels <= level < self.num_levels:
            raise ValueError(f"level: expected -{self.num_levels} to {self.num_levels - 1}, got {level}")
        return level % self.num_levels

    def _mean_assignment(self, index: int) -> Tensor:
        return self.assignments[index].mean(dim=1)

    def _token_map(self, size: tuple[int, int] | None) -> Tensor:
        """(B, H, W) int64 level-0 token of every pixel."""
        if self.superpixels is not None:
            if size is None or tuple(size) == tuple(self.superpixels.shape[1:]):
                return self.superpixels
            # Nearest neighbour in integers: a float round trip would lose labels above 2^24.
            rows, columns = (
                self._nearest(out, 1.0, full) for out, full in zip(size, self.superpixels.shape[1:], strict=True)
            )
            return self.superpixels[:, rows[:, None], columns[None]]
        assert self.grid is not None
        height, width = size or self.grid
        rows = self._nearest(height, self.extent[0] if size else 1.0, self.grid[0])
        columns = self._nearest(width, self.extent[1] if size else 1.0, self.grid[1])
        return (rows[:, None] * self.grid[1] + columns[None]).expand(self.batch_size, -1, -1)

    def _nearest(self, out: int, extent: float, cells: int) -> Tensor:
        centres = (torch.arange(out, device=self.assignments[0].device, dtype=torch.float64) + 0.5) / out
        return (centres * extent * cells).long().clamp_(max=cells - 1)


def _flatten(grouping: Grouping) -> tuple[list[Any], tuple[Any, ...]]:
    superpixels = [] if grouping.superpixels is None else [grouping.superpixels]
    tensors = [list(grouping.assignments), list(grouping.tokens), superpixels]
    return tensors, (grouping.grid, grouping.extent)


def _unflatten(tensors: Iterable[Any], context: tuple[Any, ...]) -> Grouping:
    # Without the checks of the constructor: while a program is traced, anything may stand in the place of a tensor.
    assignments, tokens, superpixels = tensors
    grid, extent = context
    grouping = object.__new__(Grouping)
    for name, value in (("assignments", assignments), ("tokens", tokens), ("grid", grid), ("extent", extent)):
        object.__setattr__(grouping, name, value)
    object.__setattr__(grouping, "superpixels", superpixels[0] if superpixels else None)
    return grouping


def _flatten_with_keys(grouping: Grouping) -> tuple[list[Any], tuple[Any, ...]]:
    tensors, context = _flatten(grouping)
    keys = map(pytree.GetAttrKey, ("assignments", "tokens", "superpixels"))
    return list(zip(keys, tensors, strict=True)), context


# As a node of trees of tensors a grouping may be an output of exported, traced and compiled programs.
pytree.register_pytree_node(
    Grouping,
    _flatten,
    _unflatten,
    serialized_type_name="grouping_zoo.Grouping",
    flatten_with_keys_fn=_flatten_with_keys,
)
