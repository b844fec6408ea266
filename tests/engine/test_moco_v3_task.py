"""The task "moco_v3" from recipe to checkpoint, and what other tasks on images share with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from grouping_zoo.engine.loop import train
from grouping_zoo.engine.moco_v3 import MoCoV3Recipe
from grouping_zoo.engine.optimization import build_scheduler
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.training_state import latest_state, read_tree
from short_runs import TINY_CAST, short
from toy_task import log_lines

RECIPES = ["cast_nano_scenes", "cast_small_coco", "cast_small_in100", "cast_small_in1k"]
Trained = Callable[[str], Path]


def test_the_training_state_holds_the_momentum_encoder(trained: Trained) -> None:
    weights = read_tree(latest_state(trained("moco_v3")) / "shared")["objective"]
    for slow, own in (("momentum_model.", "model."), ("momentum_projector.", "projector.")):
        keys = [key for key in weights if key.startswith(slow)]
        assert {key.removeprefix(slow) for key in keys} == {k.removeprefix(own) for k in weights if k.startswith(own)}
        assert any(not torch.equal(weights[key], weights[own + key.removeprefix(slow)]) for key in keys)


def test_losses_and_the_accuracy_of_neighbours_are_logged(trained: Trained) -> None:
    folder = trained("moco_v3")
    first, *_, last = log_lines(folder)
    assert {"loss", "accuracy", "key_std", "grad_norm"} <= first.keys()
    assert 0 <= last["validation/knn/accuracy"] <= 100
    assert "data_wait" in json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    card = (folder / "checkpoint" / "README.md").read_text()
    assert "MoCo-v3" in card
    assert card.count(f"| knn accuracy | {last['validation/knn/accuracy']:.4g} |") == 1


def test_weights_of_another_size_are_refused(trained: Trained, tmp_path: Path) -> None:
    wider = short("moco_v3", tmp_path, f"model.model_args={json.dumps(TINY_CAST | {'embed_dim': 32})}").build()
    with pytest.raises(ValueError, match=r"run.init_from: expected a checkpoint of cast_nano .*another shape"):
        wider.load_weights(str(trained("moco_v3") / "checkpoint"))


def test_images_in_class_folders_train_and_evaluate_a_vision_transformer(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, color in enumerate(("red", "blue", "green")):
            for index in range(4):
                file = tmp_path / "images" / split / color / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30 + number), color).save(file)
    recipe = short(
        "moco_v3",
        tmp_path / "run",
        "model.architecture=test_vit",
        "model.model_args={}",
        "data.source=folder",
        f"data.path={tmp_path / 'images'}",
        "evaluation.split=val",
        "views.color_jitter_probability=0",
        "objective.freeze_patch_embed=true",
    )
    task = recipe.build()
    assert "superpixels" not in task.dataset[(0, 0)]
    assert task.network.patch_embed.img_size == (32, 32)
    assert train(recipe, progress_bar=False)["knn/accuracy/1 neighbours"] == 100
    network = timm.create_model(f"local-dir:{tmp_path / 'run' / 'checkpoint'}", pretrained=True)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    task.load_weights(str(tmp_path / "run" / "checkpoint"))
    torch.testing.assert_close(task.objective.momentum_model.state_dict(), network.state_dict())
    (tmp_path / "images" / "val" / "extra").mkdir()
    with pytest.raises(ValueError, match=r"train_split: expected the 4 classes of val, got 3 or others in train"):
        recipe.build()


def test_images_without_classes_cannot_be_evaluated(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / split / "a.png")
    recipe = short("moco_v3", tmp_path / "run", "data.source=folder", f"data.path={tmp_path}")
    with pytest.raises(ValueError, match=r"task: knn does not fit: the images of folder:.* have no label"):
        recipe.build()


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, MoCoV3Recipe)
    assert recipe.run.output_dir == f"runs/{name}"


@pytest.mark.parametrize(
    ("name", "images", "epochs"),
    [("cast_small_in1k", 1_281_167, 100), ("cast_small_in100", 126_689, 200), ("cast_small_coco", 118_287, 400)],
)
def test_published_recipes_are_the_published_ones(name: str, images: int, epochs: int) -> None:
    recipe = load_recipe(name)
    assert recipe.run.batch_size == 256
    assert recipe.run.steps == pytest.approx(epochs * images / 256, rel=1e-3)
    assert recipe.schedule.warmup_steps == pytest.approx(0.1 * recipe.run.steps, rel=1e-3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.learning_rate)
    scheduler = build_scheduler(optimizer, recipe.schedule, recipe.run.steps)
    scheduler.step_update(recipe.schedule.warmup_steps // 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 1.5e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=folder"], "data: expected one of scenes, .*folder:DIR.*got 'folder'"),
        (["evaluation.train_images=0"], "evaluation.train_images: expected null or at least 1, got 0"),
        (["views.crop_scale=[0.5,0.1]"], "crop_scale"),
        (["view.flip=0"], r"view.* is no setting; did you mean views"),
        (["objective.temperature=0"], "objective.temperature: expected more than 0"),
        (["objective.momentun=0.9"], "objective.momentun is no setting; did you mean objective.momentum"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short("moco_v3", tmp_path, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.architecture=cast_nanno"], "model.architecture: expected one of timm's models.*'cast_nano'"),
        (['model.model_args={"width": 3}'], "model.model_args: expected arguments of cast_nano.*width"),
        (["data.split=test"], "split: expected one of .*got 'test'"),
    ],
)
def test_settings_that_only_building_can_check_are_named_too(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        short("moco_v3", tmp_path, *overrides).build()
