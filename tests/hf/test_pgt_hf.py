"""What is PGT's own in its transformers classes; the rest is tested with all image families."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from grouping_zoo import PGTBackbone, PGTConfig
from grouping_zoo.hf.vision import publish
from zoo import with_random_weights

SMALL: dict[str, Any] = dict(
    img_size=32, embed_dim=12, depths=(1, 2), group_dims=(4, 6), num_heads=2, num_groups=4, feature_dim=8
)
ASKED = dict(num_groups=3, num_iters=2, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = with_random_weights(timm.create_model("pgt_nano", num_classes=3, **SMALL).eval())
    path = tmp_path_factory.mktemp("pgt")
    publish(network, path, "")
    return path


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "auto", [AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation, PGTBackbone]
)
@torch.no_grad()
def test_groups_iterations_and_seed_can_be_chosen_per_call(auto: Any, folder: Path) -> None:
    model, x = auto.from_pretrained(folder), images()

    def first(**kwargs: Any) -> Tensor:
        found = model(x, **kwargs)
        return found.feature_maps[0] if auto is PGTBackbone else found[0]

    usual = first()
    assert torch.equal(first(num_groups=4, num_iters=3, seed=0), usual)
    for name, value in ASKED.items():
        changed = first(**{name: value})
        assert changed.shape != usual.shape or not torch.allclose(changed, usual, atol=1e-6), name
    assert torch.equal(first(**ASKED), first(**ASKED))


@torch.no_grad()
def test_outputs_carry_tokens_groups_and_assignments(folder: Path) -> None:
    model, x = AutoModel.from_pretrained(folder), images(32, 24)
    found = model(x, **ASKED, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in found.hidden_states] == [(2, 12, 12)] * 3 + [(2, 2 * 3, 6)]
    tokens = model.model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True, **ASKED)
    assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, tokens, strict=False))
    assert torch.equal(found.last_hidden_state, model.model.forward_features(x, **ASKED))
    assert found.attentions[0].shape == (2, 2, 12, 3)
    assert torch.equal(found.attentions[0], model.model.forward_grouping(x, **ASKED).assignments[0])
    one = model.forward_grouping(x, layer=1, head=1)
    assert torch.equal(one.assignments[0], model.model.forward_grouping(x, 1, 1).assignments[0])


@torch.no_grad()
def test_segmentation_is_a_linear_layer_on_the_refined_tokens(folder: Path) -> None:
    model, x = AutoModelForSemanticSegmentation.from_pretrained(folder, num_labels=5), images(32, 28)
    tokens = model.model.forward_intermediates(x, [2], intermediates_only=True)[0]  # (2, 12, 4, 4)
    head = model.segmentation_head
    maps = F.conv2d(tokens, head.weight[:, :, None, None], head.bias)
    expected = F.interpolate(maps, size=(32, 32), mode="bilinear", align_corners=False)[..., :28]
    assert torch.allclose(model(x).logits, expected, atol=1e-5), "padding up to whole patches is cut off"


def test_segmentation_trains_what_the_last_layer_hands_back(folder: Path) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, num_labels=5).train()
    model(images(), labels=torch.randint(5, (2, 32, 32))).loss.backward()
    assert model.model.layers[-1].mlp.fc1.weight.grad.abs().sum() > 0
    assert model.model.pool.query.grad is None


@torch.no_grad()
def test_inference_repeats_and_leaves_the_random_state_alone(folder: Path) -> None:
    model, x = AutoModel.from_pretrained(folder), images()
    torch.manual_seed(3)
    first, state = model(x).pooler_output, torch.get_rng_state()
    torch.manual_seed(4)
    assert torch.equal(model(x).pooler_output, first)
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_configuration_knows_the_published_model() -> None:
    config = PGTConfig()
    assert config.architecture == "pgt_base"
    assert len(config.stage_names) == 30
