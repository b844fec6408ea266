"""VT-ResNet's and VT-FPN's transformers classes, beyond what all image families promise."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from grouping_zoo import VTResNetForSemanticSegmentation
from grouping_zoo.hf.vision import publish
from zoo import SMALL, with_random_weights

VT_RESNET, VT_FPN = SMALL["vt_resnet_nano"], SMALL["vt_fpn_nano"]
images = VT_RESNET.images


@pytest.mark.parametrize("arguments", [{}, dict(num_modules=1), dict(projector=False)], ids=str)
@torch.no_grad()
def test_segmentation_is_a_vt_pyramid_on_the_maps(arguments: dict[str, Any], tmp_path: Path) -> None:
    publish(VT_RESNET.create(0, **arguments), tmp_path, "")
    model = with_random_weights(VTResNetForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5).eval())
    head, size = model.segmentation_head, (70, 45)
    maps = model.model.forward_intermediates(images(size=size), intermediates_only=True)[1:]
    assert len(maps) == (3 if arguments else 4)
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
    config = AutoConfig.for_model("vt_resnet", architecture="vt_resnet_nano", model_args=VT_RESNET.kwargs, num_labels=2)
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


@torch.no_grad()
def test_what_a_checkpoint_does_not_hold_is_made_again(tmp_path: Path) -> None:
    # Swin's tables of positions are buffers that no file keeps.
    network = VT_FPN.create(
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
    publish(VT_FPN.create(), tmp_path, "")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_args": config["model_args"] | changes}))
    with pytest.raises(ValueError, match=message):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
