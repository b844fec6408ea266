import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import variation_of_information as skimage_variation_of_information
from torch import Tensor
from torchmetrics.functional.clustering import adjusted_rand_score

from grouping_zoo.evaluation.grouping_metrics import (
    adjusted_rand_index,
    assignment_entropies,
    best_overlaps,
    contingency,
    mean_assignment_entropies,
    region_covering,
    segmentation_covering,
    variation_of_information,
)
from grouping_zoo.evaluation.hierarchy import evaluate_hierarchy, hierarchy_labels
from grouping_zoo.grouping import Grouping

VOID = 255


def random_map(seed: int, labels: int, shape: tuple[int, int] = (9, 7)) -> np.ndarray:
    """Scattered labels with gaps, in blocks of two columns so that regions have some extent."""
    names = np.array([3, 11, 4, 0, 8, 250, 7, 5])
    columns = np.random.default_rng(seed).integers(labels, size=(shape[0], shape[1] // 2 + 1))
    return names[columns.repeat(2, axis=1)[:, : shape[1]]]


def with_void(truth: np.ndarray) -> np.ndarray:
    truth = truth.copy()
    truth[2, 1:5] = truth[0, 0] = truth[8, 6] = VOID
    return truth


def pixel_sets(labels: np.ndarray, counted: np.ndarray) -> dict[int, set[tuple[int, int]]]:
    sets: dict[int, set[tuple[int, int]]] = {}
    for place, label in np.ndenumerate(labels):
        if counted[place]:
            sets.setdefault(int(label), set()).add(place)
    return sets


CASES = [
    pytest.param(random_map(0, 4), random_map(1, 5), id="random"),
    pytest.param(random_map(2, 6), with_void(random_map(3, 3)), id="void"),
    pytest.param(np.zeros((9, 7), dtype=np.int64), with_void(random_map(4, 3)), id="one segment"),
    pytest.param(np.arange(63).reshape(9, 7), with_void(random_map(5, 3)), id="segments of one pixel"),
    pytest.param(random_map(6, 3), np.arange(63).reshape(9, 7), id="regions of one pixel"),
]


# --- covering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_covering_is_that_of_its_definition(prediction: np.ndarray, truth: np.ndarray) -> None:
    segments, regions = pixel_sets(prediction, truth != VOID), pixel_sets(truth, truth != VOID)

    def cover(these: dict[int, set], others: dict[int, set]) -> float:
        pixels = sum(map(len, these.values()))
        return sum(len(a) * max(len(a & b) / len(a | b) for b in others.values()) for a in these.values()) / pixels

    covering = segmentation_covering(prediction, torch.from_numpy(truth), VOID)
    assert covering.of_truth == pytest.approx(100 * cover(regions, segments))
    assert covering.of_prediction == pytest.approx(100 * cover(segments, regions))


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_region_covering_is_that_of_its_definition(prediction: np.ndarray, truth: np.ndarray) -> None:
    levels = [prediction, prediction // 4, np.zeros_like(prediction)]
    background = int(truth[truth != VOID].min())
    segments = [s for level in levels for s in pixel_sets(level, truth != VOID).values()]
    regions = [r for label, r in pixel_sets(truth, truth != VOID).items() if label != background]

    def f1(segment: set, region: set) -> float:
        precision, recall = len(segment & region) / len(segment), len(segment & region) / len(region)
        return 2 * precision * recall / (precision + recall) if segment & region else 0.0

    area = sum(map(len, regions))
    best_iou = [max(len(s & r) / len(s | r) for s in segments) for r in regions]
    best_f1 = [max(f1(s, r) for s in segments) for r in regions]
    figures = region_covering(levels, truth, ignore_index=VOID, background=background)
    assert figures == {
        "covering": pytest.approx(100 * sum(len(r) * v for r, v in zip(regions, best_iou, strict=True)) / area),
        "covering_f1": pytest.approx(100 * sum(len(r) * v for r, v in zip(regions, best_f1, strict=True)) / area),
        "region_f1": pytest.approx(100 * sum(best_f1) / len(best_f1)),
    }


def test_the_same_partition_is_perfect_under_any_names() -> None:
    truth = with_void(random_map(7, 5))
    renamed = np.vectorize({label: 7 * i - 20 for i, label in enumerate(np.unique(truth))}.get)(truth)
    renamed[truth == VOID] = -20  # whatever is predicted there
    assert segmentation_covering(renamed, truth, VOID) == (100, 100)
    assert adjusted_rand_index(renamed, truth, VOID) == 100
    assert variation_of_information(renamed, truth, VOID) == (0, 0)
    levels = [np.arange(63).reshape(9, 7), renamed, np.zeros_like(renamed)]
    assert set(region_covering(levels, truth, ignore_index=VOID).values()) == {100}


def test_scores_of_useless_segments_are_those_of_chance() -> None:
    truth = np.arange(64).reshape(8, 8) // 32
    assert adjusted_rand_index(np.zeros_like(truth), truth) == 0
    assert adjusted_rand_index(np.arange(64).reshape(8, 8), truth) == 0
    assert variation_of_information(np.zeros_like(truth), truth) == (0, 1)
    assert variation_of_information(np.arange(64).reshape(8, 8), truth) == (5, 0)
    assert segmentation_covering(np.zeros_like(truth), truth) == (50, 50)
    assert segmentation_covering(np.arange(64).reshape(8, 8), truth).of_truth == pytest.approx(100 / 32)


def test_a_segment_that_spills_into_the_background_loses_by_it() -> None:
    truth = np.zeros((4, 4), dtype=np.int64)
    truth[:2, :2] = 1
    half = np.zeros_like(truth)
    half[:2] = 1
    figures = region_covering([half], truth, background=0)
    assert figures["covering"] == 50
    assert figures["region_f1"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_rand_index_is_that_of_counted_pairs_and_torchmetrics(prediction: np.ndarray, truth: np.ndarray) -> None:
    counted = truth != VOID
    pairs = list(combinations(zip(prediction[counted].tolist(), truth[counted].tolist(), strict=True), 2))
    both = sum(a[0] == b[0] and a[1] == b[1] for a, b in pairs)
    predicted, true = sum(a[0] == b[0] for a, b in pairs), sum(a[1] == b[1] for a, b in pairs)
    chance = predicted * true / len(pairs)
    expected = (both - chance) / ((predicted + true) / 2 - chance)
    score = adjusted_rand_index(prediction, truth, VOID)
    assert score == pytest.approx(100 * expected, abs=1e-9)
    reference = adjusted_rand_score(torch.from_numpy(prediction[counted]), torch.from_numpy(truth[counted]))
    assert score == pytest.approx(100 * float(reference), abs=1e-3)


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_variation_of_information_is_scikit_images(prediction: np.ndarray, truth: np.ndarray) -> None:
    counted = truth != VOID
    split, merged = skimage_variation_of_information(truth[counted], prediction[counted])
    found = variation_of_information(prediction, truth, VOID)
    assert found.split == pytest.approx(split, abs=1e-9)
    assert found.merged == pytest.approx(merged, abs=1e-9)


def test_contingency_counts_pixels() -> None:
    prediction, truth = random_map(8, 3), with_void(random_map(9, 4))
    counts, regions = contingency(prediction, truth, VOID)
    for row, segment in enumerate(np.unique(prediction)):
        for column, region in enumerate(regions):
            assert counts[row, column] == ((prediction == segment) & (truth == region)).sum()
    assert VOID not in regions


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((3, 3), int), np.zeros((3, 4), int), r"expected labels of the truth's shape \(3, 4\)"),
        (np.zeros((3, 3)), np.zeros((3, 3), int), "prediction: expected integer labels"),
        (np.zeros((3, 3), int), np.zeros((1, 3, 3), int), "truth: expected integer labels"),
        (np.zeros((3, 3), int), np.full((3, 3), VOID), "at least one labelled pixel"),
    ],
)
def test_unfitting_maps_are_errors(prediction: np.ndarray, truth: np.ndarray, message: str) -> None:
    for metric in (segmentation_covering, adjusted_rand_index, variation_of_information):
        with pytest.raises(ValueError, match=message):
            metric(prediction, truth, VOID)


def test_covering_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="levels: expected at least one"):
        best_overlaps([], np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="beside the background 0"):
        best_overlaps([np.zeros((2, 2), int)], np.zeros((2, 2), int), background=0)


