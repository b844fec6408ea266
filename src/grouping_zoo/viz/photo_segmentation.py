"""Photos of any size to labels and groups that lie on them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from grouping_zoo.evaluation.zero_shot import ZeroShotSegmenter, classify
from grouping_zoo.viz.resizing import best_of_maps, nearest, reduced, resized, resized_labels

MAX_TOKENS = 65536  # patches in one pass: attention over more takes hours


@dataclass(frozen=True, kw_only=True)
class PhotoSegmentation:
    """What was found in one photo, whose size is (W, H).

    Args:
        picture: the photo, of at most `PICTURE_SIDE` pixels a side: (w, h).
        full_size: (W, H).
        working_size: (width, height) that the network saw.
        labels: (h, w) int64; 0 is background, 1 + class elsewhere.
        groups: (h, w) int64, the coarsest group of each pixel.
        group_counts: number of groups of each level, from fine to coarse.
        probabilities: (L,) of each class for the photo as a whole.
        scores: (L,) each class's best pixel, which is what the threshold is compared with.
    """

    picture: Image.Image
    full_size: tuple[int, int]
    working_size: tuple[int, int]
    labels: np.ndarray
    groups: np.ndarray
    group_counts: list[int]
    probabilities: list[float]
    scores: list[float]

    @property
    def groups_seen(self) -> int:
        """How many of the coarsest groups have a pixel."""
        return len(np.unique(self.groups))

    def shares(self) -> list[float]:
        """Share of the pixels that each label has, background first: L + 1 numbers that sum to 1."""
        counts = np.bincount(self.labels.ravel(), minlength=1 + len(self.scores))
        return (counts / counts.sum()).tolist()

    def full_labels(self) -> np.ndarray:
        """Labels of every pixel of the photo, (H, W) uint8, or uint16 with more than 255 classes."""
        return nearest(self.labels.astype(np.uint8 if len(self.scores) <= 255 else np.uint16), self.full_size)


@dataclass(kw_only=True)
class PhotoSegmenter:
    """Zero-shot segmentation of photos, at their own aspect ratio and size.

    The shorter side is resized to `size` for the network. Each label's part of the result is brought back bilinearly,
    to at most `PICTURE_SIDE` pixels a side, where the largest wins.

    Args:
        segmenter: labels what the network sees.
        image_processor: of the checkpoint: its resampling, range, mean and deviation are taken.
        size: the shorter side for the network.

    Raises:
        ValueError: for a size smaller than a patch.
    """

    segmenter: ZeroShotSegmenter
    image_processor: Any
    size: int

    def __post_init__(self) -> None:
        patch = max(self.segmenter.model.vision.patch_size)
        if self.size < patch:
            raise ValueError(
                f"size: expected at least the model's patch of {patch} pixels, got {self.size}; raise size"
            )

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> PhotoSegmentation:
        """Segments an RGB photo.

        Raises:
            ValueError: if the network would have to look at too many patches at once.
        """
        working_size = resized(photo.size, self.size)
        self._check_tokens(working_size)
        picture = reduced(photo)
        pixels = self._pixels(picture, working_size)
        model, text = self.segmenter.model, self.segmenter.text
        grouping = model.forward_grouping(pixels)
        groups = grouping.probabilities(-1, (working_size[1], working_size[0]))[0]  # (S, h, w)
        return PhotoSegmentation(
            picture=picture,
            full_size=photo.size,
            working_size=working_size,
            labels=resized_labels(self.segmenter(pixels)[0].cpu().numpy(), picture.size),
            groups=best_of_maps(groups.cpu(), picture.size),
            group_counts=[grouping.num_groups(level) for level in range(1, grouping.num_levels)],
            probabilities=classify(model, pixels, text)[0].tolist(),
            scores=self.segmenter.scores(pixels)[0].flatten(1).max(dim=1).values.tolist(),
        )

    def _check_tokens(self, working_size: tuple[int, int]) -> None:
        width, height = working_size
        patch_height, patch_width = self.segmenter.model.vision.patch_size
        tokens = -(-height // patch_height) * -(-width // patch_width)
        if tokens > MAX_TOKENS:
            raise ValueError(
                f"size: expected at most {MAX_TOKENS} patches a photo, got {tokens} with the shorter side at "
                f"{self.size} pixels; lower size"
            )

    def _pixels(self, picture: Image.Image, working_size: tuple[int, int]) -> Tensor:
        """The network's input (1, 3, height, width), by the checkpoint's own preprocessing."""
        width, height = working_size
        inputs = self.image_processor(
            images=picture, size={"height": height, "width": width}, do_resize=True, return_tensors="pt"
        )
        return inputs["pixel_values"].to(self.segmenter.text.device)
