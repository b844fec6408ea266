import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from evaluated import ClassInCorner, context_of, model_of
from grouping_zoo.data.sets.scenes import Scenes
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.figure_ground import FigureGroundMetric, foreground_masks
from grouping_zoo.evaluation.metrics.grouping import AdjustedRandIndex, HierarchyMetric
from grouping_zoo.evaluation.metrics.superpixels import SuperpixelMetric
from grouping_zoo.evaluation.tasks.grouping import FigureGround, Hierarchy, SuperpixelQuality
from grouping_zoo.grouping import Grouping
from grouping_zoo.models.family import GroupingNetwork


@torch.no_grad()
def test_groups_superpixels_and_attention_are_those_of_the_network(cast: EvaluatedModel) -> None:
    scenes = [Scenes("validation", 7, 64)[index] for index in range(7)]
    views = [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]
    make = cast.inputs.input_makers["superpixels"]
    batch = default_collate([dict(x=cast.inputs.pixels(v), superpixels=make(v)) for v in views])
    instances, mask = (
        torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes])).long() for name in ("instances", "mask")
    )
    grouping = cast.network.forward_grouping(**batch)
    levels = [grouping.labels(level, (64, 64)) for level in range(grouping.num_levels)]
    coarsest = grouping.probabilities(-1, (64, 64)).argmax(dim=1)
    context = context_of(cast)
    found = Hierarchy().run(context)
    for metric, prediction in ((HierarchyMetric(background=0), levels), (AdjustedRandIndex(), coarsest)):
        metric.update(prediction, instances)
        expected = metric.compute()
        assert {name: found[name] for name in expected} == pytest.approx(expected)
    superpixels = SuperpixelMetric()
    superpixels.update(batch["superpixels"], instances)
    assert SuperpixelQuality().run(context) == pytest.approx(superpixels.compute())
    attention = cast.network.class_attention(batch["x"], 3, superpixels=batch["superpixels"])
    figure = FigureGroundMetric(background=0)
    figure.update(foreground_masks(attention.weights, attention.grouping.labels(attention.level, (64, 64))), mask)
    assert FigureGround().run(context) == pytest.approx(figure.compute())


def test_heads_that_group_apart_count_one_by_one() -> None:
    class TwoHeads(GroupingNetwork):
        num_classes = 0
        grouping_heads = property(lambda self: len(self.heads))
        pretrained_cfg = ClassInCorner.pretrained_cfg

        def __init__(self, heads: list[int]) -> None:
            super().__init__()
            self.heads = heads

        def forward_grouping(self, x: Tensor) -> Grouping:
            halves = torch.stack([torch.arange(4) % 2, torch.arange(4) // 2])[self.heads]  # left and right, up and down
            assignment = nn.functional.one_hot(halves, 2).float().expand(len(x), -1, -1, -1)
            return Grouping(assignments=[assignment], tokens=[torch.zeros(len(x), 2, 1)], grid=(2, 2))

    def found(*heads: int) -> dict[str, float]:
        return Hierarchy().run(context_of(model_of(TwoHeads(list(heads)))))

    one, other, both = found(0), found(1), found(0, 1)
    assert one["covering"] != other["covering"]
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in one})