# --- hierarchies over a set -----------------------------------------------------------------------------------------


def hierarchies(shape: tuple[int, ...]) -> Any:
    """A function from images to levels that depends on each image alone."""

    def predict(images: Tensor) -> list[Tensor]:
        fine = (images[:, 0] * 10).long()
        return [fine, fine // 3, fine // 7]

    return predict


def test_hierarchy_figures_are_means_over_images_with_regions() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 8, 6, generator=generator)
    masks = torch.randint(3, (5, 8, 6), generator=generator)
    masks[1] = 0  # nothing but background
    masks[2, :4] = VOID
    masks[3] = VOID
    predict = hierarchies((8, 6))
    figures = evaluate_hierarchy(predict, [(images, masks)], ignore_index=VOID, background=0)
    counted = [0, 2, 4]
    levels = predict(images)
    for name in ("covering", "covering_f1", "region_f1"):
        alone = [
            [region_covering([v[i]], masks[i], ignore_index=VOID, background=0)[name] for i in counted] for v in levels
        ]
        for number, values in enumerate(alone):
            assert figures[f"{name}/{number}"] == pytest.approx(np.mean(values))
        together = [region_covering([v[i] for v in levels], masks[i], ignore_index=VOID, background=0) for i in counted]
        assert figures[name] == pytest.approx(np.mean([t[name] for t in together]))
        assert figures[name] >= max(figures[f"{name}/{number}"] for number in range(3))
    assert figures["images"] == 3
    assert figures["segments/0"] == np.mean([len(levels[0][i].unique()) for i in counted])


