"""Choosing centroids among the tokens of each image: farthest point sampling, and the baselines it is compared with.

Qi et al., "PointNet++" (NeurIPS 2017), section 3.2, as used by Ke et al., "CAST: Concurrent Recognition and
Segmentation with Adaptive Segment Tokens" (2022), section 3.3; the baselines are those of its ablation.

Shape legend: B batch, N tokens, K centroids, C width.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

CentroidMethod = Literal["farthest", "random", "kmedoids", "kmeans"]
CENTROID_METHODS = ("farthest", "random", "kmedoids", "kmeans")
CLUSTERING_STEPS = 10


class Sample(NamedTuple):
    """Sampled points: `indices` (B, K) int64 and `fresh` (B, K) bool, False where nothing distinct was left."""

    indices: Tensor
    fresh: Tensor


class Centroids(NamedTuple):
    """Centroids as averages of tokens: `weights` (B, K, N), rows sum to 1, and `valid` (B, K) bool."""

    weights: Tensor
    valid: Tensor


@torch.compiler.disable
@torch.no_grad()
def farthest_point_sampling(points: Tensor, num_samples: int, mask: Tensor | None = None) -> Sample:
    """Samples points one by one, each the farthest from all sampled before; the first is point 0.

    The definition, in float64 for one image:

        sampled, distances = [0], [inf] * N
        while len(sampled) < num_samples:
            for j in range(N):
                distances[j] = min(distances[j], sum((points[j] - points[sampled[-1]]) ** 2))
            sampled.append(argmax(distances))  # ties: the lowest index

    Distances come from matrix products, whose rounding differs from the definition's; an image in which that could
    have changed a choice is done again with more precision, in the end by the definition itself.

    Args:
        points: (B, N, C) floats.
        num_samples: K; may exceed N, the rest is then not fresh.
        mask: (B, N) bool, False for points that do not count; point 0 of every image must count.

    Returns:
        the indices in order of sampling, and whether each was apart from all before it.

    Raises:
        ValueError: on other shapes or fewer than one sample.
    """
    if points.ndim != 3 or not points.shape[1]:
        raise ValueError(f"points: expected (B, N, C) with N of at least 1, got shape {tuple(points.shape)}")
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    if mask is None:
        mask = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    first = torch.float32 if _single_precision_is_faster(points) else torch.float64
    indices, decided = _sample_by_products(points.to(first), num_samples, mask)
    fresh = torch.ones_like(indices, dtype=torch.bool)
    if first is not torch.float64 and not decided.all():
        again = (~decided).nonzero()[:, 0]
        indices[again], decided[again] = _sample_by_products(points[again].double(), num_samples, mask[again])
    if not decided.all():
        again = (~decided).nonzero()[:, 0]
        indices[again], fresh[again] = _sample_by_definition(points[again].double(), num_samples, mask[again])
    return Sample(indices, fresh)


def _single_precision_is_faster(points: Tensor) -> bool:
    # An accelerator, or a setting, may shorten the mantissas of float32 products: the tolerance would not hold.
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return points.device.type == "cpu" and precision in ("none", "ieee")


def _sample_by_products(points: Tensor, num_samples: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, K), and (B,) whether every choice was clear of rounding errors."""
    # What all points have in common would only widen the tolerance.
    share = mask.to(points.dtype) / mask.sum(dim=1, keepdim=True)
    with torch.autocast(points.device.type, enabled=False):
        points = points - share[:, None] @ points
        products = points @ points.transpose(1, 2)  # (B, N, N)
    squares = products.diagonal(dim1=1, dim2=2)
    pairwise = (squares[:, :, None] + squares[:, None]).sub_(products, alpha=2)
    # Rounding errors of a sum over C channels grow with sqrt(C), those of the three terms do not; both bounds leave
    # room for the largest of many.
    unit = torch.finfo(points.dtype).eps * squares.masked_fill(~mask, 0).amax(dim=1)
    tolerance = (16 + 2 * points.shape[2] ** 0.5) * unit
    first_rows = torch.arange(len(points), device=points.device) * points.shape[1]
    rows = pairwise.flatten(0, 1)  # (B * N, N)
    indices = first_rows.new_zeros(len(points), num_samples)
    distances = torch.full(mask.shape, torch.inf, dtype=points.dtype, device=points.device)
    distances.masked_fill_(~mask, -torch.inf)
    margin = torch.full_like(tolerance, torch.inf)
    last = indices[:, 0]
    for step in range(1, num_samples):
        distances = torch.minimum(distances, rows.index_select(0, first_rows + last))
        best, order = distances.topk(min(2, points.shape[1]), dim=1)
        # Not clear either where the farthest point is none at all, at distance 0.
        margin = torch.minimum(margin, best[:, 0] - best[:, -1].clamp(min=0))
        last = order[:, 0]
        indices[:, step] = last
    return indices, margin > tolerance


