"""The task "dino" from recipe to checkpoint; what it shares with other tasks on images is tested with MoCo-v3's."""

import json
from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoModel

from grouping_zoo.engine.dino import DINORecipe
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.training_state import latest_state, read_tree
from toy_task import log_lines

PUBLISHED = {"pgt_small_in1k": "pgt_small", "pgt_base_in1k": "pgt_base", "pgt_base_flow_in1k": "pgt_base_flow"}
TINY = dict(embed_dim=12, depths=[1, 1], group_dims=[4, 6], num_heads=2, num_groups=4, feature_dim=16)


def short(output_dir: Path, *overrides: str) -> DINORecipe:
    settings = [
        f"model.model_args={json.dumps(TINY)}",
        "data.image_size=32",
        "data.length=40",
        "views.local_size=20",
        "views.num_local=1",
        "objective.num_prototypes=8",
        "objective.hidden_dim=16",
        "objective.bottleneck_dim=4",
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
    recipe = load_recipe("pgt_nano_photos", settings)
    assert isinstance(recipe, DINORecipe)
    return recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(short(folder), progress_bar=False)
    return folder


def test_a_run_publishes_the_teacher_and_both_doors_open_it_with_the_same_features(trained: Path) -> None:
    folder = trained / "checkpoint"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images).pooler_output, network(images))
    weights = read_tree(latest_state(trained) / "shared")["objective"]
    teacher = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    torch.testing.assert_close(network.state_dict(), teacher)
    assert any(not torch.equal(value, weights[f"student.{key}"]) for key, value in teacher.items())
    assert "trained by DINO" in (folder / "README.md").read_text()


def test_what_shows_a_collapse_is_logged(trained: Path) -> None:
    first, *_, last = log_lines(trained)
    assert {"loss", "teacher_entropy", "teacher_kl", "teacher_information", "grad_norm"} <= first.keys()
    for layer in range(2):
        conditional, marginal = (first[f"{name}_entropy_{layer}"] for name in ("conditional", "marginal"))
        assert 0 <= conditional <= marginal + 1e-5
    assert 0 <= last["validation/knn_accuracy"] <= 100


def test_an_interrupted_run_ends_like_an_uninterrupted_one(trained: Path, tmp_path: Path) -> None:
    recipe = short(tmp_path, "run.save_every=2")
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
    train(short(tmp_path, "run.save_every=2"), progress_bar=False)
    whole, parts = (read_tree(latest_state(folder) / "shared")["objective"] for folder in (trained, tmp_path))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_run_can_start_student_and_teacher_from_another_ones_weights(trained: Path, tmp_path: Path) -> None:
    task = short(tmp_path).build()
    task.load_weights(str(trained / "checkpoint"))
    expected = timm.create_model(f"local-dir:{trained / 'checkpoint'}", pretrained=True).state_dict()
    for network in (task.objective.model, task.objective.student):
        torch.testing.assert_close(network.state_dict(), expected)


def test_the_crops_are_those_of_the_recipe(tmp_path: Path) -> None:
    views = short(tmp_path, "views.num_local=3").build().dataset[(0, 0)]["views"]
    assert [view.shape for view in views] == [(3, 32, 32)] * 2 + [(3, 20, 20)] * 3


def test_any_timm_model_can_be_trained(tmp_path: Path) -> None:
    recipe = short(tmp_path, "model.architecture=test_vit", "model.model_args={}", "views.local_size=32")
    train(recipe, progress_bar=False)
    network = timm.create_model(f"local-dir:{tmp_path / 'checkpoint'}", pretrained=True)
    assert network(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert "marginal_entropy_0" not in log_lines(tmp_path)[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_are_the_published_ones(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, DINORecipe)
    assert recipe.model.architecture == PUBLISHED[name]
    assert recipe.run.output_dir == f"runs/{name}"
    assert recipe.run.batch_size == 1024
    assert recipe.run.steps == pytest.approx(600 * 1_281_167 / 1024, rel=1e-3)
    assert recipe.optimizer.learning_rate == pytest.approx(5e-4 * 1024 / 256)
    assert (recipe.data.image_size, recipe.views.local_size) == (224, 96)
    assert recipe.run.find_unused_parameters


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"objective.momentun is no setting; did you mean objective.momentum"):
        short(tmp_path, "objective.momentun=0.9")
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"num_prototypes: expected at least 2, .* got {number}"):
            short(tmp_path, f"objective.num_prototypes={number}").build()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.split=test"], "split: expected one of .*got 'test'"),
        (["evaluation.split=train"], "evaluation.split: expected another one than data.split, got train for both"),
        (["model.architecture=vt_fpn_nano", "model.model_args={}"], "one feature an image, got vt_fpn_nano"),
        (["model.architecture=pgt_nano.foo"], "model: expected an architecture .*got pgt_nano.foo and .*tag"),
    ],
)
def test_mistakes_are_told_before_the_training(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short(tmp_path, *overrides).build()
