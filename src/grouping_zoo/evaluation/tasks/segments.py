"""The segments that a model makes of images; of a model that makes none, clusters of its dense features."""

from typing import Any

from grouping_zoo.evaluation.clustering import dense_features, kmeans_segments
from grouping_zoo.evaluation.retrieval import Segments
from grouping_zoo.evaluation.tasks.subject import Subject

CLUSTERS = 8  # of the dense features of an image


def finds_segments(subject: Subject) -> bool:
    """Whether a model has segments, or dense features to make them of."""
    return subject.heads == 1 or hasattr(subject.network, "forward_intermediates")


def find_segments(subject: Subject, batch: dict[str, Any]) -> Segments:
    """The finest groups and their features, on the CPU.

    Heads that group apart share no segments: such a model's are clusters too.
    """
    if subject.heads != 1:
        return cluster_segments(subject, batch)
    (grouping,) = subject.groupings(batch)
    labels = grouping.labels(1, _size(batch))
    return Segments(labels.cpu(), grouping.tokens[0].float().cpu())


def cluster_segments(subject: Subject, batch: dict[str, Any]) -> Segments:
    """K-means of each image's dense features, on the CPU."""
    maps = subject.call(lambda pixels, **inputs: dense_features(subject.network, pixels, **inputs), batch)
    return kmeans_segments(maps.float().cpu(), CLUSTERS, _size(batch))


def _size(batch: dict[str, Any]) -> tuple[int, int]:
    height, width = batch["pixel_values"].shape[-2:]
    return height, width
