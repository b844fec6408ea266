"""The image-text task from recipe to checkpoint, and the checkpoint and recipes that come with the package."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel, AutoProcessor

from grouping_zoo.data.scenes import Scenes
from grouping_zoo.engine.image_text import ImageTextRecipe
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.training_state import latest_state, read_tree
from grouping_zoo.evaluation.scenes import all_background_on_scenes, evaluate_checkpoint_on_scenes
from grouping_zoo.hf.checkpoint_folder import open_checkpoint, packaged_checkpoints
from toy_task import log_lines

RECIPES = [
    "groupvit_nano_scenes",
    "groupvit_nano_scenes_quick",
    "groupvit_small_coco_finetuned",
    "groupvit_small_gcc_yfcc",
]
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


def short(output_dir: Path, *overrides: str):
    settings = [
        "run.steps=4",
        "run.batch_size=8",
        "run.num_workers=0",
        "run.log_every=1",
        "schedule.warmup_steps=1",
        "evaluation.images=4",
        "data.length=40",
        f"run.output_dir={output_dir}",
        *overrides,
    ]
    return load_recipe("groupvit_nano_scenes_quick", settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(short(folder), progress_bar=False)
    return folder


def test_a_run_ends_with_a_checkpoint_that_both_doors_open_with_the_same_features(trained: Path) -> None:
    folder = trained / "checkpoint"
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = AutoModel.from_pretrained(folder).eval()
    vision = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        output = model(pixel_values=images)
        assert torch.equal(output.vision_model_output.pooler_output, vision(images))
    assert model.config.class_names == list(Scenes().class_names)
    assert AutoProcessor.from_pretrained(folder).tokenizer.model_max_length == 28
    weights = read_tree(latest_state(trained) / "shared")["objective"]
    torch.testing.assert_close(
        model.model.state_dict(), {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    )


def test_all_losses_are_logged_and_validation_is_named(trained: Path) -> None:
    lines = log_lines(trained)
    assert {"loss", "caption_loss", "multi_label_loss", "segment_loss", "token_loss"} <= lines[0].keys()
    assert {"validation/miou", "validation/classification", "validation/rand_index"} <= lines[-1].keys()
    parts, weights = lines[0], short(trained).objective
    expected = sum(
        getattr(weights, f"{name}_weight") * parts[f"{name}_loss"]
        for name in ("caption", "multi_label", "segment", "token")
    )
    assert parts["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_run_can_start_from_another_ones_weights_and_tune_a_part(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoint"
    recipe = short(
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


def test_gumbel_noise_and_averages_go_on_after_an_interruption(tmp_path: Path) -> None:
    noisy = ['model.model_args={"assignment": "gumbel"}', "run.ema_decay=0.5", "run.save_every=2"]
    train(short(tmp_path / "whole", *noisy), progress_bar=False)
    recipe = short(tmp_path / "parts", *noisy)
    build, calls = recipe.build, iter(range(3))

    def interrupt(objective, inputs):
        if next(calls, None) is None:
            raise RuntimeError("interrupted")

    def build_interrupted():
        task = build()
        task.objective.register_forward_pre_hook(interrupt)
        return task

    recipe.build = build_interrupted
    with pytest.raises(RuntimeError, match="interrupted"):
        train(recipe, progress_bar=False)
    assert latest_state(tmp_path / "parts").name == "step-00000002"
    train(short(tmp_path / "parts", *noisy), progress_bar=False)
    whole, parts = (open_checkpoint(tmp_path / name / "checkpoint")[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def _train_in_process(rank: int, recipe: ImageTextRecipe, port: int) -> None:
    variables = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ |= {name: str(value) for name, value in variables.items()}
    AcceleratorState._reset_state(reset_partial_state=True)  # what the parent's runs left
    train(recipe, progress_bar=False)


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    one, two = (short(tmp_path / name, *PLAIN_ARCHITECTURE, "run.steps=2") for name in ("one", "two"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked before this process has a process group of its own, and without the seconds that imports take.
    torch.multiprocessing.start_processes(_train_in_process, (two, port), nprocs=2, start_method="fork")
    train(one, progress_bar=False)
    one_log, two_log = (log_lines(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "caption_loss", "segment_loss", "token_loss", "grad_norm"):
        assert [line[name] for line in two_log] == pytest.approx([line[name] for line in one_log], rel=2e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.run.output_dir == f"runs/{name}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=folder"], "data.path: expected a path or name with data.source=folder, got None"),
        (["data.nouns=vocabulary"], "data.vocabulary: give nouns with data.nouns=vocabulary"),
        (["model.tune=[]"], "model.tune: expected at least one of all, grouping_blocks"),
        (["objectiv.token_weight=1"], "objectiv.* is no setting; did you mean objective"),
        (["objective.positives=same"], "positives"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short(tmp_path, *overrides)


def test_the_packaged_checkpoint_keeps_its_figures() -> None:
    folder = packaged_checkpoints()["groupvit_nano_scenes"]
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    assert size < 8e6
    figures = evaluate_checkpoint_on_scenes(*open_checkpoint(folder), images=150)["figures"]
    background = all_background_on_scenes(150, 0, "shapes", (64, 64))
    assert figures["classification"] > 75
    assert figures["miou"] > 3 * background["miou"]
