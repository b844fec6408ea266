"""A checkpoint's configuration names an architecture and its arguments; it never makes a network fetch weights."""

import contextlib
import inspect
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models._builder
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from grouping_zoo.hf.image_text import ZooGroupViTConfig
from grouping_zoo.hf.vision import CONFIGS
from grouping_zoo.models import vt_fpn, vt_resnet
from grouping_zoo.models.builder import zoo_models
from grouping_zoo.models.family import FAMILIES

WEIGHT_ARGUMENTS = sorted(
    {name for name in inspect.signature(timm.create_model).parameters if "pretrained" in name}
    | {"checkpoint_path", "cache_dir", "pretrained_backbone"}
)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the functions that fetch weights."""
    asked: list[Any] = []

    def fetch(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise RuntimeError("weights were about to be fetched")

    for module in (vt_fpn, vt_resnet):
        monkeypatch.setattr(module, "load_backbone", fetch)
    for name in ("load_state_dict_from_hf", "load_state_dict_from_url"):
        monkeypatch.setattr(timm.models._builder, name, fetch)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr(torch, "load", fetch)
    return asked


def model_types(architecture: str) -> list[str]:
    """Of its family's own classes, and of those that put a text encoder beside it."""
    network_class = FAMILIES[timm.model_entrypoint(architecture).__module__]
    return [CONFIGS[network_class].model_type, ZooGroupViTConfig.model_type]


def folder(path: Path, model_type: str, architecture: str, model_args: dict[str, Any]) -> Path:
    config = dict(
        model_type=model_type,
        architecture=architecture,
        model_args=model_args,
        pretrained_cfg={},
        num_classes=0,
    )
    (path / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("architecture", zoo_models())
def test_no_argument_fetches_weights_by_any_door(architecture: str, tmp_path: Path, fetched: list[Any]) -> None:
    for argument, model_type in product(WEIGHT_ARGUMENTS, model_types(architecture)):
        value: Any = {"hf_hub_id": "nobody/nothing"} if "cfg" in argument else "hf-hub:nobody/nothing"
        for model_args in ({argument: value}, {"backbone_args": {argument: value}}):
            checkpoint = folder(tmp_path, model_type, architecture, model_args)
            for pretrained in (False, True):  # the dummy weights fit no network
                with contextlib.suppress(ValueError, TypeError, RuntimeError):
                    timm.create_model(f"local-dir:{checkpoint}", pretrained=pretrained)
                assert fetched == []
            config = AutoConfig.from_pretrained(checkpoint)
            for auto in (AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation):
                if type(config) in auto._model_mapping:
                    with pytest.raises(ValueError, match="would load weights"):
                        auto.from_config(config)
                    with pytest.raises(ValueError, match="would load weights"):
                        auto.from_pretrained(checkpoint)

    assert fetched == []


@pytest.mark.parametrize("architecture", ["vt_fpn_nano", "vt_resnet_nano"])
def test_a_caller_may_start_a_backbone_from_weights(architecture: str, fetched: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="about to be fetched"):
        timm.create_model(architecture, pretrained_backbone="resnet18")
    assert len(fetched) == 1
