import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from evaluated import CPU, model_of
from grouping_zoo.evaluation.evaluated_model import (
    EvaluatedModel,
    plain_timm_source,
    timm_model,
    transformers_model,
    untrained,
)
from zoo import MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.case)
def test_models_of_the_zoo_give_features(model: Any) -> None:
    network = model.create(num_classes=0).eval()
    evaluated, images = model_of(network), model.images(2)
    batch: dict[str, Tensor] = {"pixel_values": images}
    if "superpixels" in evaluated.inputs.input_makers:
        batch["superpixels"] = torch.arange(images[0, 0].numel()).view(1, *images.shape[2:]).repeat(2, 1, 1) % 16
    if evaluated.gives_features:
        assert evaluated.features(batch).shape == (2, network.num_features)
    assert evaluated.num_outputs == 0


@torch.no_grad()
def test_arguments_of_each_call_reach_the_network() -> None:
    settings = dict(img_size=16, embed_dim=12, depths=(1,), group_dims=(4,), num_heads=2, num_groups=4, feature_dim=8)
    network: Any = timm.create_model("pgt_nano", num_classes=0, **settings).eval()
    model = dataclasses.replace(model_of(network), call_args={"num_groups": 3, "num_iters": 1})
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = network.forward_head(network.forward_features(images, num_groups=3, num_iters=1), pre_logits=True)
    torch.testing.assert_close(model.features({"pixel_values": images}), expected)
    groupings = model.groupings({"pixel_values": images})
    assert [one.num_groups(-1) for one in groupings] == [3, 3], "of each head"


def test_models_of_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="bert: expected a checkpoint of this package, or one of timm's, got a Linear"):
        transformers_model("bert", torch.nn.Linear(2, 2), None, CPU)


def test_any_timm_folder_is_a_model(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    save_for_hf(network, str(tmp_path / "vit"), {"label_names": ["x", "y", "z"]}, safe_serialization=True)
    source = plain_timm_source(str(tmp_path / "vit"))
    assert source == f"local-dir:{tmp_path / 'vit'}"
    model = timm_model("vit", source, CPU)
    assert model.class_names == ["x", "y", "z"]
    assert (model.num_outputs, model.predicts_pixels) == (3, False)
    image = torch.rand(1, 3, *model.image_size)
    torch.testing.assert_close(model.features({"pixel_values": image}), _pooled(network, image))
    fresh = untrained(model, seed=1)
    assert fresh.num_outputs == 3
    assert not torch.equal(fresh.network.head.weight, model.network.head.weight)


def test_timm_opens_its_own_models_by_name_and_no_others() -> None:
    assert plain_timm_source("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert plain_timm_source("cast_nano_scenes") is None
    assert plain_timm_source("cast_nano") is None
    with pytest.raises(ValueError, match="model: 'resnet_nothing' is no folder"):
        plain_timm_source("resnet_nothing")
    with pytest.raises(ValueError, match=r"^net: expected a model of timm's with weights: .*Invalid pretrained tag"):
        timm_model("net", "resnet18.nothing", CPU)


def test_the_untrained_model_is_the_same_each_time(cast: EvaluatedModel) -> None:
    one, again = (untrained(cast, seed=3).network.state_dict() for _ in range(2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert any(not torch.equal(value, one[name]) for name, value in cast.network.state_dict().items())


@torch.no_grad()
def _pooled(network: Any, image: Tensor) -> Tensor:
    return network.forward_head(network.forward_features(image), pre_logits=True)
