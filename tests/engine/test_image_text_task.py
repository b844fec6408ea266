"""The image-text task from recipe to checkpoint, and the checkpoint and recipes that come with the package."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from grouping_zoo.data.sets.scenes import Scenes
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from processes import train_in_two_processes
from short_runs import short
from toy_task import log_lines

RECIPES = [
    "cast_nano_scenes_text",
    "groupvit_nano_scenes",
    "groupvit_nano_scenes_quick",
    "groupvit_small_coco_finetuned",
    "groupvit_small_gcc_yfcc",
    "pgt_nano_scenes_text",
]
Trained = Callable[[str], Path]
# No noise and no batch norm, which differ between processes by design.
PLAIN_ARCHITECTURE = [
    "model.architecture=groupvit_small_patch16_224",
    "model.model_args="
    + json.dumps(
        dict(img_size=64, patch_size=16, embed_dim=16, num_heads=2, depths=[1, 0], assignment="hard")
        | dict(num_group_tokens=[4, 0], num_output_groups=[4, 0])
    ),
    "model.projection_batch_norm=false",
]


def test_a_checkpoint_knows_classes_and_tokenizer(trained: Trained) -> None:
    folder = trained("image_text") / "checkpoint"
    assert AutoModel.from_pretrained(folder).config.class_names == list(Scenes().class_names)
    assert AutoProcessor.from_pretrained(folder).tokenizer.model_max_length == 28


def test_all_losses_are_logged_and_validation_is_named(trained: Trained, tmp_path: Path) -> None:
    lines = log_lines(trained("image_text"))
    assert {"loss", "caption_loss", "multi_label_loss", "segment_loss", "token_loss"} <= lines[0].keys()
    named = ("zero-shot-seg/miou", "zero-shot-cls/classification", "hierarchy/rand_index")
    assert {f"validation/{name}" for name in named} <= lines[-1].keys()
    parts, weights = lines[0], short("image_text", tmp_path).objective
    expected = sum(
        getattr(weights, f"{name}_weight") * parts[f"{name}_loss"]
        for name in ("caption", "multi_label", "segment", "token")
    )
    assert parts["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_part_of_another_runs_model_can_be_tuned(trained: Trained, tmp_path: Path) -> None:
    checkpoint = trained("image_text") / "checkpoint"
    recipe = short(
        "image_text",
        tmp_path,
        f"run.init_from={checkpoint}",
        f"model.tokenizer={checkpoint}",
        "model.tune=[grouping_blocks]",
        "optimizer.weight_decay=0",
        "run.steps=2",
    )
    train(recipe, progress_bar=False)
    before = open_checkpoint(checkpoint)[0].model.state_dict()
    after = open_checkpoint(tmp_path / "checkpoint")[0].model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    statistics = re.compile(r".*(running_mean|running_var|num_batches_tracked)$")
    assert changed
    assert all(key.startswith("vision.stages.0.grouping.") or statistics.match(key) for key in changed)


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    one, two = (short("image_text", tmp_path / name, *PLAIN_ARCHITECTURE, "run.steps=2") for name in ("one", "two"))
    train_in_two_processes(two)
    train(one, progress_bar=False)
    one_log, two_log = (log_lines(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "caption_loss", "segment_loss", "token_loss", "grad_norm"):
        assert [line[name] for line in two_log] == pytest.approx([line[name] for line in one_log], rel=2e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.token_weight=1"], "objective.token_weight: expected 0 with PGT as vision tower"),
        (["model.adapt_stages=true"], "model.adapt_stages: expected false with pgt_nano, got true"),
        (["model.tune=[grouping_blocks]"], "model.tune: expected parts of PGT, got grouping_blocks"),
    ],
)
def test_settings_that_groupvit_alone_has_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short("pgt_text", tmp_path, *overrides).build()


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.run.output_dir == f"runs/{name}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=folder"], "data: expected one of scenes, .*folder:DIR.*got 'folder'"),
        (["data.nouns=vocabulary"], "data.vocabulary: give nouns with data.nouns=vocabulary"),
        (["model.tune=[]"], "model.tune: expected at least one of all, grouping_blocks"),
        (["objectiv.token_weight=1"], "objectiv.* is no setting; did you mean objective"),
        (["objective.positives=same"], "positives"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short("image_text", tmp_path, *overrides)
