"""VT-ResNet's and VT-FPN's transformers classes, beyond what all image families promise."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from grouping_zoo import VTFPNForSemanticSegmentation, VTResNetForSemanticSegmentation, VTResNetModel, open_checkpoint
from grouping_zoo.hf.vision import publish
from zoo import with_random_weights

SMALL: dict[str, Any] = dict(
    layers=(1, 1), channels=(8, 12), stem_type="deep", stem_width=4, map_dim=24, num_tokens=6, token_dim=32
)
BACKBONE: dict[str, Any] = dict(layers=(1, 1, 1, 1), channels=(4, 8, 12, 16), stem_type="deep", stem_width=4)
PYRAMID: dict[str, Any] = dict(
    backbone="resnet18", backbone_args=BACKBONE, dim=8, num_tokens=3, token_dim=16, head_dim=12
)
NECKS = {"vt": "vt_fpn_nano", "fpn": "semantic_fpn_nano"}
CLASSES = ["background", "cat", "cup", "moon", "star"]
every_neck = pytest.mark.parametrize("neck", NECKS)


def vt_resnet(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return with_random_weights(timm.create_model("vt_resnet_nano", **{**SMALL, **kwargs}).eval())


def pyramid(neck: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return with_random_weights(timm.create_model(NECKS[neck], **{**PYRAMID, "num_classes": 5, **kwargs}).eval())


def images(batch_size: int = 2, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(1))


# --- VT-ResNet ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_are_the_feature_maps_and_the_tokens(tmp_path: Path) -> None:
    network = vt_resnet(num_classes=0)
    publish(network, tmp_path, "")
    output = VTResNetModel.from_pretrained(tmp_path)(images(), output_hidden_states=True)
    *maps, tokens = output.hidden_states
    for found, expected in zip(maps, network.forward_intermediates(images(), intermediates_only=True), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(tokens, network.forward_features(images()))
    assert output.grouping.labels(-1, (64, 64)).shape == (2, 64, 64)


@pytest.mark.parametrize("arguments", [{}, dict(num_modules=1), dict(projector=False)], ids=str)
@torch.no_grad()
def test_segmentation_is_a_vt_pyramid_on_the_maps(arguments: dict[str, Any], tmp_path: Path) -> None:
    publish(vt_resnet(num_classes=0, **arguments), tmp_path, "")
    model = with_random_weights(VTResNetForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5).eval())
    head, size = model.segmentation_head, (70, 45)
    maps = model.model.forward_intermediates(images(size=size), intermediates_only=True)[1:]
    assert len(maps) == (2 if arguments else 3)
    merged = head.head([level.features for level in head.neck.forward_levels(maps)])
    assert merged.shape[-2:] == maps[0].shape[-2:]
    expected = F.interpolate(head.classifier(merged), size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(model(images(size=size)).logits, expected, atol=1e-5)


def test_segmentation_has_the_papers_widths() -> None:
    config = AutoConfig.for_model("vt_resnet", architecture="vt_resnet50", num_labels=3)
    with torch.device("meta"):
        head = AutoModelForSemanticSegmentation.from_config(config).segmentation_head
    assert [tokenizer.num_tokens for tokenizer in head.neck.tokenizers] == [8] * 4
    assert [lateral.conv.out_channels for lateral in head.neck.laterals] == [256] * 4
    assert head.neck.transformer.key.in_features == 1024
    assert head.classifier.in_channels == 128


def test_segmentation_learns() -> None:
    config = AutoConfig.for_model("vt_resnet", architecture="vt_resnet_nano", model_args=SMALL, num_labels=2)
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(config).train()
    cells = torch.arange(64) // 16
    labels = torch.stack([cells[:, None] + cells, cells[:, None] * cells]) % 2  # (B, H, W) squares of 16 pixels
    pixels = images() + 3 * labels[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss = model(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# --- VT-FPN ---------------------------------------------------------------------------------------------------------


@every_neck
@torch.no_grad()
def test_a_published_pyramid_opens_by_both_doors(neck: str, tmp_path: Path) -> None:
    network = pyramid(neck)
    publish(network, tmp_path, "# card\n", class_names=CLASSES)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}
    x = images(size=(70, 45))
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), network(x))
    model, processor = open_checkpoint(tmp_path)
    assert isinstance(model, VTFPNForSemanticSegmentation)
    output = model(x)
    expected = F.interpolate(network(x), size=(70, 45), mode="bilinear", align_corners=False)
    assert torch.equal(output.logits, expected)
    assert list(model.config.id2label.values()) == CLASSES
    photo = Image.new("RGB", (90, 50), "red")
    assert processor(photo, return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)
    predicted = processor.post_process_semantic_segmentation(model(**processor(photo, return_tensors="pt")), [(50, 90)])
    answers = pipeline("image-segmentation", model=str(tmp_path))(photo)
    assert {answer["label"] for answer in answers} == {CLASSES[i] for i in predicted[0].unique()}


@every_neck
@torch.no_grad()
def test_outputs_of_a_pyramid(neck: str, tmp_path: Path) -> None:
    network = pyramid(neck)
    publish(network, tmp_path, "")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    labels[:, :20] = 255
    output = model(images(), labels=labels, output_hidden_states=True, output_attentions=True)
    expected = F.cross_entropy(output.logits.permute(0, 2, 3, 1)[labels != 255], labels[labels != 255])
    assert torch.allclose(output.loss, expected, atol=1e-5)
    maps = network.forward_intermediates(images(), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(output.hidden_states[:-1], maps, strict=True))
    assert torch.equal(output.hidden_states[-1], network.forward_features(images()))
    plain = model(images())
    assert plain.hidden_states is plain.attentions is plain.loss is None
    if neck == "fpn":
        assert output.grouping is output.attentions is None
    else:
        grouping = network.forward_grouping(images())
        assert torch.equal(output.attentions[0], grouping.assignments[0])
        assert torch.equal(output.grouping.tokens[0], grouping.tokens[0])


@every_neck
@torch.no_grad()
def test_another_number_of_labels_makes_a_fresh_classifier(neck: str, tmp_path: Path) -> None:
    publish(pyramid(neck), tmp_path / "five", "", class_names=CLASSES)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "five", num_labels=7)
    assert model(images()).logits.shape == (2, 7, 64, 64)
    assert model.model.classifier.weight.isfinite().all()
    assert model.model.classifier.weight.std() > 0
    model.save_pretrained(tmp_path / "seven")
    network = timm.create_model(f"local-dir:{tmp_path / 'seven'}", pretrained=True).eval()
    assert torch.equal(network(images()), model.model(images()))


def test_the_backbone_starts_as_timm_starts_it() -> None:
    arguments = PYRAMID | dict(num_classes=5, backbone_args=BACKBONE | dict(channels=(16, 32, 48, 64)))
    config = AutoConfig.for_model("vt_fpn", architecture="vt_fpn_nano", model_args=arguments, num_labels=5)
    torch.manual_seed(0)
    wrapped = AutoModelForSemanticSegmentation.from_config(config).model.state_dict()
    torch.manual_seed(1)
    for name, value in timm.create_model("vt_fpn_nano", **arguments).state_dict().items():
        if value.numel() >= 500 and value.is_floating_point():
            assert wrapped[name].std() == pytest.approx(float(value.std()), rel=0.2), name


@torch.no_grad()
def test_what_a_checkpoint_does_not_hold_is_made_again(tmp_path: Path) -> None:
    # Swin's tables of positions are buffers that no file keeps.
    network = pyramid(
        "vt",
        backbone="swin_tiny_patch4_window7_224",
        backbone_args=dict(img_size=56, embed_dim=12, depths=(1, 1), num_heads=(1, 1)),
        levels=(0, 1),
    )
    publish(network, tmp_path, "")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(model.model(images(size=(56, 56))), network(images(size=(56, 56))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(backbone="local-dir:/somewhere"), "backbone: expected the name of one of timm's models"),
        (dict(backbone="hf-hub:nobody/nothing"), "backbone: expected the name of one of timm's models"),
        (dict(backbone_args={"pretrained": True}), "backbone_args: pretrained would load weights"),
        (dict(backbone_args={"checkpoint_path": "weights.pth"}), "backbone_args: checkpoint_path would load weights"),
    ],
)
def test_settings_that_reach_beyond_the_network_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    publish(pyramid("vt"), tmp_path, "")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_args": config["model_args"] | changes}))
    with pytest.raises(ValueError, match=message):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    publish(vt_resnet(num_classes=5), tmp_path, "")
    with pytest.raises(ValueError, match=r"missing keys: .*vt_modules\.2\."):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_modules=3)
    with pytest.raises(ValueError, match=r"leftover keys: .*vt_modules\.1\."):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_modules=1)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).num_classes == 3
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.num_labels == 5
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size == {"height": 64, "width": 64}
