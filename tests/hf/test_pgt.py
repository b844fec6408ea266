"""What is PGT's own in its transformers classes; the rest is tested with all image families."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSemanticSegmentation

from grouping_zoo import PGTConfig
from grouping_zoo.hf.vision import publish
from zoo import SMALL

PGT = SMALL["pgt_nano"]
images = PGT.images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pgt")
    publish(PGT.create(), path, "")
    return path


@torch.no_grad()
def test_segmentation_is_a_linear_layer_on_the_refined_tokens(folder: Path) -> None:
    model, x = AutoModelForSemanticSegmentation.from_pretrained(folder, num_labels=5), images(size=(32, 28))
    tokens = model.model.forward_intermediates(x, 1, intermediates_only=True)[0]  # (2, 12, 4, 4)
    head = model.segmentation_head
    maps = F.conv2d(tokens, head.weight[:, :, None, None], head.bias)
    expected = F.interpolate(maps, size=(32, 32), mode="bilinear", align_corners=False)[..., :28]
    assert torch.allclose(model(x).logits, expected, atol=1e-5), "padding up to whole patches is cut off"


def test_segmentation_trains_what_the_last_layer_hands_back(folder: Path) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, num_labels=5).train()
    model(images(), labels=torch.randint(5, (2, 32, 32))).loss.backward()
    assert model.model.layers[-1].mlp.fc1.weight.grad.abs().sum() > 0
    assert model.model.pool.query.grad is None


def test_the_configuration_knows_the_published_model() -> None:
    config = PGTConfig()
    assert config.architecture == "pgt_base"
    assert len(config.stage_names) == 30
