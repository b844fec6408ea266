"""One checkpoint folder, both front doors."""

import copy
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
from torch import Tensor, nn
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
from grouping_zoo.models.image_text import ImageTextModel
from two_towers import CAPTIONS, tiny_config

VISION_KEY = "model.vision.stages.1.grouping.assignment.k_proj.weight"


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


def test_both_doors_give_the_same_numbers(checkpoint_folder: Path) -> None:
    model = open_model(checkpoint_folder)
    vision = timm.create_model(f"local-dir:{checkpoint_folder}", pretrained=True).eval()
    assert not model.training
    with torch.no_grad():
        for size in ((32, 32), (29, 43)):
            output = model(pixel_values=pixel_values(2, *size))
            assert torch.equal(vision(pixel_values(2, *size)), output.vision_model_output.pooler_output)
            theirs, ours = vision.forward_grouping(pixel_values(2, *size)), output.grouping
            assert all(torch.equal(a, b) for a, b in zip(theirs.assignments, ours.assignments, strict=True))


def test_both_doors_describe_the_same_preprocessing(checkpoint_folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(checkpoint_folder)
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{checkpoint_folder}"))
    assert tuple(data["mean"]) == tuple(processor.image_mean)
    assert tuple(data["std"]) == tuple(processor.image_std)
    assert list(data["input_size"][1:]) == [processor.size["height"], processor.size["width"]]


def test_timm_door_takes_other_arguments(checkpoint_folder: Path) -> None:
    name = f"local-dir:{checkpoint_folder}"
    with torch.no_grad():
        assert timm.create_model(name, pretrained=True, num_classes=4)(pixel_values()).shape == (2, 4)
        other = timm.create_model(name, pretrained=True, img_size=64).eval()
        same = timm.create_model(name, pretrained=True).eval()
        assert other.pos_embed.shape[1] == 4 * same.pos_embed.shape[1]
        assert torch.allclose(other(pixel_values(2, 64, 64)), same(pixel_values(2, 64, 64)), atol=1e-5)
        features = timm.create_model(name, pretrained=True, features_only=True).eval()(pixel_values())
        plain = same.forward_intermediates(pixel_values(), intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features, plain, strict=True))
        grey = timm.create_model(name, pretrained=True, in_chans=1).eval()
        assert grey(pixel_values()[:, :1]).isfinite().all()


def test_pruned_features_load_too(checkpoint_folder: Path) -> None:
    name = f"local-dir:{checkpoint_folder}"
    model = timm.create_model(name, pretrained=True, features_only=True, out_indices=(0,)).eval()
    whole = timm.create_model(name, pretrained=True, features_only=True).eval()
    with torch.no_grad():
        assert torch.equal(model(pixel_values())[0], whole(pixel_values())[0])


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_save_and_load_are_bit_equal_and_write_no_pickle(
    shard: str | None, checkpoint_folder: Path, tmp_path: Path
) -> None:
    model = open_model(checkpoint_folder)
    model.save_pretrained(tmp_path, **({} if shard is None else dict(max_shard_size=shard)))
    weights = [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".md")]
    assert {path.suffix for path in weights} == {".safetensors"}
    assert (len(weights) > 1) == (shard is not None)
    again = open_model(tmp_path)
    inputs = dict(pixel_values=pixel_values(), **text_inputs(checkpoint_folder))
    with torch.no_grad():
        before, after = model(**inputs), again(**inputs)
    assert torch.equal(before.logits_per_image, after.logits_per_image)
    assert again.state_dict().keys() == model.state_dict().keys()


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


# --- pipelines ------------------------------------------------------------------------------------------------------


def test_zero_shot_pipeline(checkpoint_folder: Path, transformers_log: pytest.LogCaptureFixture) -> None:
    classify = pipeline("zero-shot-image-classification", model=str(checkpoint_folder))
    labels = ["cat", "coffee cup", "rocket"]
    found = classify([photo(), photo(20, 20)], candidate_labels=labels, hypothesis_template="a photo of a {}")
    model, processor = open_model(checkpoint_folder), AutoProcessor.from_pretrained(checkpoint_folder)
    for image, answers in zip([photo(), photo(20, 20)], found, strict=True):
        inputs = processor(
            images=image, text=[f"a photo of a {x}" for x in labels], padding="max_length", return_tensors="pt"
        )
        with torch.no_grad():
            expected = model(**inputs).logits_per_image.softmax(-1)[0]
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)
    assert not transformers_log.messages


