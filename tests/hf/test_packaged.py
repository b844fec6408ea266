"""The checkpoints that come with the package: both doors give the same of each, and each is trained."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

import grouping_zoo
from grouping_zoo.data.image_source import open_images
from grouping_zoo.data.multi_view import SingleViews, image_tensors
from grouping_zoo.evaluation.recognition import top_k_accuracy
from grouping_zoo.evaluation.segmentation import evaluate_segmentation
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.models.image_text import ImageTextModel

PACKAGED = grouping_zoo.packaged_checkpoints()


def held_out(network: Any, number: int, **settings: Any) -> dict[str, torch.Tensor]:
    """Held-out scenes as a network takes them."""
    views = SingleViews(
        open_images("scenes", split="validation", length=number, **settings), 64, image_tensors(network)
    )
    return default_collate([views[index] for index in range(number)])


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


@torch.no_grad()
def test_the_nano_vt_resnet_tells_shapes() -> None:
    network = timm.create_model("vt_resnet_nano", pretrained=True, num_classes=8).eval()
    batch = held_out(network, 200, max_objects=1)
    assert top_k_accuracy(network(batch["pixel_values"]), batch["label"]) > 65


@torch.no_grad()
def test_the_nano_vt_fpn_names_pixels() -> None:
    network = timm.create_model("vt_fpn_nano", pretrained=True, num_classes=9).eval()
    batch = held_out(network, 100)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(network(images), size=images.shape[-2:], mode="bilinear").argmax(dim=1)

    names = [str(number) for number in range(9)]
    assert evaluate_segmentation(predict, [(batch["pixel_values"], batch["mask"])], names)["miou"] > 45
