"""Superpixels: small regions of similar colour that images are cut into before the network."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grouping_zoo.layers.seeds import seeds
from grouping_zoo.layers.slic import grid_labels, slic

SuperpixelMethod = Literal["seeds", "slic", "grid"]
SUPERPIXEL_METHODS = ("seeds", "slic", "grid")


class Superpixels(NamedTuple):
    """`labels` (B, H, W) int64, from 0 without gaps in each image, and `counts` (B,) int64, how many each has."""

    labels: Tensor
    counts: Tensor


def make_superpixels(images: Tensor, num_superpixels: int, method: SuperpixelMethod = "seeds") -> Superpixels:
    """Cuts each image of a batch into about `num_superpixels` regions.

    Args:
        images: (B, 3, H, W) RGB or (B, 1, H, W) grey, uint8.
        num_superpixels: how many to aim at; every method may make fewer or more.
        method: "seeds" (always on the processor), "slic" or "grid" (on the images' device). No method
            falls back to another: they cut differently, and a network is trained on one.

    Raises:
        ValueError: on another method, number, shape or dtype.
        ModuleNotFoundError: with "seeds", where OpenCV is missing or has no SEEDS.
    """
    if method not in SUPERPIXEL_METHODS:
        raise ValueError(f"superpixel_method: expected one of {SUPERPIXEL_METHODS}, got {method!r}")
    if num_superpixels < 1:
        raise ValueError(f"num_superpixels: expected at least 1, got {num_superpixels}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"images: expected uint8 of shape (B, 3, H, W) or (B, 1, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if method == "grid" or images.shape[0] == 0:
        labels = grid_labels(images.shape[-2], images.shape[-1], num_superpixels).to(images.device)
        return contiguous_labels(labels.expand(len(images), -1, -1))
    if method == "slic":
        return contiguous_labels(slic(images, num_superpixels))
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
    found = [seeds(np.ascontiguousarray(array), num_superpixels) for array in arrays]
    labels = torch.from_numpy(np.stack([labels for labels, _ in found]).astype(np.int64))
    return Superpixels(labels.to(images.device), torch.tensor([count for _, count in found], device=images.device))


def superpixel_count(height: int, width: int, size: int) -> int:
    """Number of superpixels as large as a square of side `size` that an image of a size in pixels holds."""
    return max(1, round(height * width / size**2))


def superpixels_by_size(view: Tensor, size: int, method: SuperpixelMethod) -> Tensor:
    """Superpixels of one image: (3, H, W) uint8 -> (H, W) int64, each about as large as a square of side `size`."""
    number = superpixel_count(view.shape[-2], view.shape[-1], size)
    return make_superpixels(view[None], number, method).labels[0]


def contiguous_labels(labels: Tensor) -> Superpixels:
    """Renumbers the labels of each image (B, H, W) from 0 without gaps, in their order."""
    flat = labels.flatten(1).long()
    if flat.shape[1] == 0 or (flat < 0).any():
        raise ValueError(f"labels: expected values of at least 0 in every image, got shape {tuple(labels.shape)}")
    # An image's labels may be any numbers: sort them, count the steps, and put the counts back in place.
    values, order = flat.sort(dim=1)
    steps = torch.zeros_like(values)
    steps[:, 1:] = (values[:, 1:] != values[:, :-1]).long().cumsum(dim=1)
    renumbered = torch.empty_like(flat).scatter_(1, order, steps)
    return Superpixels(renumbered.view(labels.shape), steps[:, -1] + 1)
