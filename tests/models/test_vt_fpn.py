"""VT-FPN and the plain FPN: the paper's multiply-adds, plain versions of the pyramids, any backbone and size."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._hub import save_for_hf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grouping_zoo.models.vt_fpn import VTNeck
from zoo import SMALL, with_random_weights

NAMES = {"vt": "vt_fpn_resnet50", "fpn": "semantic_fpn_resnet50"}
CASES = {"vt": "vt_fpn_nano", "fpn": "semantic_fpn_nano"}
BACKBONE = SMALL["vt_fpn_nano"].kwargs["backbone_args"]
every_neck = pytest.mark.parametrize("neck", NAMES)


images = SMALL["vt_fpn_nano"].images


def small_model(neck: str, /, **kwargs: Any) -> Any:
    """In evaluation mode, always with the same weights, none of them zero."""
    return SMALL[CASES[neck]].create(**kwargs)


# --- the paper's counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neck", "size", "low", "high"),
    [
        ("vt", (800, 1216), 8.0, 8.5),
        ("vt", (473, 473), 1.9, 2.0),
        ("fpn", (800, 1216), 54.8, 55.4),
        ("fpn", (473, 473), 12.7, 13.0),
    ],
)
def test_multiply_adds_of_the_neck_are_the_papers(neck: str, size: tuple[int, int], low: float, high: float) -> None:
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(NAMES[neck]).eval()
        maps = model._levels(torch.empty(1, 3, *size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.neck(maps)
    assert low <= counter.get_total_flops() / 2e9 <= high


# --- the two pyramids, written out ----------------------------------------------------------------------------------


@torch.no_grad()
def test_plain_neck_is_a_feature_pyramid() -> None:
    model, x = small_model("fpn"), images()
    neck, maps = model.neck, model._levels(x)
    found = neck(maps)
    above: Tensor | None = None
    for level in (3, 2, 1, 0):
        merged = neck.laterals[level](maps[level])
        if above is not None:
            for r in range(merged.shape[2]):
                for c in range(merged.shape[3]):
                    merged[:, :, r, c] += above[:, :, r // 2, c // 2]
        above = merged
        assert torch.allclose(found[level], neck.outputs[level](merged), atol=1e-5)


@torch.no_grad()
def test_vt_neck_relates_the_tokens_of_all_levels_and_projects_each_levels_own() -> None:
    model, x = small_model("vt"), images()
    neck, maps = model.neck, model._levels(x)
    found = neck.forward_levels(maps)
    laterals = [neck.laterals[i](maps[i]) for i in range(4)]
    tokens = torch.cat([neck.tokenizers[i](laterals[i])[0] for i in range(4)], dim=1)
    assert tokens.shape == (2, 12, 16)
    related = neck.transformer(tokens)
    for i in range(4):
        own = related[:, 3 * i : 3 * i + 3]
        expected, assignment = neck.projectors[i](laterals[i], own)
        assert torch.allclose(found[i].features, neck.norms[i](expected), atol=1e-5)
        assert torch.allclose(found[i].assignment, assignment, atol=1e-6)
        assert torch.allclose(found[i].tokens, own, atol=1e-6)
    maps[3] = maps[3] + 1
    assert not torch.allclose(neck(maps)[0], found[0].features), "the levels know of each other"


def test_a_share_of_the_tokens_gradient_reaches_the_levels() -> None:
    gradients = []
    for share in (0.0, 0.25, 1.0):
        model = small_model("vt", token_gradient=share)
        maps = [level.detach().requires_grad_() for level in model._levels(images())]
        levels = model.neck.forward_levels(maps)
        sum(level.tokens.square().sum() for level in levels).backward(retain_graph=True)
        gradients.append(maps[0].grad.clone())
        assert torch.equal(levels[0].features, small_model("vt").neck(maps)[0]), "what is computed stays"
    assert gradients[0].count_nonzero() == 0
    assert gradients[2].count_nonzero() > 0
    torch.testing.assert_close(gradients[1], 0.25 * gradients[2])


@every_neck
@torch.no_grad()
def test_head_convolves_and_upsamples_in_turns(neck: str) -> None:
    model = small_model(neck)
    maps = model.neck(model._levels(images()))
    branches = model.head.branches
    assert [len(branch) for branch in branches] == [1, 1, 2, 3]
    expected = branches[0][0](maps[0])
    for level in (1, 2, 3):
        x = maps[level]
        for convolution in branches[level]:
            x = F.interpolate(convolution(x), scale_factor=2, mode="bilinear", align_corners=False)
        expected = expected + x
    assert torch.allclose(model.head(maps), expected, atol=1e-5)


# --- sizes, backbones, weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "levels", "arguments"),
    [
        ("vt_resnet18", (1, 2, 3, 4), dict(BACKBONE, layers=(1, 1, 1), channels=(4, 8, 12), map_dim=16, token_dim=16)),
        ("convnext_atto", (0, 1, 2, 3), dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))),
        ("swin_tiny_patch4_window7_224", (0, 3), dict(embed_dim=12, depths=(1, 1, 1, 1), img_size=64, window_size=2)),
    ],
)
@every_neck
@torch.no_grad()
def test_other_backbones(neck: str, backbone: str, levels: tuple[int, ...], arguments: dict[str, Any]) -> None:
    model = small_model(neck, backbone=backbone, backbone_args=arguments, levels=levels)
    assert model(images()).shape == (2, 5, 16, 16)
    assert model(images()).isfinite().all()


@every_neck
@torch.no_grad()
def test_backbone_starts_from_timms_weights(neck: str, tmp_path: Path) -> None:
    source = with_random_weights(timm.create_model("resnet18", **BACKBONE, num_classes=7).eval())
    save_for_hf(source, str(tmp_path), model_args=BACKBONE)
    expected = source.forward_intermediates(images(), indices=[1, 2, 3, 4], intermediates_only=True)
    for given in (source.state_dict(), tmp_path):
        model = SMALL[CASES[neck]].build(pretrained_backbone=given)
        assert all(torch.equal(a, b) for a, b in zip(model._levels(images()), expected, strict=True))
    weights = {k: v for k, v in source.state_dict().items() if k != "conv1.0.weight"}
    with pytest.raises(ValueError, match=r"expected all \d+ weights .*, where 1 are missing"):
        small_model(neck, pretrained_backbone=weights)
    model = small_model(neck, pretrained_backbone=str(tmp_path))
    save_for_hf(model, str(tmp_path / "saved"))
    opened = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(opened(images()), model(images()))


# --- grouping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (33, 97)])
@torch.no_grad()
def test_grouping_is_the_assignment_of_a_level(size: tuple[int, int]) -> None:
    model, x = small_model("vt"), images(size=size)
    levels = model.neck.forward_levels(model._levels(x))
    for level in range(4):
        grouping = model.forward_grouping(x, level)
        assert grouping.grid == tuple(math.ceil(side / 4 / 2**level) for side in size)
        assert torch.equal(grouping.assignments[0][:, 0], levels[level].assignment)
        assert torch.equal(grouping.tokens[0], levels[level].tokens)
        assert torch.allclose(grouping.assignments[0].sum(dim=3), torch.ones(()), atol=1e-5)
        attention = model.token_attention(x, level)
        assert attention.shape == (2, 3, *grouping.grid)
        assert torch.allclose(attention.sum(dim=(2, 3)), torch.ones(()), atol=1e-5)
    assert model.token_attention(x, size=size).shape == (2, 3, *size)
    grouping, attention = model.forward_grouping_with_attention(x, 1)
    assert torch.equal(attention, model.token_attention(x))
    assert torch.equal(grouping.assignments[0][:, 0], levels[1].assignment)
    with pytest.raises(ValueError, match="level: expected -4 to 3, got 4"):
        model.forward_grouping(x, 4)
    with pytest.raises(ValueError, match="neck: expected 'vt' for a grouping, got 'fpn'"):
        small_model("fpn").forward_grouping(x)


@every_neck
def test_bad_settings_are_refused(neck: str) -> None:
    with pytest.raises(ValueError, match="neck: expected 'vt' or 'fpn', got 'bifpn'"):
        small_model(neck, neck="bifpn")
    for name in ("num_tokens", "token_dim", "dim", "head_dim"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            small_model(neck, **{name: 0})


@pytest.mark.parametrize("name", timm.list_models(module="vt_fpn"))
def test_the_name_tells_the_neck(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert isinstance(model.neck, VTNeck) == name.startswith("vt_fpn")
