"""Hard groups of one image as a tree: each group lies in one group of the next coarser level."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from grouping_zoo.grouping import Grouping
from grouping_zoo.label_maps import resize_labels


@dataclass(frozen=True, eq=False)
class GroupTree:
    """Levels of groups from fine to coarse, as plain arrays: 0 the tokens that lie on the image, -1 the coarsest.

    Args:
        tokens: (h, w) int64, the level-0 group of each pixel; all other levels follow from it.
        parents: for each level but the coarsest (N_l,) int64, the group of the next level that each group belongs to.
        num_groups: for each level its number of groups N_l, those without pixels included.
        on_grid: the tokens are the cells of a regular grid, not superpixels.
    """

    tokens: np.ndarray
    parents: list[np.ndarray]
    num_groups: list[int]
    on_grid: bool

    @classmethod
    def of_grouping(cls, grouping: Grouping, seen_size: tuple[int, int], size: tuple[int, int]) -> "GroupTree":
        """The tree of a grouping of one image; several heads are averaged.

        Args:
            grouping: on the CPU.
            seen_size: (width, height) of the image that was grouped.
            size: (width, height) of the tree's map.
        """
        levels = range(grouping.num_levels)
        return cls(
            tokens=resize_labels(grouping.labels(0, seen_size[::-1])[0].numpy(), size),
            parents=[grouping.parents(level)[0].numpy() for level in levels[:-1]],
            num_groups=[grouping.num_groups(level) for level in levels],
            on_grid=grouping.grid is not None,
        )

    @property
    def num_levels(self) -> int:
        """Number of levels, the tokens included."""
        return len(self.num_groups)

    def labels(self, level: int = -1, size: tuple[int, int] | None = None) -> np.ndarray:
        """Group of each pixel, (h, w) int64, or (height, width) at another size (width, height)."""
        return self._ancestors(level)[self.tokens if size is None else resize_labels(self.tokens, size)]

    def fractions(self, level: int = -1) -> np.ndarray:
        """Fraction of the pixels in each group of a level, (N_level,) float64, sums to 1."""
        counts = np.bincount(self._ancestors(level), weights=self.token_pixels, minlength=self.num_groups[level])
        return counts / counts.sum()

    @cached_property
    def token_pixels(self) -> np.ndarray:
        """Number of pixels of each token, (N_0,) int64."""
        return np.bincount(self.tokens.ravel(), minlength=self.num_groups[0])

    def _ancestors(self, level: int) -> np.ndarray:
        """Group of a level that each token belongs to, (N_0,) int64."""
        if not -self.num_levels <= level < self.num_levels:
            raise ValueError(f"level: expected -{self.num_levels} to {self.num_levels - 1}, got {level}")
        ancestors = np.arange(self.num_groups[0])
        for parent in self.parents[: level % self.num_levels]:
            ancestors = parent[ancestors]
        return ancestors
