"""Finding and opening checkpoint folders of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from grouping_zoo import CASTForImageClassification, CASTForSemanticSegmentation, CASTImageProcessor, CASTModel
from grouping_zoo.hf import checkpoint_folder
from grouping_zoo.hf.checkpoint_folder import find_checkpoint, open_checkpoint, packaged_checkpoints
from grouping_zoo.hf.vision import publish
from grouping_zoo.models import builder


def small_network(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("cast_nano", embed_dim=32, num_heads=2, **kwargs).eval()


def test_image_networks_open_with_the_head_they_were_written_with(tmp_path: Path) -> None:
    publish(small_network(), tmp_path / "plain", "")
    publish(small_network(num_classes=3), tmp_path / "classifier", "", class_names=["a", "b", "c"])
    segmenter = CASTForSemanticSegmentation.from_pretrained(tmp_path / "plain", num_labels=4)
    segmenter.save_pretrained(tmp_path / "segmenter")
    CASTImageProcessor.of_network(segmenter.model, whole=True).save_pretrained(tmp_path / "segmenter")
    for name, model_class in (
        ("plain", CASTModel),
        ("classifier", CASTForImageClassification),
        ("segmenter", CASTForSemanticSegmentation),
    ):
        model, processor = open_checkpoint(tmp_path / name)
        assert type(model) is model_class
        assert type(processor) is CASTImageProcessor
        assert not model.training
        assert model.model.num_features == 32


def test_models_with_text_open_with_their_processor(checkpoint_folder: Path) -> None:
    model, processor = open_checkpoint(checkpoint_folder)
    assert processor.tokenizer("a cat")["input_ids"]
    assert model.model.vision.num_features == 32


def test_a_packaged_checkpoint_opens_by_its_own_and_by_its_timm_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(small_network(), tmp_path / "cast_nano_scenes", "")
    monkeypatch.setattr(checkpoint_folder, "PACKAGED", tmp_path)
    assert list(packaged_checkpoints()) == ["cast_nano_scenes"]
    assert find_checkpoint("cast_nano_scenes") == str(tmp_path / "cast_nano_scenes")
    with pytest.raises(ValueError, match="cast_base: has no packaged weights"):
        find_checkpoint("cast_base")


def test_timm_names_the_file_of_a_packaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "PACKAGED", tmp_path)
    assert builder.packaged_weights("cast_nano_scenes") == {}
    network = small_network()
    publish(network, tmp_path / "cast_nano_scenes", "")
    found = builder.packaged_weights("cast_nano_scenes")
    assert found == {"file": str(tmp_path / "cast_nano_scenes" / "model.safetensors")}
    small = json.loads((tmp_path / "cast_nano_scenes" / "config.json").read_text())["model_args"]
    opened = timm.create_model("cast_nano", pretrained=True, pretrained_cfg_overlay=found, **small)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in opened.state_dict().items())


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a checkpoint folder, found no config\.json in it"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'groupvit_nano_scenes'"):
        find_checkpoint("groupvit_nano_scene")
    assert find_checkpoint("user/name") == "user/name"
