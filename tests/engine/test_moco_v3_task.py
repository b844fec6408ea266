"""The task "moco_v3" from recipe to checkpoint, and what other tasks on images share with it."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModel

from grouping_zoo.engine.loop import train
from grouping_zoo.engine.moco_v3 import MoCoV3Recipe
from grouping_zoo.engine.optimization import build_scheduler
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.training_state import latest_state, read_tree
from toy_task import log_lines

RECIPES = ["cast_nano_scenes", "cast_small_coco", "cast_small_in100", "cast_small_in1k"]
TINY = dict(embed_dim=16, depths=[1, 1], num_heads=2, num_clusters=[6, 3], stem_strides=[2, 2], img_size=32)


def short(output_dir: Path, *overrides: str) -> MoCoV3Recipe:
    settings = [
        f"model.model_args={json.dumps(TINY)}",
        "data.image_size=32",
        "data.length=40",
        "objective.hidden_dim=16",
        "objective.out_dim=8",
        "evaluation.train_images=24",
        "evaluation.test_images=12",
        "schedule.warmup_steps=1",
        "run.steps=4",
        "run.batch_size=8",
        "run.num_workers=0",
        "run.log_every=1",
        "run.validate_every=null",
        f"run.output_dir={output_dir}",
        *overrides,
    ]
    recipe = load_recipe("cast_nano_scenes", settings)
    assert isinstance(recipe, MoCoV3Recipe)
    return recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(short(folder), progress_bar=False)
    return folder


def test_a_run_ends_with_a_checkpoint_that_both_doors_open_with_the_same_features(trained: Path) -> None:
    folder = trained / "checkpoint"
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images).pooler_output, network(images))
    assert network.pretrained_cfg["input_size"] == (3, 32, 32)
    weights = read_tree(latest_state(trained) / "shared")["objective"]
    trained_weights = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    torch.testing.assert_close(network.state_dict(), trained_weights)


def test_the_training_state_holds_the_momentum_encoder(trained: Path) -> None:
    weights = read_tree(latest_state(trained) / "shared")["objective"]
    for slow, own in (("momentum_model.", "model."), ("momentum_projector.", "projector.")):
        keys = [key for key in weights if key.startswith(slow)]
        assert {key.removeprefix(slow) for key in keys} == {k.removeprefix(own) for k in weights if k.startswith(own)}
        assert any(not torch.equal(weights[key], weights[own + key.removeprefix(slow)]) for key in keys)


def test_losses_and_the_accuracy_of_neighbours_are_logged(trained: Path) -> None:
    first, *_, last = log_lines(trained)
    assert {"loss", "accuracy", "key_deviation", "grad_norm"} <= first.keys()
    assert 0 <= last["validation/knn_accuracy"] <= 100
    assert "data_wait" in json.loads((trained / "log.jsonl").read_text().splitlines()[0])
    card = (trained / "checkpoint" / "README.md").read_text()
    assert "MoCo-v3" in card
    assert card.count(f"| knn_accuracy | {last['validation/knn_accuracy']:.4g} |") == 1


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    every = ["run.save_every=2", "run.num_workers=1", "evaluation.train_images=0", "evaluation.test_images=0"]
    train(short(tmp_path / "whole", *every), progress_bar=False)
    recipe = short(tmp_path / "parts", *every)
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
    train(short(tmp_path / "parts", *every), progress_bar=False)
    whole, parts = (read_tree(latest_state(tmp_path / n) / "shared")["objective"] for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_run_can_start_both_encoders_from_another_ones_weights(trained: Path, tmp_path: Path) -> None:
    task = short(tmp_path).build()
    task.load_weights(str(trained / "checkpoint"))
    expected = timm.create_model(f"local-dir:{trained / 'checkpoint'}", pretrained=True).state_dict()
    for network in (task.objective.model, task.objective.momentum_model):
        torch.testing.assert_close(network.state_dict(), expected)
    deeper = short(tmp_path, f"model.model_args={json.dumps(TINY | {'embed_dim': 32})}").build()
    with pytest.raises(ValueError, match=r"run.init_from: expected a checkpoint of cast_nano .*size mismatch"):
        deeper.load_weights(str(trained / "checkpoint"))


def test_images_in_class_folders_train_and_judge_a_vision_transformer(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, color in enumerate(("red", "blue", "green")):
            for index in range(4):
                file = tmp_path / "images" / split / color / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30 + number), color).save(file)
    recipe = short(
        tmp_path / "run",
        "model.architecture=test_vit",
        "model.model_args={}",
        "data.source=folder",
        f"data.path={tmp_path / 'images'}",
        "evaluation.split=val",
        "evaluation.neighbours=1",
        "views.color_jitter_probability=0",
        "objective.freeze_patch_embed=true",
    )
    task = recipe.build()
    assert "superpixels" not in task.dataset[(0, 0)]
    assert task.network.patch_embed.img_size == (32, 32)
    assert train(recipe, progress_bar=False)["knn_accuracy"] == 100
    network = timm.create_model(f"local-dir:{tmp_path / 'run' / 'checkpoint'}", pretrained=True)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    task.load_weights(str(tmp_path / "run" / "checkpoint"))
    torch.testing.assert_close(task.objective.momentum_model.state_dict(), network.state_dict())
    (tmp_path / "images" / "val" / "extra").mkdir()
    with pytest.raises(ValueError, match=r"evaluation.split: expected the 3 classes of data.split=train, got 4"):
        task.evaluate(task.network)


def test_images_without_classes_cannot_be_judged(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / part / "a.png")
    task = short(tmp_path / "run", "data.source=folder", f"data.path={tmp_path}").build()
    with pytest.raises(ValueError, match=r"evaluation.train_images: expected labelled images"):
        task.evaluate(task.network)


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
        (["data.source=folder"], "data.path: expected a folder or name with data.source=folder, got None"),
        (["evaluation.train_images=0"], "expected both above 0, or both 0 for no evaluation, got 0 and 12"),
        (["evaluation.neighbours=0"], "evaluation.neighbours: expected at least 1, got 0"),
        (["evaluation.temperature=0"], "evaluation.temperature: expected more than 0, got 0"),
        (["views.crop_scale=[0.5,0.1]"], "crop_scale"),
        (["view.flip=0"], r"view.* is no setting; did you mean views"),
        (["objective.momentun=0.9"], "objective.momentun is no setting; did you mean objective.momentum"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.architecture=cast_nanno"], "model.architecture: expected one of timm's models.*'cast_nano'"),
        (['model.model_args={"width": 3}'], "model.model_args: expected arguments of cast_nano.*width"),
        (["data.split=test"], "split: expected one of .*got 'test'"),
        (["objective.temperature=0"], "temperature: expected more than 0"),
    ],
)
def test_settings_that_only_building_can_judge_are_named_too(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        short(tmp_path, *overrides).build()
