"""Baseline segments: clusters of a model's dense features, and superpixels merged by color.

Shape legend: B images, D feature width, (h, w) feature map, (H, W) image, S segments.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from skimage.color import rgb2lab
from sklearn.cluster import AgglomerativeClustering, MiniBatchKMeans
from torch import Tensor

from grouping_zoo.evaluation.retrieval import Segments


@torch.no_grad()
def dense_features(model: Any, images: Tensor, **inputs: Tensor) -> Tensor:
    """Return the last, normalised feature map of a timm model: images (B, C, H, W) -> (B, D, h, w).

    Args:
        model: timm's, or of its kind.
        images: normalised.
        **inputs: what else the model takes of them, e.g. `superpixels`.
    """
    maps = model.forward_intermediates(
        images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True, **inputs
    )
    return maps[-1]


def kmeans_segments(features: Tensor, clusters: int, size: tuple[int, int] | None = None, seed: int = 0) -> Segments:
    """Cluster the directions of each image's features.

    Args:
        features: (B, D, h, w); resize them first for segments finer than their cells.
        clusters: how many to find in each image.
        size: (H, W) of the labels; the features' own if omitted. Pixels take the label of the nearest cell.
        seed: of the first centroids.

    Returns:
        the segments, S = number of clusters; a feature is the mean over the segment's cells, 0 where it has none.

    Raises:
        ValueError: for less than one cluster.
    """
    if clusters < 1:
        raise ValueError(f"clusters: expected at least 1, got {clusters}")
    # Directions of the features: (B, h * w, D).
    cells = F.normalize(features.detach().float().flatten(2).transpose(1, 2), dim=-1).cpu().numpy()
    number = min(clusters, cells.shape[1])
    found = [MiniBatchKMeans(number, random_state=seed, n_init=3).fit_predict(image) for image in cells]
    labels = torch.from_numpy(np.stack(found)).to(features.device, torch.int64)  # (B, h * w)
    member = F.one_hot(labels, number).to(features.dtype).transpose(1, 2)  # (B, S, h * w)
    means = member @ features.flatten(2).transpose(1, 2) / member.sum(dim=2, keepdim=True).clamp(min=1)
    maps = labels.view(len(labels), *features.shape[-2:])
    if size is not None:
        maps = F.interpolate(maps[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
    return Segments(maps, means)


def merge_by_color(images: Tensor, superpixels: Tensor, regions: Sequence[int]) -> list[Tensor]:
    """Merge neighbouring superpixels of the most similar mean color in CIELAB, by Ward's criterion.

    Args:
        images: (B, 3, H, W) uint8.
        superpixels: (B, H, W) integer labels.
        regions: how many are to remain, for each level; an image with fewer superpixels keeps them.

    Returns:
        for each entry of `regions` the labels (B, H, W) int64, from 0 without gaps. Levels are nested: all are cuts of
        the same tree.

    Raises:
        ValueError: on another shape or dtype, or less than one region.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if superpixels.shape != (len(images), *images.shape[-2:]):
        raise ValueError(
            f"superpixels: expected shape {(len(images), *images.shape[-2:])} to go with the images, got "
            f"{tuple(superpixels.shape)}"
        )
    if not regions or min(regions) < 1:
        raise ValueError(f"regions: expected numbers of at least 1, got {list(regions)}")
    levels: list[list[Tensor]] = [[] for _ in regions]
    for image, labels in zip(images.permute(0, 2, 3, 1).cpu().numpy(), superpixels.cpu().numpy(), strict=True):
        number, flat = np.unique(labels, return_inverse=True)
        own = flat.reshape(labels.shape)  # from 0 without gaps
        colors = _mean_colors(image, own, len(number))
        neighbours = _adjacency(own, len(number))
        for level, wanted in zip(levels, regions, strict=True):
            merged = np.arange(len(number))
            if wanted < len(number):
                # The full tree even for one level: a tree that stops early would be cut otherwise.
                tree = AgglomerativeClustering(wanted, connectivity=neighbours, compute_full_tree=True)
                merged = tree.fit_predict(colors)
            level.append(torch.from_numpy(merged[own].astype(np.int64)))
    return [torch.stack(level) for level in levels]


def _mean_colors(image: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Return the mean of each segment in CIELAB: (H, W, 3) uint8, (H, W) -> (S, 3)."""
    channels = rgb2lab(image).reshape(-1, 3).T
    sums = np.stack([np.bincount(labels.ravel(), weights=channel, minlength=number) for channel in channels], axis=1)
    return sums / np.bincount(labels.ravel(), minlength=number)[:, None]


def _adjacency(labels: np.ndarray, number: int) -> coo_matrix:
    """Return an (S, S) symmetric matrix: which segments share an edge between pixels."""
    across = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()])
    down = np.stack([labels[:-1].ravel(), labels[1:].ravel()])
    one, other = np.unique(np.concatenate([across, down], axis=1), axis=1)
    rows, columns = np.concatenate([one, other]), np.concatenate([other, one])
    return coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(number, number))
