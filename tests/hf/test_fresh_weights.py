"""Weights that no checkpoint fills are drawn by the network's own rules, and those that it fills stay."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

import grouping_zoo

PACKAGED = grouping_zoo.packaged_checkpoints()
OTHER_LABELS = [
    ("vt_resnet_nano_scenes", AutoModelForImageClassification, "model.fc."),
    ("cast_nano_scenes", AutoModelForImageClassification, "model.head."),
    ("pgt_nano_photos", AutoModelForImageClassification, "model.head."),
    ("vt_fpn_nano_scenes", AutoModelForSemanticSegmentation, "model.classifier."),
    ("cast_nano_scenes", AutoModelForSemanticSegmentation, "segmentation_head."),
    ("vt_resnet_nano_scenes", AutoModelForSemanticSegmentation, "segmentation_head."),
]


def stored(name: str) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(PACKAGED[name]).state_dict()


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize(("name", "auto_class", "head"), OTHER_LABELS)
def test_a_head_of_other_labels_is_drawn_and_the_rest_loaded(
    name: str, auto_class: Any, head: str, accept: bool, tmp_path: Path
) -> None:
    auto_class.from_pretrained(PACKAGED[name], num_labels=5).save_pretrained(tmp_path)
    reference = auto_class.from_pretrained(tmp_path).state_dict()
    torch.manual_seed(0)
    model = auto_class.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=accept)
    tensors = model.state_dict()
    assert all(torch.equal(tensors[key], value) for key, value in reference.items() if not key.startswith(head))
    for key, value in tensors.items():
        if key.startswith(head) and key.endswith("weight") and value.ndim > 1:
            assert 0 < value.abs().max() < 2, f"{key} is not drawn"
            torch.manual_seed(0)
            again = auto_class.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=accept)
            assert torch.equal(again.state_dict()[key], value)


def test_one_misshapen_tensor_leaves_the_others_as_they_were_loaded() -> None:
    name = "groupvit_nano_scenes"
    config = AutoConfig.from_pretrained(PACKAGED[name])
    config.model_args = dict(config.model_args, img_size=128)
    model = AutoModel.from_pretrained(PACKAGED[name], config=config, ignore_mismatched_sizes=True)
    key = "model.vision.pos_embed"
    for other, value in AutoModel.from_pretrained(PACKAGED[name]).state_dict().items():
        assert other == key or torch.equal(model.state_dict()[other], value), other
    assert model.state_dict()[key].shape[1] == 32 * 32
    assert 0.01 < model.state_dict()[key].std() < 0.03


@pytest.mark.parametrize("name", PACKAGED)
def test_a_model_made_on_the_meta_device_can_be_filled_afterwards(name: str) -> None:
    config = AutoConfig.from_pretrained(PACKAGED[name])
    auto_class = AutoModelForSemanticSegmentation if config.model_type == "vt_fpn" else AutoModel
    with torch.device("meta"):
        model = auto_class.from_config(config)
    model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(77)
    model.init_weights()
    left = [key for key, value in model.state_dict().items() if (value == 77).any()]
    assert left == []


def test_an_input_channel_more_is_drawn() -> None:
    name = "vt_resnet_nano_scenes"
    config = AutoConfig.from_pretrained(PACKAGED[name])
    config.model_args = dict(config.model_args, in_chans=4)
    model = AutoModel.from_pretrained(PACKAGED[name], config=config, ignore_mismatched_sizes=True)
    assert 0.01 < model.model.conv1[0].weight.std() < 1


def test_weights_given_as_a_state_dict_need_no_folder() -> None:
    model = AutoModel.from_pretrained(PACKAGED["groupvit_nano_scenes"])
    again = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    network = AutoModel.from_pretrained(PACKAGED["cast_nano_scenes"])
    classifier = AutoModelForImageClassification.from_config(network.config)
    opened = type(classifier).from_pretrained(None, config=classifier.config, state_dict=network.state_dict())
    assert 0 < opened.get_parameter("model.head.weight").abs().max() < 2


@pytest.mark.parametrize("name", ["cast_nano_scenes", "groupvit_nano_scenes"])
def test_transformers_is_told_of_checkpointing(name: str) -> None:
    model = AutoModel.from_pretrained(PACKAGED[name])
    assert not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_timms_door_keeps_the_head_of_a_nano_classifier(tmp_path: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(PACKAGED["cast_nano_scenes"], num_labels=3).eval()
    model.save_pretrained(tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images), model(images).logits)
