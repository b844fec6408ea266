"""The checkpoints that come with the package: both doors give the same of each, and each is trained."""

from typing import Any

import pytest
import timm
import torch

import grouping_zoo
from evaluated import CPU, context_of
from grouping_zoo.data.sets.scenes import CLASSES
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.evaluated_model import network_model, transformers_model
from grouping_zoo.evaluation.tasks import TASKS
from grouping_zoo.evaluation.tasks.semantic_segmentation import all_background
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings
from grouping_zoo.models.image_text import ImageTextModel

PACKAGED = grouping_zoo.packaged_checkpoints()


def test_there_is_one_of_every_family() -> None:
    assert {name.split("_")[0] for name in PACKAGED} == {"groupvit", "cast", "pgt", "vt"}


@pytest.mark.parametrize("name", PACKAGED)
@torch.no_grad()
def test_both_doors_give_the_same(name: str) -> None:
    model: Any = open_checkpoint(name)[0]
    inner = model.model
    network = timm.create_model(f"local-dir:{PACKAGED[name]}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    assert expected.std() > 1e-3
    assert torch.equal((inner.vision if isinstance(inner, ImageTextModel) else inner)(images), expected)


@pytest.mark.parametrize("name", PACKAGED)
def test_timm_opens_it_by_the_name_of_its_architecture(name: str) -> None:
    network = timm.create_model(f"local-dir:{PACKAGED[name]}", pretrained=True)
    by_name = timm.create_model(network.pretrained_cfg["architecture"], pretrained=True)
    weights = network.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in by_name.state_dict().items() if key in weights)
    assert len(weights.keys() & by_name.state_dict().keys()) > 10


def test_the_nano_vt_resnet_tells_shapes() -> None:
    network = timm.create_model("vt_resnet_nano", pretrained=True, num_classes=8).eval()
    context = context_of(network_model("nano", network, CPU, list(CLASSES)), EvaluationSet(images=200))
    assert TASKS["top1"].run(context)["top1"] > 65


def test_the_nano_vt_fpn_names_pixels() -> None:
    network = timm.create_model("vt_fpn_nano", pretrained=True, num_classes=9).eval()
    context = context_of(network_model("nano", network, CPU, ["background", *CLASSES]), EvaluationSet(images=100))
    assert TASKS["segmentation"].run(context)["miou"] > 45


def test_the_nano_groupvit_names_what_it_groups() -> None:
    folder = PACKAGED["groupvit_nano_scenes"]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 8e6
    model = transformers_model("nano", *open_checkpoint(folder), CPU)
    config = model.model.config
    zero_shot = segmenter_settings(config) | {"templates": prompt_templates(config)}
    context = context_of(model, EvaluationSet(images=150), zero_shot=zero_shot)
    assert TASKS["zero-shot-cls"].run(context)["classification"] > 75
    assert TASKS["zero-shot-seg"].run(context)["miou"] > 3 * all_background(context, "whole")["miou"]
