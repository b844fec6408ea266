"""Photos of any size to the groups that a model makes of them, level by level."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from grouping_zoo.grouping import Grouping
from grouping_zoo.viz.resizing import nearest, reduced, resized, resized_labels

MIN_SIDE = 32  # that the network sees of a photo: neither superpixels nor convolutions make sense of less
MAX_PIXELS = 1_000_000  # that the network sees of a photo: what bounds the memory for superpixels and their pooling


@dataclass(frozen=True, kw_only=True)
class PhotoGrouping:
    """The groups of one photo, whose size is (W, H), by one assignment head or the mean of all.

    Args:
        picture: the photo, of at most `PICTURE_SIDE` pixels a side: (w, h).
        full_size: (W, H).
        working_size: (width, height) that the network saw.
        grouping: of this one image, on the processor.
    """

    picture: Image.Image
    full_size: tuple[int, int]
    working_size: tuple[int, int]
    grouping: Grouping

    @property
    def num_heads(self) -> int:
        """How many assignment heads the grouping has; they are averaged."""
        return self.grouping.assignments[0].shape[1]

    def head(self, index: int) -> "PhotoGrouping":
        """The groups of one head alone."""
        return PhotoGrouping(
            picture=self.picture,
            full_size=self.full_size,
            working_size=self.working_size,
            grouping=self.grouping.head(index),
        )

    @cached_property
    def tokens(self) -> np.ndarray:
        """(h, w) the finest level's group of each pixel of the picture; all other levels follow from it."""
        width, height = self.working_size
        return resized_labels(self.grouping.labels(0, (height, width))[0].numpy(), self.picture.size)

    @cached_property
    def parents(self) -> list[np.ndarray]:
        """For each level but the coarsest, the group of the next level that each group belongs to."""
        return [self.grouping.parents(level)[0].numpy() for level in range(self.grouping.num_levels - 1)]

    def labels(self, level: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """(h, w) the group of each pixel of the picture, or of the picture at another (width, height)."""
        return self._chain(level)[self.tokens if size is None else resized_labels(self.tokens, size)]

    def full_labels(self, level: int) -> np.ndarray:
        """(H, W) the group of each pixel of the photo."""
        groups = self.grouping.num_groups(level)
        return nearest(self.labels(level).astype(np.uint8 if groups <= 256 else np.int32), self.full_size)

    def shares(self, level: int) -> np.ndarray:
        """(N_level,) each group's share of the pixels."""
        areas = np.bincount(self.tokens.ravel(), minlength=self.grouping.num_groups(0))
        counts = np.bincount(self._chain(level), weights=areas, minlength=self.grouping.num_groups(level))
        return counts / counts.sum()

    def _chain(self, level: int) -> np.ndarray:
        """(N_0,) the group of a level that each group of the finest one belongs to."""
        chain = np.arange(self.grouping.num_groups(0))
        for parent in self.parents[: level % self.grouping.num_levels]:
            chain = parent[chain]
        return chain


@dataclass(frozen=True, kw_only=True)
class PhotoGrouper:
    """Groups photos at their own aspect ratio and size; only those that are mere lines are widened for the network.

    Args:
        group: from the network's input, keyed as the image processor gives it, to the groups.
        image_processor: of the checkpoint: its resampling, range, mean and deviation are taken, and what else it
            makes of an image.
        size: the photo's shorter side for the network.
        device: where the network is.

    Raises:
        ValueError: for a size below `MIN_SIDE`.
    """

    group: Callable[[dict[str, Tensor]], Grouping]
    image_processor: Any
    size: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.size < MIN_SIDE:
            raise ValueError(f"size: expected at least {MIN_SIDE} pixels, got {self.size}; raise size")

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> tuple[PhotoGrouping, dict[str, Tensor]]:
        """Groups an RGB photo; the network's input is returned too.

        Raises:
            ValueError: if the network would have to look at too many pixels.
        """
        width, height = (max(side, MIN_SIDE) for side in resized(photo.size, self.size))
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"size: expected at most {MAX_PIXELS} pixels for the network, got {width}x{height} with the shorter "
                f"side at {self.size}; lower size"
            )
        picture = reduced(photo)
        inputs = self.image_processor(
            images=picture,
            size={"height": height, "width": width},
            do_resize=True,
            do_center_crop=False,
            return_tensors="pt",
        )
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        grouping = self.group(inputs)
        found = PhotoGrouping(
            picture=picture, full_size=photo.size, working_size=(width, height), grouping=grouping.to("cpu")
        )
        return found, inputs
