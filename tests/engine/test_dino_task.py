"""The task "dino" from recipe to checkpoint; `test_training_tasks` tests what all tasks share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from grouping_zoo.engine.dino import DINORecipe
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.training_state import latest_state, read_tree
from short_runs import short
from toy_task import log_lines

Trained = Callable[[str], Path]

PUBLISHED = {"pgt_small_in1k": "pgt_small", "pgt_base_in1k": "pgt_base", "pgt_base_flow_in1k": "pgt_base_flow"}


def test_the_teacher_is_published(trained: Trained) -> None:
    folder = trained("dino")
    network = timm.create_model(f"local-dir:{folder / 'checkpoint'}", pretrained=True)
    weights = read_tree(latest_state(folder) / "shared")["objective"]
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[f"model.{key}"])
    assert any(not torch.equal(value, weights[f"student.{key}"]) for key, value in network.state_dict().items())
    assert "trained by DINO" in (folder / "checkpoint" / "README.md").read_text()


def test_signs_of_a_collapse_are_logged(trained: Trained) -> None:
    first, *_, last = log_lines(trained("dino"))
    assert {"loss", "teacher_entropy", "teacher_kl", "teacher_information", "grad_norm"} <= first.keys()
    for layer in range(2):
        conditional, marginal = (first[f"{name}_entropy_{layer}"] for name in ("conditional", "marginal"))
        assert 0 <= conditional <= marginal + 1e-5
    assert 0 <= last["validation/knn/accuracy"] <= 100


def test_the_crops_are_those_of_the_recipe(tmp_path: Path) -> None:
    views = short("dino", tmp_path, "views.num_local=3").build().dataset[(0, 0)]["views"]
    assert [view.shape for view in views] == [(3, 32, 32)] * 2 + [(3, 20, 20)] * 3


def test_any_timm_model_can_be_trained(tmp_path: Path) -> None:
    recipe = short("dino", tmp_path, "model.architecture=test_vit", "model.model_args={}", "views.local_size=32")
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
        short("dino", tmp_path, "objective.momentun=0.9")
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"objective.num_prototypes: expected at least 2, got {number}"):
            short("dino", tmp_path, f"objective.num_prototypes={number}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.split=test"], "split: expected one of .*got 'test'"),
        (["evaluation.split=train"], "train_split: expected another split than the evaluated one, got 'train'"),
        (["model.architecture=vt_fpn_nano", "model.model_args={}"], "one feature an image, got vt_fpn_nano"),
        (["model.architecture=pgt_nano.foo"], "model: expected an architecture .*got pgt_nano.foo and .*tag"),
    ],
)
def test_mistakes_are_told_before_the_training(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short("dino", tmp_path, *overrides).build()
