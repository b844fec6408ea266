"""Photos of any size to labels and groups that lie on them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from grouping_zoo.evaluation.zero_shot import ZeroShotSegmenter, classify

PICTURE_SIDE = 2048  # longer side of pictures and of the finest labels: what bounds the memory for huge photos
MAX_ASPECT = 8  # the network sees longer photos smaller
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
        labels = self.labels.astype(np.uint8 if len(self.scores) <= 255 else np.uint16)
        width, height = self.full_size
        rows = np.arange(height) * labels.shape[0] // height
        columns = np.arange(width) * labels.shape[1] // width
        return labels[rows[:, None], columns]


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
            raise ValueError(f"size: expected at least the model's patch of {patch} pixels, got {self.size}")

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> PhotoSegmentation:
        """Segments an RGB photo.

        Raises:
            ValueError: if the network would have to look at too many patches at once.
        """
        working_size = resized(photo.size, self.size)
        self._check_tokens(working_size)
        picture = _reduced(photo)
        pixels = self._pixels(picture, working_size)
        model, text = self.segmenter.model, self.segmenter.text
        grouping = model.forward_grouping(pixels)
        groups = grouping.probabilities(-1, (working_size[1], working_size[0]))[0]  # (S, h, w)
        return PhotoSegmentation(
            picture=picture,
            full_size=photo.size,
            working_size=working_size,
            labels=resized_labels(self.segmenter(pixels)[0].cpu(), picture.size),
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


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side brought to `shorter`, or the longer one to `MAX_ASPECT` times that."""
    scale = min(shorter / min(size), MAX_ASPECT * shorter / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def best_of_maps(maps: Iterable[Tensor], size: tuple[int, int]) -> np.ndarray:
    """The largest of N maps at each pixel of another size, one map interpolated at a time to save memory.

    Args:
        maps: N times (h, w) float.
        size: (width, height) of the result.

    Returns:
        number of the largest map, (height, width) int64; of equal ones the first.
    """
    width, height = size
    best = torch.full((height, width), -torch.inf)
    index = torch.zeros((height, width), dtype=torch.int64)
    for number, one in enumerate(maps):
        full = F.interpolate(one.float()[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        better = full > best
        best[better] = full[better]
        index[better] = number
    return index.numpy()


def resized_labels(labels: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Labels (h, w) at another size (width, height), with smoother outlines than the nearest neighbour gives."""
    occurring = labels.unique()
    return occurring.numpy()[best_of_maps((labels == label for label in occurring), size)]


def _reduced(photo: Image.Image) -> Image.Image:
    """The photo at most `PICTURE_SIDE` pixels a side."""
    scale = PICTURE_SIDE / max(photo.size)
    if scale >= 1:
        return photo
    size = (max(1, round(scale * photo.width)), max(1, round(scale * photo.height)))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