def test_feature_extraction_pipeline(checkpoint_folder: Path, transformers_log: pytest.LogCaptureFixture) -> None:
    extract = pipeline("image-feature-extraction", model=str(checkpoint_folder), return_tensors=True)
    feature = extract(photo())
    inputs = AutoImageProcessor.from_pretrained(checkpoint_folder)(photo(), return_tensors="pt")
    with torch.no_grad():
        expected = open_model(checkpoint_folder)(**inputs).image_embeds
    assert torch.allclose(feature, expected, atol=1e-6)
    assert not transformers_log.messages


# --- outputs --------------------------------------------------------------------------------------------------------


def test_images_or_texts_alone(checkpoint_folder: Path) -> None:
    model, texts = open_model(checkpoint_folder), text_inputs(checkpoint_folder)
    with torch.no_grad():
        both = model(pixel_values=pixel_values(), **texts)
        image, text = model(pixel_values=pixel_values()), model(**texts)
    assert torch.equal(image.image_embeds, both.image_embeds)
    assert torch.equal(image["image_embeds"], image[0])
    assert torch.equal(text.text_embeds, both.text_embeds)
    assert torch.equal(text["text_embeds"], text[0])
    assert image.text_embeds is image.logits_per_image is image.loss is text.image_embeds is text.grouping is None
    assert both.logits_per_image.shape == (2, len(CAPTIONS))
    assert torch.equal(both.logits_per_text, both.logits_per_image.T)
    assert torch.allclose(both.image_embeds.norm(dim=-1), torch.ones(2), atol=1e-6)
    features = model.get_image_features(pixel_values()).pooler_output
    assert torch.allclose(nn.functional.normalize(features, dim=-1), both.image_embeds, atol=1e-6)
    features = model.get_text_features(**texts).pooler_output
    assert torch.allclose(nn.functional.normalize(features, dim=-1), both.text_embeds, atol=1e-6)


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


def test_hidden_states_and_attentions_are_given_when_asked_for(checkpoint_folder: Path) -> None:
    model, texts = open_model(checkpoint_folder), text_inputs(checkpoint_folder)
    with torch.no_grad():
        plain = model(pixel_values=pixel_values(), **texts)
        asked = model(pixel_values=pixel_values(), output_attentions=True, output_hidden_states=True, **texts)
        # transformers refuses to hold this setting beside fused attention.
        switches = dict(output_attentions=True, output_hidden_states=True, attn_implementation="eager")
        by_config = open_model(checkpoint_folder, **switches)(pixel_values=pixel_values(), **texts)
    assert plain.vision_model_output.attentions is plain.vision_model_output.hidden_states is None
    for output in (asked, by_config):
        vision = output.vision_model_output
        assert [a.shape for a in vision.attentions] == [(2, 6, 64), (2, 4, 6)]
        assert all(torch.allclose(a.sum(1), torch.ones(()), atol=1e-5) for a in vision.attentions)
        assert [h.shape[1] for h in vision.hidden_states] == [64, 6, 4, 4]
        assert torch.equal(vision.hidden_states[-1], vision.last_hidden_state)


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


def test_segmentation_is_the_similarity_of_each_pixels_groups_to_each_text(checkpoint_folder: Path) -> None:
    model, texts = open_model(checkpoint_folder), text_inputs(checkpoint_folder)
    with torch.no_grad():
        output = model(pixel_values=pixel_values(2, 29, 43), output_segmentation=True, **texts)
        assert output.segmentation_logits.shape == (2, 4, 29, 43)
        segments = nn.functional.normalize(
            model.model.image_projector(output.vision_model_output.last_hidden_state), dim=-1
        )
        groups = output.grouping.probabilities(-1, (29, 43))
        for text in range(4):
            similarity = segments @ output.text_embeds[text] * model.model.scale() ** 2
            expected = (groups * similarity[:, :, None, None]).sum(1)
            assert torch.allclose(output.segmentation_logits[:, text], expected, atol=1e-3)
    maps = ZooGroupViTImageProcessor().post_process_semantic_segmentation(output, [(58, 86), (29, 43)])
    assert [tuple(m.shape) for m in maps] == [(58, 86), (29, 43)]
    assert torch.equal(maps[1], output.segmentation_logits[1].argmax(0))
    with pytest.raises(ValueError, match="target_sizes: expected one for each of 2 images, got 1"):
        ZooGroupViTImageProcessor().post_process_semantic_segmentation(output, [(58, 86)])


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


# --- training -------------------------------------------------------------------------------------------------------