def _sample_by_definition(points: Tensor, num_samples: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, K), and (B, K) whether the distance to all sampled before is above 0."""
    images = torch.arange(len(points), device=points.device)
    indices = images.new_zeros(len(points), num_samples)
    fresh = torch.ones_like(indices, dtype=torch.bool)
    distances = torch.full(mask.shape, torch.inf, dtype=points.dtype, device=points.device)
    distances.masked_fill_(~mask, -torch.inf)
    last = indices[:, 0]
    for step in range(1, num_samples):
        distances = torch.minimum(distances, (points - points[images, last][:, None]).square_().sum(-1))
        # Of equal maxima argmax may return any; the first one is asked for.
        farthest = distances.amax(dim=1, keepdim=True)
        last = (distances == farthest).to(torch.uint8).argmax(dim=1)
        indices[:, step] = last
        fresh[:, step] = farthest[:, 0] > 0
    return indices, fresh


@torch.no_grad()
def choose_centroids(tokens: Tensor, num_centroids: int, usable: Tensor, method: CentroidMethod) -> Centroids:
    """Chooses up to K centroids among the usable tokens of each image.

    "farthest" starts at the mean token, which is no centroid itself. "random" draws with torch's global generator;
    "kmedoids" and "kmeans" start from such a draw and run ten steps of Lloyd's algorithm.

    Args:
        tokens: (B, N, C).
        num_centroids: K.
        usable: (B, N) bool, at least one token in each image.
        method: see above.

    Returns:
        the centroids; where an image has fewer distinct usable tokens than K, the rest is not valid.
    """
    if method == "farthest":
        return _farthest_centroids(tokens, num_centroids, usable)
    order = torch.rand(usable.shape, device=tokens.device).masked_fill(~usable, -1.0)
    indices = order.argsort(dim=1, descending=True)[:, :num_centroids]
    valid = usable.gather(1, indices)
    if method == "kmedoids":
        indices = _move_medoids(tokens.float(), indices, valid, usable)
    weights = _one_hot(indices, tokens)
    if method == "kmeans":
        weights = _move_means(tokens.float(), weights, valid, usable)
    return Centroids(weights, valid)


def _farthest_centroids(tokens: Tensor, num_centroids: int, usable: Tensor) -> Centroids:
    points = tokens.to(torch.float64)
    mean = masked_mean(points, usable)
    sample = farthest_point_sampling(
        torch.cat([mean, points], dim=1), num_centroids + 1, torch.cat([torch.ones_like(usable[:, :1]), usable], dim=1)
    )
    indices, valid = (sample.indices[:, 1:] - 1).clamp(min=0), sample.fresh[:, 1:].clone()
    # A single distinct token equals the mean: nothing is far from it, yet it must be a centroid.
    indices[:, 0] = torch.where(valid[:, 0], indices[:, 0], usable.to(torch.uint8).argmax(dim=1))
    valid[:, 0] = True
    return Centroids(_one_hot(indices, tokens), valid)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of (B, N, C) that `mask` (B, N) keeps: (B, 1, C)."""
    weights = mask[:, :, None].to(x.dtype)
    return (x * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)


def _one_hot(indices: Tensor, tokens: Tensor) -> Tensor:
    """(B, K) indices as (B, K, N) weights."""
    weights = torch.zeros(*indices.shape, tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
    return weights.scatter_(2, indices[:, :, None], 1.0)


def _members(tokens: Tensor, centres: Tensor, valid: Tensor, usable: Tensor) -> Tensor:
    """(B, K, N) bool: which usable tokens are nearest to which valid centre (B, K, C)."""
    nearest = torch.cdist(tokens, centres).masked_fill(~valid[:, None], torch.inf).argmin(dim=2)  # (B, N)
    return _one_hot(nearest, centres).transpose(1, 2).bool() & usable[:, None]


def _move_medoids(tokens: Tensor, indices: Tensor, valid: Tensor, usable: Tensor) -> Tensor:
    pairwise = torch.cdist(tokens, tokens)  # (B, N, N)
    for _ in range(CLUSTERING_STEPS):
        centres = tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))
        members = _members(tokens, centres, valid, usable)
        costs = (members.to(pairwise.dtype) @ pairwise).masked_fill(~members, torch.inf)  # (B, K, N)
        indices = torch.where(members.any(dim=2), costs.argmin(dim=2), indices)
    return indices


def _move_means(tokens: Tensor, weights: Tensor, valid: Tensor, usable: Tensor) -> Tensor:
    for _ in range(CLUSTERING_STEPS):
        members = _members(tokens, weights.to(tokens.dtype) @ tokens, valid, usable)
        means = members / members.sum(dim=2, keepdim=True).clamp(min=1)
        weights = torch.where(members.any(dim=2, keepdim=True), means.to(weights.dtype), weights)
    return weights
