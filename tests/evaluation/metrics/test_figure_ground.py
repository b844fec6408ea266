import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from grouping_zoo.evaluation.metrics.figure_ground import (
    FigureGroundMetric,
    foreground_masks,
    jaccard,
    most_attended,
)

VOID = 255


@pytest.mark.parametrize("mass", [0.1, 0.6, 1.0])
def test_most_attended_tokens_are_those_of_a_greedy_loop(mass: float) -> None:
    attention = torch.rand(3, 2, 9, generator=torch.Generator().manual_seed(0))
    kept = most_attended(attention, mass)
    for row, mask in zip(attention.flatten(0, 1), kept.flatten(0, 1), strict=True):
        chosen, sum_ = set(), 0.0
        for token in sorted(range(9), key=lambda i: -float(row[i])):
            if sum_ >= mass * float(row.double().sum()) - 1e-6:
                break
            chosen.add(token)
            sum_ += float(row[token])
        assert set(mask.nonzero().flatten().tolist()) == chosen


def test_most_attended_of_a_single_even_and_no_attention() -> None:
    assert most_attended(torch.tensor([0.0, 1.0, 0.0])).tolist() == [False, True, False]
    assert most_attended(torch.full((10,), 0.1)).sum() == 6  # exactly 60 % is enough
    assert most_attended(torch.zeros(4)).sum() == 1
    with pytest.raises(ValueError, match="mass: expected a fraction"):
        most_attended(torch.ones(3), 60)


def test_jaccard_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, 4, 6, 5, generator=generator) > 0.5
    expected = [100 * jaccard_score(a.flatten(), b.flatten()) for a, b in zip(*masks, strict=True)]
    assert jaccard(masks[0], masks[1]).tolist() == pytest.approx(expected)
    empty = torch.zeros(1, 6, 5, dtype=torch.bool)
    assert float(jaccard(empty, empty)) == 100
    assert float(jaccard(empty, ~empty)) == 0


def test_the_best_head_of_each_image_counts() -> None:
    generator = torch.Generator().manual_seed(2)
    attention, token_map = torch.rand(4, 3, 8, generator=generator), torch.randint(8, (4, 6, 5), generator=generator)
    truth = torch.randint(3, (4, 6, 5), generator=generator)
    truth[1] = 0  # without object
    truth[2, :3] = VOID
    metric, masks = FigureGroundMetric(VOID, 0), foreground_masks(attention, token_map)
    metric.update(masks[:3], truth[:3])
    metric.update(masks[3:], truth[3:])
    table = []
    for image in (0, 2, 3):
        kept = most_attended(attention[image])
        counted = truth[image] != VOID
        objects = ((truth[image] != 0) & counted)[counted].numpy()
        table.append([100 * jaccard_score(objects, head[token_map[image]][counted].numpy()) for head in kept])
    best, one_head = np.max(table, axis=1).mean(), np.mean(table, axis=0).max()
    assert metric.compute() == pytest.approx({"jaccard": best, "jaccard_one_head": one_head})


def test_attention_on_the_object_gives_100_and_beside_it_0() -> None:
    token_map = torch.arange(4).view(1, 2, 2).repeat_interleave(3, 1).repeat_interleave(3, 2)
    truth = (token_map == 2).long() * 5
    for weights, expected in (([0.1, 0.1, 0.7, 0.1], 100), ([0.7, 0.1, 0.1, 0.1], 0)):
        metric, masks = FigureGroundMetric(background=0), foreground_masks(torch.tensor(weights)[None, None], token_map)
        metric.update(masks, truth)
        assert metric.compute()["jaccard"] == expected
        assert masks.sum() == 9
    with pytest.raises(ValueError, match="an image with an object"):
        FigureGroundMetric(background=0).compute()
    with pytest.raises(ValueError, match="masks of the truth's shape"):
        metric.update(masks[..., :2, :], truth)
