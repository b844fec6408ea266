import numpy as np
import pytest
import torch
from torch import Tensor

from grouping_zoo.evaluation.metrics.grouping import (
    AdjustedRandIndex,
    AssignmentEntropy,
    HierarchyMetric,
    PartitionMetric,
)
from grouping_zoo.evaluation.metrics.regions import (
    adjusted_rand_index,
    assignment_entropies,
    segmentation_covering,
    variation_of_information,
)

VOID = 255


def blocks(seed: int, labels: int) -> np.ndarray:
    """Scattered labels (9, 7) in pairs of columns, so that regions have some extent."""
    columns = np.random.default_rng(seed).integers(labels, size=(9, 4))
    return columns.repeat(2, axis=1)[:, :7]


def pixel_sets(labels: np.ndarray, counted: np.ndarray) -> dict[int, set[tuple[int, int]]]:
    sets: dict[int, set[tuple[int, int]]] = {}
    for place, label in np.ndenumerate(labels):
        if counted[place]:
            sets.setdefault(int(label), set()).add(place)
    return sets


def random_batch(seed: int, images: int = 5) -> tuple[list[Tensor], Tensor]:
    """Levels (B, 8, 6), fine to coarse, and true regions."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randint(10, (images, 8, 6), generator=generator)
    return [fine, fine // 3, fine // 7], torch.randint(3, (images, 8, 6), generator=generator)


def computed(metric: HierarchyMetric, *batches: tuple[list[Tensor], Tensor]) -> dict[str, float]:
    for levels, truth in batches:
        metric.update(levels, truth)
    return metric.compute()


@pytest.mark.parametrize("seed", range(3))
def test_covering_by_a_hierarchy_is_that_of_its_definition(seed: int) -> None:
    prediction, truth = blocks(seed, 6), blocks(seed + 10, 4)
    truth[2, 1:5] = truth[0, 0] = VOID
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
    found = HierarchyMetric(VOID, background).score(levels, truth)
    expected = {
        "covering": 100 * sum(len(r) * v for r, v in zip(regions, best_iou, strict=True)) / area,
        "covering_f1": 100 * sum(len(r) * v for r, v in zip(regions, best_f1, strict=True)) / area,
        "region_f1": 100 * sum(best_f1) / len(best_f1),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_segment_that_spills_into_the_background_loses_by_it() -> None:
    truth = np.zeros((4, 4), dtype=np.int64)
    truth[:2, :2] = 1
    half = np.zeros_like(truth)
    half[:2] = 1
    found = HierarchyMetric(background=0).score([half], truth)
    assert found["covering"] == 50
    assert found["region_f1"] == pytest.approx(100 * 2 / 3)


def test_hierarchies_are_averaged_over_images_with_regions() -> None:
    levels, masks = random_batch(0)
    masks[1] = 0  # nothing but background
    masks[2, :4] = VOID
    masks[3] = VOID
    metric = HierarchyMetric(VOID, 0)
    found = computed(metric, (levels, masks))
    alone = [metric.score([level[image] for level in levels], masks[image]) for image in (0, 2, 4)]
    assert found == pytest.approx({name: np.mean([one[name] for one in alone]) for name in alone[0]})
    for name in ("covering", "covering_f1", "region_f1"):
        assert found[name] >= max(found[f"{name}/{number}"] for number in range(3))
    assert found["segments/0"] == np.mean([len(levels[0][image].unique()) for image in (0, 2, 4)])


def test_batches_and_sizes_do_not_matter() -> None:
    levels, masks = random_batch(1)
    parts = [([level[rows] for level in levels], masks[rows]) for rows in (slice(0, 2), slice(2, 5))]
    assert computed(HierarchyMetric(), *parts) == computed(HierarchyMetric(), (levels, masks))
    other = [torch.zeros(1, 5, 9, dtype=torch.int64)] * 3
    assert computed(HierarchyMetric(), (levels, masks), (other, other[0]))["covering"] > 0


def test_true_regions_as_a_level_give_100() -> None:
    masks = random_batch(2)[1]
    found = computed(HierarchyMetric(), ([torch.zeros_like(masks), masks], masks))
    assert found["covering"] == found["covering_f1"] == found["region_f1"] == found["covering/1"] == 100
    assert found["covering/0"] < 50


def test_what_has_no_region_or_another_shape_is_an_error() -> None:
    levels, masks = random_batch(3)
    with pytest.raises(ValueError, match="expected an image with a true region, got none; is the split empty"):
        HierarchyMetric().compute()
    with pytest.raises(ValueError, match="expected an image with a true region"):
        computed(HierarchyMetric(background=0), (levels, masks * 0))
    with pytest.raises(ValueError, match=r"labels of the truth's shape \(8, 6\), got \(4, 6\)"):
        computed(HierarchyMetric(), ([level[:, :4] for level in levels], masks))


def test_partitions_are_averaged_over_labelled_images() -> None:
    levels, masks = random_batch(4)
    masks[1], masks[2, :3] = VOID, VOID
    metric, rand = PartitionMetric(VOID), AdjustedRandIndex(VOID)
    for one in (metric, rand):
        one.update(levels[1], masks)
    pairs = [(levels[1][image], masks[image], VOID) for image in (0, 2, 3, 4)]
    found = metric.compute()
    assert found["segmentation_covering"] == pytest.approx(
        np.mean([segmentation_covering(*pair).of_truth for pair in pairs])
    )
    assert found["variation_of_information"] == pytest.approx(
        np.mean([sum(variation_of_information(*pair)) for pair in pairs])
    )
    assert found["rand_index"] == rand.compute()["rand_index"] == np.mean([adjusted_rand_index(*p) for p in pairs])
    with pytest.raises(ValueError, match="expected an image with a labelled pixel"):
        PartitionMetric(VOID).compute()


def test_entropies_weigh_images_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(images, 12, 5, generator=generator).softmax(-1) for images in (3, 1)]
    metric = AssignmentEntropy()
    for assignment in batches:
        metric.update(assignment, torch.zeros(len(assignment), 1, 1))
    marginal, conditional = assignment_entropies(torch.cat(batches)[:, None])
    assert metric.compute() == pytest.approx(
        {"marginal_entropy": float(marginal.mean()), "conditional_entropy": float(conditional.mean())}, abs=1e-6
    )
