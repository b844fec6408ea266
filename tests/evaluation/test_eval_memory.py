import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from grouping_zoo.evaluation.boundaries import evaluate_boundaries
from grouping_zoo.evaluation.clustering import fit_kmeans
from grouping_zoo.evaluation.figure_ground import evaluate_figure_ground
from grouping_zoo.evaluation.hierarchy import evaluate_hierarchy
from grouping_zoo.evaluation.recognition import extract_features
from grouping_zoo.evaluation.retrieval import SegmentRetrieval, Segments
from grouping_zoo.evaluation.superpixel_quality import evaluate_superpixels


def labels_of(images: Tensor) -> Tensor:
    return (3 * images[:, 0]).long()


def attention_of(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[:, :, 0, :3], labels_of(images)


def segments_of(images: Tensor) -> Segments:
    return Segments(labels_of(images), images[:, :, :3, 0].transpose(1, 2))


def images_of(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    for images, _ in batches:
        yield images


EVALUATORS = {
    "hierarchy": lambda batches: evaluate_hierarchy(lambda x: [labels_of(x)], batches),
    "boundaries": lambda batches: evaluate_boundaries(labels_of, batches, ["a", "b", "c"]),
    "superpixels": lambda batches: evaluate_superpixels(labels_of, batches),
    "figure_ground": lambda batches: evaluate_figure_ground(attention_of, batches),
    "retrieval": lambda batches: SegmentRetrieval(segments_of, 3).fit(batches),
    "features": lambda batches: extract_features(lambda x: x.mean(dim=(2, 3)), images_of(batches)),
    "kmeans": lambda batches: fit_kmeans(images_of(batches), 3),
}


@pytest.mark.parametrize("name", EVALUATORS)
def test_evaluators_let_go_of_each_batch(name: str) -> None:
    """Memory stays flat: while a batch is made, none but the one before it may still be held."""
    alive: list[list[weakref.ref[Tensor]]] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(6):
            held = [number for number, refs in enumerate(alive) if any(ref() is not None for ref in refs)]
            assert set(held) <= {step - 1}
            images, masks = torch.rand(2, 3, 6, 6), torch.randint(3, (2, 6, 6))
            alive.append([weakref.ref(images), weakref.ref(masks)])
            yield images, masks
            del images, masks

    evaluate: Callable[[Any], Any] = EVALUATORS[name]
    evaluate(batches())
    assert len(alive) == 6
