from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from evaluated import ClassInCorner, context_of, grey_folder, model_of
from grouping_zoo.data.sets.scenes import Scenes
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.knn import knn_scores
from grouping_zoo.evaluation.metrics.classification import top_k_accuracy
from grouping_zoo.evaluation.tasks.classification import (
    NearestNeighbours,
    TopAccuracy,
    ZeroShotClassification,
    matched_classes,
    present_classes,
    text_features,
)
from grouping_zoo.inference.zero_shot import classify


def test_knn_equals_direct_computation(cast: EvaluatedModel) -> None:
    def inputs(split: str, count: int, objects: int) -> tuple[list[Any], dict[str, Tensor]]:
        scenes = [Scenes(split, count, 64, 0, max_objects=objects)[index] for index in range(count)]  # type: ignore[arg-type]
        views = [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]
        make = cast.inputs.input_makers["superpixels"]
        tensors = [dict(x=cast.inputs.pixels(v), superpixels=make(v)) for v in views]
        return scenes, default_collate(tensors)

    @torch.no_grad()
    def features(split: str, count: int) -> tuple[Tensor, Tensor]:
        scenes, batch = inputs(split, count, 1)
        found = cast.network.forward_head(cast.network.forward_features(**batch), pre_logits=True)
        return found, torch.tensor([scene.classes[0] for scene in scenes])

    context = context_of(cast)
    train, (test, labels) = features("train", 20), features("validation", 7)
    expected = top_k_accuracy(knn_scores(*train, test, num_classes=8), labels)
    assert NearestNeighbours().run(context)["accuracy"] == pytest.approx(expected)


@torch.no_grad()
def test_zero_shot_classes_are_those_of_the_scenes_one_by_one(groupvit: EvaluatedModel) -> None:
    context = context_of(groupvit)
    text, scenes = text_features(context), Scenes("validation", 7, 32)
    assert groupvit.towers is not None
    hits = 0
    for index in range(7):
        pixels = groupvit.inputs.pixels(torch.from_numpy(scenes[index].image).permute(2, 0, 1))
        hits += int(classify(groupvit.towers, pixels[None], text).argmax()) in scenes[index].classes
    assert ZeroShotClassification().run(context) == {"classification": pytest.approx(100 * hits / 7)}


def test_present_classes_by_mask_and_by_label() -> None:
    masks = torch.tensor([[[0, 2], [255, 3]], [[0, 0], [0, 0]]])
    by_mask = present_classes({"mask": masks}, 3, background=0, ignore_index=255)
    assert by_mask.tolist() == [[False, True, True], [False, False, False]]
    middle = present_classes({"mask": masks}, 3, background=2, ignore_index=255)
    assert middle.tolist() == [[True, False, True], [True, False, False]]
    assert present_classes({"label": torch.tensor([1])}, 2, None, None).tolist() == [[False, True]]


def test_a_head_is_matched_to_the_data_by_name(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    data = EvaluationSet(spec=f"folder:{grey_folder(tmp_path, names)}")
    for order in (names, ("dog", "cat", "Bee", "ant")):
        shown = tuple(sorted((name for name in order if name.casefold() in names), key=str.casefold))
        assert TopAccuracy().run(context_of(model_of(ClassInCorner(order, shown)), data)) == {"top1": 100.0}
    assert TopAccuracy().run(context_of(model_of(ClassInCorner(names, names[::-1])), data))["top1"] < 50


def test_classes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected classes that made knows \(ant, bee\), got also box, star"):
        matched_classes(model_of(ClassInCorner(("ant", "bee"), ("ant",))), ["ant", "box", "star"])
    unnamed: Any = SimpleNamespace(name="made", class_names=None, num_outputs=2)
    assert matched_classes(unnamed, ["ant", "bee"]) == [0, 1]
    with pytest.raises(ValueError, match="expected the 2 classes of made, which does not name them, got 3"):
        matched_classes(unnamed, ["ant", "bee", "cat"])