def test_loss_trains_every_parameter(checkpoint_folder: Path) -> None:
    model = open_model(checkpoint_folder).train()
    # Of each tied ending one feature would be constant under the batch norm; the captions differ.
    loss = model(pixel_values=pixel_values(4), return_loss=True, **text_inputs(checkpoint_folder)).loss
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["model.multi_label_logit_scale"], "only the multi-label loss uses the second temperature"
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradient_checkpointing_gives_equal_gradients(checkpoint_folder: Path) -> None:
    gradients = []
    for enable in (False, True):
        model = open_model(checkpoint_folder).train()
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == enable
        torch.manual_seed(0)
        inputs = dict(pixel_values=pixel_values(4), return_loss=True, **text_inputs(checkpoint_folder))
        model(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[n], recomputed[n], rtol=1e-4, atol=1e-7) for n in plain)


def test_initialisation_is_the_networks_own() -> None:
    config = tiny_config(projection_dim=64, projection_hidden_dim=128)
    torch.manual_seed(0)
    wrapped = ZooGroupViTModel(config).model.state_dict()
    torch.manual_seed(1)
    plain = ImageTextModel(
        config.architecture, config.model_args, config.text_args, config.projection_dim, config.projection_hidden_dim
    ).state_dict()
    for name, value in plain.items():
        if not value.is_floating_point():
            continue
        if value.numel() >= 500 and value.std() > 0:
            assert wrapped[name].std() == pytest.approx(float(value.std()), rel=0.2), name
        elif value.numel() > 1 and value.std() == 0:
            assert torch.equal(wrapped[name], value), name
    assert wrapped["logit_scale"] == plain["logit_scale"]


def test_loading_in_half_precision(checkpoint_folder: Path) -> None:
    model = open_model(checkpoint_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        output = model(
            pixel_values=pixel_values().to(torch.bfloat16), output_segmentation=True, **text_inputs(checkpoint_folder)
        )
        exact = open_model(checkpoint_folder)(**text_inputs(checkpoint_folder))
    assert output.logits_per_image.isfinite().all()
    assert output.segmentation_logits.isfinite().all()
    assert torch.cosine_similarity(output.text_embeds.float(), exact.text_embeds).min() > 0.99


def test_copies_share_nothing(checkpoint_folder: Path) -> None:
    model = open_model(checkpoint_folder)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = copied(pixel_values=pixel_values()).image_embeds
        model.model.vision.norm.weight.zero_()
        assert torch.equal(copied(pixel_values=pixel_values()).image_embeds, before)


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


@every_door
def test_missing_keys_are_listed(door: Any, copied: Path) -> None:
    tamper(copied, **{VISION_KEY: None, "model.vision.norm.bias": None})
    with pytest.raises(ValueError, match="missing keys") as error:
        door(copied)
    for key in (VISION_KEY, "model.vision.norm.bias"):
        assert key.removeprefix("model.vision.") in str(error.value)


@every_door
def test_leftover_keys_are_listed(door: Any, copied: Path) -> None:
    tamper(copied, **{"model.vision.stages.7.stranger": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"leftover keys: .*stages\.7\.stranger"):
        door(copied)


@every_door
def test_misshapen_keys_are_listed(door: Any, copied: Path) -> None:
    tamper(copied, **{VISION_KEY: torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=VISION_KEY.removeprefix("model.vision.").replace(".", r"\.")):
        door(copied)


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


@pytest.mark.parametrize(
    "model_args",
    [
        {"checkpoint_path": "modeling_trap.py"},
        {"pretrained": True},
        {"pretrained_cfg_overlay": {"file": "modeling_trap.py"}},
        {"pretrained_cfg": {"hf_hub_id": "nobody/nothing"}, "pretrained": True},
        {"nonsense": 1},
    ],
)
def test_model_arguments_that_reach_beyond_the_network_are_refused(
    model_args: dict[str, Any], copied: Path, trap: Path
) -> None:
    config = json.loads((copied / "config.json").read_text())
    edit_config(copied, model_args=config["model_args"] | model_args)
    with pytest.raises((ValueError, TypeError), match=next(iter(model_args))):
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
    [dict(model_args="all"), dict(text_args=[1]), dict(projection_dim="wide"), dict(text_args={"nonsense": 1})],
)
def test_fields_of_the_wrong_type_are_refused(changes: dict[str, Any], copied: Path) -> None:
    edit_config(copied, **changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        AutoModel.from_pretrained(copied)
