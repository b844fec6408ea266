"""Publishing a network: what the folder and the card hold."""

import json
from pathlib import Path

import pytest
import timm
import torch

from grouping_zoo import CAST
from grouping_zoo.hf import vision
from grouping_zoo.hf.vision import publish
from zoo import SMALL

CAST_SMALL = SMALL["cast_small"]


def test_card_gets_the_figures(tmp_path: Path) -> None:
    network = CAST_SMALL.create(num_classes=0)
    publish(network, tmp_path, "# card\n", metrics={"kNN accuracy, per cent": 87.654321})
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# card\n")
    assert "\n| kNN accuracy, per cent | 87.65 |\n" in text


def test_class_names_go_with_the_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_names: expected 5, one for each class of the head, got 2"):
        publish(CAST_SMALL.create(num_classes=5), tmp_path, "", class_names=["a", "b"])
    publish(CAST_SMALL.create(num_classes=0), tmp_path, "", class_names=["a", "b"])
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())


def test_a_network_whose_arguments_nobody_noted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network: expected one made by timm\.create_model.*got CAST"):
        publish(CAST(**CAST_SMALL.kwargs), tmp_path, "")


def test_publishing_leaves_the_network_alone(tmp_path: Path) -> None:
    network = CAST_SMALL.create(num_classes=5).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    publish(network, tmp_path, "")
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@torch.no_grad()
def test_other_timm_networks_are_written_as_timm_does(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=2, img_size=64).eval()
    publish(network, tmp_path, "# a vision transformer\n", class_names=["a", "b"])
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), network(x))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == ["a", "b"]
    assert vision.ZooVisionConfig.of_network(network) is None