def test_batches_and_sizes_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    images, masks = torch.rand(5, 3, 8, 6, generator=generator), torch.randint(3, (5, 8, 6), generator=generator)
    predict = hierarchies((8, 6))
    whole = evaluate_hierarchy(predict, [(images, masks)])
    parts = evaluate_hierarchy(predict, zip(images.split(2), masks.split(2), strict=True))
    assert parts == {name: pytest.approx(value) for name, value in whole.items()}
    other = (torch.rand(1, 3, 5, 9, generator=generator), torch.randint(3, (1, 5, 9), generator=generator))
    assert evaluate_hierarchy(predict, [(images, masks), other])["images"] == 6


def test_true_regions_as_a_level_give_100() -> None:
    masks = torch.randint(4, (3, 8, 6), generator=torch.Generator().manual_seed(2))
    figures = evaluate_hierarchy(lambda x: [torch.zeros_like(masks), masks], [(torch.zeros(3, 3, 8, 6), masks)])
    assert figures["covering"] == figures["covering_f1"] == figures["region_f1"] == figures["covering/1"] == 100
    assert figures["covering/0"] < 50


def test_levels_of_a_grouping_are_its_labels() -> None:
    assignments = [torch.rand(2, 1, 12, 5).softmax(-1), torch.rand(2, 1, 5, 2).softmax(-1)]
    grouping = Grouping(assignments=assignments, tokens=[torch.zeros(2, 5, 4), torch.zeros(2, 2, 4)], grid=(3, 4))
    levels = hierarchy_labels(grouping, (6, 8))
    assert [len(level.unique()) <= n for level, n in zip(levels, (12, 5, 2), strict=True)] == [True] * 3
    assert torch.equal(levels[-1], grouping.labels(-1, (6, 8)))


def test_bad_hierarchies_are_errors() -> None:
    images, masks = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="is the split empty"):
        evaluate_hierarchy(lambda x: [masks], [])
    with pytest.raises(ValueError, match=r"masks' shape \(1, 4, 4\)"):
        evaluate_hierarchy(lambda x: [masks[:, :2]], [(images, masks)])
    depths = iter([2, 3])
    with pytest.raises(ValueError, match="expected 2 levels as for the images before, got 3"):
        evaluate_hierarchy(lambda x: [masks] * next(depths), [(images, masks)] * 2)


# --- entropies ------------------------------------------------------------------------------------------------------


def test_entropies_are_those_of_a_plain_loop() -> None:
    assignment = (3 * torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(3))).softmax(-1)
    marginal, conditional = assignment_entropies(assignment)
    for image in range(2):
        for head in range(3):
            rows = assignment[image, head].tolist()
            mean = [sum(row[group] for row in rows) / 7 for group in range(4)]
            assert float(marginal[image, head]) == pytest.approx(-sum(p * math.log(p) for p in mean), abs=1e-5)
            entropies = [-sum(p * math.log(p) for p in row) for row in rows]
            assert float(conditional[image, head]) == pytest.approx(sum(entropies) / 7, abs=1e-5)
    assert (conditional <= marginal).all()


def test_entropies_of_collapsed_even_and_undecided_groupings() -> None:
    collapsed = torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 8, 4)
    assert [float(e) for e in assignment_entropies(collapsed)] == [0, 0]
    even = torch.eye(4).repeat(2, 1)[None, None]
    assert [float(e) for e in assignment_entropies(even)] == [pytest.approx(math.log(4)), 0]
    undecided = torch.full((1, 1, 8, 4), 0.25)
    assert [float(e) for e in assignment_entropies(undecided)] == [pytest.approx(math.log(4))] * 2


def test_mean_entropies_weigh_images_alike() -> None:
    def grouping(images: int, seed: int) -> Grouping:
        generator = torch.Generator().manual_seed(seed)
        sizes = [(12, 5), (5, 2)]
        assignments = [torch.randn(images, 2, n, m, generator=generator).softmax(-1) for n, m in sizes]
        return Grouping(assignments=assignments, tokens=[torch.zeros(images, m, 4) for _, m in sizes], grid=(3, 4))

    groupings = [grouping(3, 0), grouping(1, 1)]
    figures = mean_assignment_entropies(groupings)
    for level in (1, 2):
        entropies = [assignment_entropies(g.assignments[level - 1]) for g in groupings]
        for name, index in (("marginal", 0), ("conditional", 1)):
            expected = float(torch.cat([e[index] for e in entropies]).mean())
            assert figures[f"{name}_entropy/{level}"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="is the split empty"):
        mean_assignment_entropies([])
