from pathlib import Path

import numpy as np
import pytest
import torch

from evaluated import SCENES, context_of, in_processes, voc_folder
from grouping_zoo.data.sets.scenes import Scenes
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.boundary import BoundaryMetric
from grouping_zoo.evaluation.metrics.segmentation import SegmentationMetric
from grouping_zoo.evaluation.tasks.semantic_segmentation import (
    ZeroShotSegmentation,
    all_background,
    at_size,
    text_segmenter,
)


@torch.no_grad()
def test_zero_shot_labels_are_those_of_the_scenes_one_by_one(groupvit: EvaluatedModel) -> None:
    context = context_of(groupvit, metrics=("boundary",))
    segmenter, names = text_segmenter(context), SCENES.mask_names
    segmentation, boundary = SegmentationMetric(names), BoundaryMetric(names)
    for index in range(7):
        scene = Scenes("validation", 7, 32)[index]
        prediction = segmenter(groupvit.inputs.pixels(torch.from_numpy(scene.image).permute(2, 0, 1))[None])
        for metric in (segmentation, boundary):
            metric.update(prediction, torch.from_numpy(scene.mask)[None].long())
    expected = segmentation.compute()
    assert ZeroShotSegmentation().run(context) == pytest.approx(expected | boundary.compute(), abs=1e-4, nan_ok=True)
    unasked = ZeroShotSegmentation().run(context_of(groupvit))
    assert unasked == pytest.approx(expected, abs=1e-4, nan_ok=True), "boundaries cost minutes"


def test_processes_share_what_is_costly(groupvit: EvaluatedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grouping_zoo.evaluation.context.BATCH_SIZE", 2)
    scored: list[int] = []
    score = BoundaryMetric.score

    def count(self, prediction, truth):
        scored.append(1)
        return score(self, prediction, truth)

    def run(ranks: Ranks) -> dict[str, float]:
        found = ZeroShotSegmentation().run(context_of(groupvit, ranks=ranks, metrics=("boundary",)))
        return {name: value for name, value in found.items() if value == value}

    alone = run(Ranks())
    monkeypatch.setattr(BoundaryMetric, "score", count)
    assert in_processes(2, run) == [alone, alone]
    assert len(scored) == 7, "each image once"


def test_everything_background_has_its_share_of_the_pixels(groupvit: EvaluatedModel) -> None:
    scenes = Scenes("validation", 7, 32)
    share = 100 * np.mean([scenes[index].mask == 0 for index in range(7)])
    found = all_background(context_of(groupvit), "center")
    assert found["pixel_accuracy"] == pytest.approx(share)
    assert found["iou/background"] == pytest.approx(share, abs=1e-4)


def test_whole_images_are_evaluated_at_the_size_of_their_masks(groupvit: EvaluatedModel, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.choice([0, 0, 8, 255], size=size).astype(np.uint8) for size in ((40, 50), (64, 33), (70, 70))]
    context = context_of(groupvit, EvaluationSet(spec=f"voc:{voc_folder(tmp_path, masks)}"))
    known = np.concatenate([mask[mask != 255] for mask in masks])
    floor = all_background(context, "whole")
    assert floor["pixel_accuracy"] == pytest.approx(100 * (known == 0).mean())
    found = ZeroShotSegmentation().run(context)
    assert found["pixel_accuracy"] < 100
    assert {name for name in found if name.startswith("iou/")} == {name for name in floor if name.startswith("iou/")}
    assert context.plots["zero-shot-seg_examples"]().width > 300


def test_labels_at_another_size_are_the_nearest() -> None:
    labels = torch.tensor([[[1, 2], [3, 4]]])
    assert at_size(labels, (2, 2)) is labels
    assert at_size(labels, (2, 4)).tolist() == [[[1, 1, 2, 2], [3, 3, 4, 4]]]
