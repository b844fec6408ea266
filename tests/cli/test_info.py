"""`grouping-zoo info`."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from command import THRESHOLD, Run
from grouping_zoo import ZooGroupViTModel
from grouping_zoo.data.sets.scenes import CLASSES
from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints
from grouping_zoo.hf.vision import publish
from zoo import with_random_weights


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = with_random_weights(timm.create_model("cast_nano", embed_dim=32, depths=(1, 1, 1, 1)).eval())
    folder = tmp_path_factory.mktemp("models") / "tiny_cast"
    publish(network, folder, "# tiny\n", metrics={"knn_accuracy": 41.25, "region_covering": 0.5, "iou/ball": 12.0})
    return folder


def test_info_describes_a_checkpoint_so_that_it_can_be_opened(run: Run, checkpoint: Path) -> None:
    result = run("info", checkpoint)
    assert (result.code, result.err) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.out.splitlines())
    described = {key.strip(): value.strip() for key, value in rows.items()}
    assert described["groups"] == "256 tokens -> 6"
    assert described["classes"] == ", ".join(CLASSES)
    assert described["threshold"] == str(THRESHOLD)
    assert "figures" not in described, "its card states none"
    model = ZooGroupViTModel.from_pretrained(checkpoint)
    assert described["parameters"].startswith(f"{model.num_parameters():,}: vision ")
    opened = {}
    for door in ("timm", "transformers"):
        scope: dict[str, Any] = {}
        *statements, expression = described[door].split("; ")
        exec("; ".join(statements), scope)
        opened[door] = eval(expression, scope)
    image = torch.zeros(1, 3, 64, 64)
    torch.testing.assert_close(opened["timm"].eval()(image), opened["transformers"].model.vision(image))


@pytest.mark.parametrize("name", packaged_checkpoints())
def test_what_info_says_of_a_packaged_checkpoint_opens_it_with_its_head(name: str, run: Run) -> None:
    lines = dict(line.split("  ", 1) for line in run("info", name).out.splitlines())
    described = {key.strip(): value.strip() for key, value in lines.items()}
    for door in ("timm", "transformers"):
        scope: dict[str, Any] = {}
        *statements, expression = described[door].split("; ")
        exec("; ".join(statements), scope)
        opened = eval(expression, scope)
        if "none" not in described["classes"] and door == "transformers" and not name.startswith("groupvit"):
            assert ", ".join(opened.config.id2label.values()) == described["classes"]


def test_info_describes_an_architecture_without_weights(run: Run) -> None:
    result = run("info", "groupvit_small_patch16_224")
    assert result.code == 0
    assert "28,837,136" in result.out
    assert "196 tokens -> 64 -> 8" in result.out
    assert "none in the package" in result.out


def test_info_of_a_model_without_text(run: Run, cast: Path) -> None:
    result = run("info", cast)
    assert (result.code, result.err) == (0, "")
    described = {key: value.strip() for key, value in (line.split("  ", 1) for line in result.out.splitlines())}
    assert described["architecture"] == "cast_nano"
    assert described["input"].startswith("64x64 pixels")
    assert described["groups"] == "64 tokens -> 32 -> 16 -> 8 -> 4"
    assert described["figures"] == "knn accuracy 41.25, region covering 0.5"
    assert described["classes"].startswith("none")
    assert described["command line"] == f"grouping-zoo segment photo.jpg --model {cast}"
    parameters = sum(p.numel() for p in timm.create_model(f"local-dir:{cast}").parameters())
    assert described["parameters"] == f"{parameters:,}"


def test_info_names_the_classes_of_a_head(run: Run, tmp_path: Path) -> None:
    network = timm.create_model("cast_nano", embed_dim=32, depths=(1, 1, 1, 1), num_classes=40).eval()
    publish(network, tmp_path / "many", "# many\n", class_names=[f"class {number}" for number in range(40)])
    result = run("info", tmp_path / "many")
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if line.startswith("classes")]
    assert "class 0, class 1, " in line
    assert line.endswith("class 29, ... (40)")
