"""The image-and-text class beyond what it promises of every vision model: its folder, processor, hostile files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

from grouping_zoo import ZooGroupViTConfig, ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from two_towers import CAPTIONS


def pixel_values(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def photo(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def open_model(folder: Path, **kwargs: Any) -> ZooGroupViTModel:
    return AutoModel.from_pretrained(folder, **kwargs)


def text_inputs(folder: Path, texts: list[str] = CAPTIONS) -> dict[str, Tensor]:
    return dict(AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt"))


@pytest.fixture
def copied(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to be tampered with."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "copied"))


# --- the folder -----------------------------------------------------------------------------------------------------


def test_folder_holds_the_documented_files_and_no_pickle(checkpoint_folder: Path) -> None:
    names = {path.name for path in checkpoint_folder.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if Path(name).suffix not in (".safetensors", ".json", ".md", ".txt")]


def test_config_has_the_fields_of_both_libraries(checkpoint_folder: Path) -> None:
    config = json.loads((checkpoint_folder / "config.json").read_text())
    assert config["model_type"] == "zoo_groupvit"
    assert config["architecture"] == "groupvit_nano_patch4_64"
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["num_features"] == 32
    assert str(checkpoint_folder.parent) not in (checkpoint_folder / "config.json").read_text()


def test_auto_classes_open_the_folder(checkpoint_folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(checkpoint_folder)) is ZooGroupViTConfig
    assert type(AutoModel.from_pretrained(checkpoint_folder)) is ZooGroupViTModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(checkpoint_folder)) is ZooGroupViTModel
    assert type(AutoImageProcessor.from_pretrained(checkpoint_folder)) is ZooGroupViTImageProcessor
    processor = AutoProcessor.from_pretrained(checkpoint_folder)
    assert type(processor) is ZooGroupViTProcessor
    assert type(processor.image_processor) is ZooGroupViTImageProcessor
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder)
    assert tokenizer("a cat").input_ids == processor.tokenizer("a cat").input_ids
    assert tokenizer.model_max_length == 16


def test_opening_says_nothing(checkpoint_folder: Path, transformers_log: pytest.LogCaptureFixture) -> None:
    open_model(checkpoint_folder)
    AutoProcessor.from_pretrained(checkpoint_folder)
    assert not transformers_log.messages


def test_both_doors_describe_the_same_preprocessing(checkpoint_folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(checkpoint_folder)
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{checkpoint_folder}"))
    assert tuple(data["mean"]) == tuple(processor.image_mean)
    assert tuple(data["std"]) == tuple(processor.image_std)
    assert list(data["input_size"][1:]) == [processor.size["height"], processor.size["width"]]


@torch.no_grad()
def test_timm_door_takes_other_arguments(checkpoint_folder: Path) -> None:
    name = f"local-dir:{checkpoint_folder}"
    same = timm.create_model(name, pretrained=True).eval()
    assert timm.create_model(name, pretrained=True, num_classes=4)(pixel_values()).shape == (2, 4)
    larger = timm.create_model(name, pretrained=True, img_size=64).eval()
    assert torch.allclose(larger(pixel_values(2, 64, 64)), same(pixel_values(2, 64, 64)), atol=1e-5)
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(0,)).eval()
    plain = same.forward_intermediates(pixel_values(), [0], intermediates_only=True)
    assert torch.equal(features(pixel_values())[0], plain[0])


@pytest.mark.slow
def test_fresh_process_without_network_opens_the_folder_by_both_doors(checkpoint_folder: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.safetensors"
    with torch.no_grad():
        save_file({"pooled": open_model(checkpoint_folder)(pixel_values=pixel_values())[0]}, expected)
    code = f"""
import socket

