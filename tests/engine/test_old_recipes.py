"""Recipes that version 0.1.0 saved open with the same validation."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from grouping_zoo.engine.old_recipes import with_current_keys
from grouping_zoo.engine.recipe import load_recipe, recipe_path, recipe_settings

KNN = dict(train_images=1000, test_images=500, split="validation", neighbours=20, temperature=0.07)
ZERO_SHOT = dict(class_names=None, templates=["{}"], background_threshold=0.05, top_classes=8, masks="soft")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cast_nano_scenes", KNN, dict(tasks=["knn"], images=500, train_images=1000)),
        ("cast_nano_scenes", KNN | dict(test_images=0, train_images=0), dict(tasks=[])),
        ("vt_resnet_nano_scenes", dict(images=500, split=None), dict(tasks=["top1"], images=500)),
        ("vt_fpn_nano_scenes", dict(images=7, split="val"), dict(tasks=["segmentation"], images=7, split="val")),
        ("vt_fpn_nano_scenes", dict(images=0), dict(tasks=[])),
        (
            "groupvit_nano_scenes_quick",
            dict(images=9, **ZERO_SHOT),
            dict(tasks=["zero-shot-cls", "zero-shot-seg", "hierarchy"], images=9),
        ),
    ],
)
def test_old_sections_open(name: str, old: dict[str, Any], new: dict[str, Any], tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe_path(name).read_text())
    settings["evaluation"] = old
    settings.pop("zero_shot", None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    opened = recipe_settings(load_recipe(tmp_path / "recipe.yaml"))
    usual = dict(tasks=[], metrics=[], data=None, split="validation", train_split="train", images=None)
    assert opened["evaluation"] == usual | dict(train_images=None) | new
    if "masks" in old:
        assert opened["zero_shot"].items() >= ZERO_SHOT.items()


def test_the_split_and_the_scenes_are_kept() -> None:
    old = dict(task="dino", data=dict(split="mine"), evaluation=dict(train_images=3, test_images=2))
    assert with_current_keys(old)["evaluation"]["train_split"] == "mine"
    for objects, data in (("shapes", "scenes"), ("digits", "digits")):
        old = dict(task="image_text", data=dict(source="folder", objects=objects), evaluation=dict(images=3))
        assert with_current_keys(old)["evaluation"]["data"] == data


def test_current_sections_and_mistakes_are_left_as_they_are() -> None:
    current = dict(task="dino", evaluation=dict(tasks=["linear"], images=3))
    assert with_current_keys(current) == current
    assert with_current_keys(dict(task="dino")) == dict(task="dino")
    based = dict(base="cast_nano_scenes", evaluation=dict(images=3))
    assert with_current_keys(based) == based
    assert with_current_keys(dict(task="dino", evaluation=dict(imagess=3)))["evaluation"] == dict(imagess=3)
