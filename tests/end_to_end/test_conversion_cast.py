"""The script that brings official CAST weights in."""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from golden_weights import made_up_weights
from grouping_zoo import CASTForImageClassification, CASTModel
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.models.cast_checkpoint import convert_state_dict

SCRIPT = Path(__file__).parents[2] / "conversion" / "cast.py"
spec = importlib.util.spec_from_file_location("convert_cast", SCRIPT)
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


class Trap:
    """Stands for an object whose reading runs code."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("executed",)


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return made_up_weights("cast_small.json")


def snapshot(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A MoCo-v3 snapshot: two encoders with projectors, and the predictor."""
    body = {key: value for key, value in weights.items() if not key.startswith("head.")}
    body |= {"head.0.weight": torch.zeros(16, 384), "head.1.num_batches_tracked": torch.tensor(3)}
    momentum = body | {"cls_token": body["cls_token"] + 1}
    joined = {f"module.base_encoder.{key}": value for key, value in body.items()}
    joined |= {f"module.momentum_encoder.{key}": value for key, value in momentum.items()}
    return joined | {"module.predictor.0.weight": torch.zeros(16, 16)}


def test_a_supervised_file_becomes_a_classifier(official: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": official, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "official.pth")
    script.convert(tmp_path / "official.pth", tmp_path / "out")
    model, processor = open_checkpoint(tmp_path / "out")
    assert type(model) is CASTForImageClassification
    assert model.config.architecture == "cast_small"
    assert model.config.num_labels == 1000
    assert model.config.id2label[0].startswith("tench")
    assert processor.superpixel_size == 16
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    expected = convert_state_dict(official)
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("encoder", ["base", "momentum"])
def test_a_moco_snapshot_becomes_a_network_without_head(
    encoder: str, official: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": snapshot(official), "epoch": 100, "arch": "cast_small"}, tmp_path / "official.pth.tar")
    script.convert(tmp_path / "official.pth.tar", tmp_path / "out", encoder)
    model, _ = open_checkpoint(tmp_path / "out")
    assert type(model) is CASTModel
    shift = 1 if encoder == "momentum" else 0
    assert torch.equal(model.model.cls_token, official["cls_token"] + shift + official["pe_token"])


def test_the_variant_is_told_by_names_and_shapes() -> None:
    for manifest, name in (("cast_small_deep", "cast_small_deep"), ("cast_seg_small_pretrain", "cast_seg_small")):
        assert script.fitting_architecture(convert_state_dict(made_up_weights(f"{manifest}.json"))) == name
    with pytest.raises(ValueError, match=r"its tensors fit none of .*cast_small"):
        script.fitting_architecture({"cls_token": torch.zeros(1, 1, 5)})


def test_a_file_with_other_objects_is_refused_without_running_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "hook": Trap()}, tmp_path / "trap.pth.tar")
    with pytest.raises(ValueError, match=r"holds more than tensors \(.*print\).*save its 'state_dict'"):
        script.convert(tmp_path / "trap.pth.tar", tmp_path / "out")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="does not exist"):
        script.convert(tmp_path / "none.pth", tmp_path / "out")
