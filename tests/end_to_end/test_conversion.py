"""The script that brings official GroupViT weights in."""

import importlib.util
from pathlib import Path

import pytest
import torch

from golden_weights import made_up_weights
from grouping_zoo.hf.checkpoint_folder import open_checkpoint

SCRIPT = Path(__file__).parents[2] / "conversion" / "groupvit.py"
spec = importlib.util.spec_from_file_location("convert_groupvit", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


class Settings:
    """Stands for the configuration object that old checkpoints carry."""


def test_an_official_file_becomes_a_folder_with_its_licence(tmp_path):
    weights = made_up_weights("groupvit_gcc_yfcc.json")
    torch.save({"model": weights}, tmp_path / "official.pth")
    script.convert(tmp_path / "official.pth", tmp_path / "out")
    model, processor = open_checkpoint(tmp_path / "out")
    assert torch.equal(model.model.vision.pos_embed, weights["img_encoder.pos_embed"])
    assert processor.tokenizer("a cat")["input_ids"] == [49406, 320, 2368, 49407]
    assert "non-commercial" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_with_other_objects_than_tensors_is_refused_without_running_them(tmp_path):
    torch.save({"model": {}, "config": Settings()}, tmp_path / "old.pth")
    with pytest.raises(
        ValueError, match=r"holds more than tensors \(.*Settings\).*save its 'state_dict' or 'model' entry alone"
    ):
        script.read_tensors(tmp_path / "old.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        script.read_tensors(tmp_path / "none.pth")
