"""Segments that a model makes of images; of a model that makes none, clusters of its dense features."""

from typing import Any

from grouping_zoo.evaluation.clustering import dense_features, kmeans_segments
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.retrieval import Segments

CLUSTERS = 8  # of the dense features of an image


def makes_segments(model: EvaluatedModel) -> bool:
    """Return whether a model has segments, or dense features to make them of."""
    return model.grouping_heads == 1 or model.gives_maps


def finest_segments(model: EvaluatedModel, batch: dict[str, Any]) -> Segments:
    """Return the finest groups and their features, on the CPU.

    Heads that group apart share no segments: such a model's are clusters too.
    """
    if model.grouping_heads != 1:
        return cluster_segments(model, batch)
    (grouping,) = model.groupings(batch)
    return Segments(grouping.labels(1, _size(batch)).cpu(), grouping.tokens[0].float().cpu())


def coarsest_segments(model: EvaluatedModel, batch: dict[str, Any]) -> Segments:
    """Return the most probable coarsest group of each pixel and the groups' features, on the CPU; else clusters."""
    if model.grouping_heads != 1:
        return cluster_segments(model, batch)
    (grouping,) = model.groupings(batch)
    owner = grouping.probabilities(-1, _size(batch)).argmax(dim=1)
    return Segments(owner.cpu(), grouping.tokens[-1].float().cpu())


def cluster_segments(model: EvaluatedModel, batch: dict[str, Any]) -> Segments:
    """Cluster each image's dense features by k-means, on the CPU."""
    maps = model.call(lambda pixels, **inputs: dense_features(model.network, pixels, **inputs), batch)
    return kmeans_segments(maps.float().cpu(), CLUSTERS, _size(batch))


def _size(batch: dict[str, Any]) -> tuple[int, int]:
    height, width = batch["pixel_values"].shape[-2:]
    return height, width