def refuse(*args, **kwargs):
    raise AssertionError("tried to reach the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import grouping_zoo, timm, torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

torch.set_num_threads(1)
folder = {str(checkpoint_folder)!r}
images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    output = AutoModel.from_pretrained(folder)(pixel_values=images)
    pooled = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()(images)
AutoProcessor.from_pretrained(folder)
assert torch.equal(output[0], load_file({str(expected)!r})["pooled"])
assert torch.equal(pooled, output.vision_model_output.pooler_output)
timm.create_model("groupvit_nano_patch4_64")
print("opened")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip().endswith("opened"), done.stderr


def test_feature_extraction_pipeline(checkpoint_folder: Path, transformers_log: pytest.LogCaptureFixture) -> None:
    extract = pipeline("image-feature-extraction", model=str(checkpoint_folder), return_tensors=True)
    feature = extract(photo())
    inputs = AutoImageProcessor.from_pretrained(checkpoint_folder)(photo(), return_tensors="pt")
    with torch.no_grad():
        expected = open_model(checkpoint_folder)(**inputs).image_embeds
    assert torch.allclose(feature, expected, atol=1e-6)
    assert not transformers_log.messages


# --- outputs --------------------------------------------------------------------------------------------------------


def test_requests_that_lack_an_input_are_errors(checkpoint_folder: Path) -> None:
    model, texts = open_model(checkpoint_folder), text_inputs(checkpoint_folder)
    with pytest.raises(ValueError, match="expected input_ids, pixel_values or both"):
        model()
    for wanted in ("return_loss", "output_segmentation"):
        with pytest.raises(ValueError, match="need both input_ids and pixel_values"):
            model(pixel_values=pixel_values(), **{wanted: True})
        with pytest.raises(ValueError, match="need both input_ids and pixel_values"):
            model(**texts, **{wanted: True})
    with pytest.raises(ValueError, match="as many texts as images, got 4 and 2"):
        model(pixel_values=pixel_values(), return_loss=True, **texts)


def test_tuples_hold_the_same_values(checkpoint_folder: Path) -> None:
    model, texts = open_model(checkpoint_folder), text_inputs(checkpoint_folder)
    inputs = dict(pixel_values=pixel_values(4), return_loss=True, output_segmentation=True, **texts)
    with torch.no_grad():
        named, listed = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(listed, tuple)
    assert list(named.keys())[:6] == [
        "loss",
        "logits_per_image",
        "logits_per_text",
        "segmentation_logits",
        "text_embeds",
        "image_embeds",
    ]
    for a, b in zip(named.to_tuple()[:6], listed[:6], strict=True):
        assert torch.equal(a, b)
    assert len(listed) == len(named.keys())


def test_image_processor_resizes_whole_images_and_normalises() -> None:
    processor = ZooGroupViTImageProcessor(size={"height": 30, "width": 20})
    grey = Image.new("RGB", (50, 10), (51, 102, 153))
    for image in (grey, grey.convert("RGBA"), np.asarray(grey)):
        values = processor(image, return_tensors="pt").pixel_values
        assert values.shape == (1, 3, 30, 20)
        for channel, (value, mean, std) in enumerate(
            zip((0.2, 0.4, 0.6), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        ):
            assert torch.allclose(values[0, channel], torch.tensor((value - mean) / std), atol=1e-3)


def test_post_processing_gives_the_best_text_of_every_pixel(checkpoint_folder: Path) -> None:
    inputs = dict(pixel_values=pixel_values(2, 29, 43), **text_inputs(checkpoint_folder))
    output = open_model(checkpoint_folder)(**inputs, output_segmentation=True)
    maps = ZooGroupViTImageProcessor().post_process_semantic_segmentation(output, [(58, 86), (29, 43)])
    assert [tuple(m.shape) for m in maps] == [(58, 86), (29, 43)]
    assert torch.equal(maps[1], output.segmentation_logits[1].argmax(0))
    with pytest.raises(ValueError, match="target_sizes: expected one for each of 2 images, got 1"):
        ZooGroupViTImageProcessor().post_process_semantic_segmentation(output, [(58, 86)])


# --- checkpoints that do not fit ------------------------------------------------------------------------------------


def tamper(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DOORS = {
    "transformers": lambda folder: AutoModel.from_pretrained(folder),
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
}
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def test_missing_text_keys_are_listed(copied: Path) -> None:
    tamper(copied, **{"model.text.norm.weight": None, "model.logit_scale": None})
    with pytest.raises(ValueError, match=r"missing keys: model\.logit_scale, model\.text\.norm\.weight"):
        AutoModel.from_pretrained(copied)


@every_door
def test_truncated_weights_are_an_error(door: Any, copied: Path) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"(?i)safetensors|header|incomplete|buffer"):
        door(copied)


def test_pickled_weights_are_never_executed(copied: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    (copied / "model.safetensors").unlink()
    torch.save({"model.logit_scale": Trap()}, copied / "pytorch_model.bin")
    for door in DOORS.values():
        with pytest.raises(Exception):  # noqa: B017, PT011 - the libraries refuse in their own ways
            door(copied)
    assert not (tmp_path / "executed").exists()


# --- hostile configurations -----------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def trap(copied: Path) -> Path:
    """A file that appears if the Python file in the checkpoint folder is executed."""
    marker = copied.parent / "executed"
    (copied / "modeling_trap.py").write_text(f"open({str(marker)!r}, 'w')\nclass Trap: pass\n")
    return marker


@pytest.mark.parametrize(
    "architecture",
    [
        "groupvit_of_nobody",
        "resnet18",
        "os.system",
        "modeling_trap",
        "../modeling_trap",
        "local-dir:{folder}",
        "hf-hub:nobody/nothing",
        "",
    ],
)
def test_architectures_that_are_none_of_ours_are_refused(architecture: str, copied: Path, trap: Path) -> None:
    edit_config(copied, architecture=architecture.format(folder=copied))
    with pytest.raises(ValueError, match="architecture"):
        AutoModel.from_pretrained(copied)
    assert not trap.exists()


@pytest.mark.parametrize("model_type", ["zoo_groupvit", "model_of_nobody"])
def test_code_beside_the_weights_is_not_executed(model_type: str, copied: Path, trap: Path) -> None:
    code = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor"), "modeling_trap.Trap")
    edit_config(copied, auto_map=code, model_type=model_type)
    if model_type == "zoo_groupvit":
        assert type(AutoModel.from_pretrained(copied, trust_remote_code=False)) is ZooGroupViTModel
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModel.from_pretrained(copied, trust_remote_code=False)
    assert not trap.exists()


@pytest.mark.parametrize(
    "changes",
    [
        dict(model_args="all"),
        dict(model_args={"nonsense": 1}),
        dict(text_args=[1]),
        dict(text_args={"nonsense": 1}),
        dict(projection_dim="wide"),
    ],
)
def test_fields_of_the_wrong_type_are_refused(changes: dict[str, Any], copied: Path) -> None:
    edit_config(copied, **changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        AutoModel.from_pretrained(copied)
