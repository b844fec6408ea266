import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from golden_weights import GOLDEN, made_up_weights, photo
from grouping_zoo.models.checkpoint import check_keys
from grouping_zoo.models.groupvit_checkpoint import checkpoint_filter_fn, convert_state_dict, detect_format
from grouping_zoo.models.image_text import ImageTextModel

SMALL = dict(embed_dim=32, num_heads=2, depths=(1, 1), num_group_tokens=(5, 3), num_output_groups=(6, 4))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A checkpoint in the original format, written and read as such files are, without executing a pickle."""
    path = tmp_path_factory.mktemp("original") / "group_vit_gcc_yfcc.pth"
    torch.save({"model": made_up_weights("groupvit_gcc_yfcc.json"), "epoch": 30}, path)
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "groupvit_astronaut.npz", allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# --- official figures -----------------------------------------------------------------------------------------------


def test_official_figures_through_timm(original: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    model = timm.create_model("groupvit_small_patch16_224").eval()
    model.load_state_dict(checkpoint_filter_fn(original, model), strict=True)
    with torch.no_grad():
        pooled, grouping = model(photo("astronaut", 224)), model.forward_grouping(photo("astronaut", 224))
    assert largest_difference(pooled, golden["astronaut_pooled"]) <= 1e-4
    groups = grouping.probabilities(-1, (224, 224)).argmax(1)[0]
    assert (groups == golden["astronaut_groupmap"]).float().mean() >= 0.999
    assert groups.unique().numel() > 1, "one group over the whole photo would prove nothing"


def test_official_figures_through_both_towers(original: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    model = ImageTextModel().eval()
    model.load_state_dict(convert_state_dict(original), strict=True)
    with torch.no_grad():
        pooled, embedding = model.vision(photo("astronaut", 224)), model.encode_image(photo("astronaut", 224))
        groups = model.forward_grouping(photo("astronaut", 224)).probabilities(-1, (224, 224)).argmax(1)[0]
    assert largest_difference(pooled, golden["astronaut_pooled"]) <= 1e-4
    assert largest_difference(embedding, golden["astronaut_embed"]) <= 1e-4
    assert (groups == golden["astronaut_groupmap"]).float().mean() >= 0.999


def test_timm_opens_an_original_file(original: dict[str, Tensor], golden: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": original}, tmp_path / "original.pth")
    overlay = dict(file=str(tmp_path / "original.pth"))
    model = timm.create_model("groupvit_small_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        assert largest_difference(model(photo("astronaut", 224)), golden["astronaut_pooled"]) <= 1e-4


# --- keys -----------------------------------------------------------------------------------------------------------


def test_every_official_key_lands_on_its_own_parameter(original: dict[str, Tensor]) -> None:
    converted = convert_state_dict(original)
    assert len(converted) == len(original)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ImageTextModel().state_dict().items()}


def test_converting_keeps_the_values(original: dict[str, Tensor]) -> None:
    def total(tensors: dict[str, Tensor]) -> float:
        return float(sum(t.double().square().sum() for t in tensors.values()))

    assert total(convert_state_dict(original)) == pytest.approx(total(original), rel=1e-12)


def test_formats_are_told_apart(original: dict[str, Tensor]) -> None:
    assert detect_format(original) == "original"
    small = ImageTextModel("groupvit_small_patch16_224", dict(SMALL, img_size=32, patch_size=8), projection_dim=8)
    assert detect_format(small.state_dict()) == "zoo"
    assert detect_format({f"model.{key}": 0 for key in small.state_dict()}) == "zoo"
    assert detect_format(small.vision.state_dict()) == "timm"
    with pytest.raises(ValueError, match="no key of a GroupViT checkpoint"):
        detect_format(timm.create_model("resnet18").state_dict())
    with pytest.raises(ValueError, match="no key of a GroupViT checkpoint"):
        detect_format({})


def test_a_key_no_rule_maps_is_an_error_that_names_it(original: dict[str, Tensor]) -> None:
    stranger = {"img_encoder.layers.0.blocks.0.attn.rel_pos": torch.zeros(1), "momentum_queue": torch.zeros(1)}
    with pytest.raises(ValueError, match="leftover keys") as error:
        convert_state_dict(original | stranger)
    assert all(key in str(error.value) for key in stranger)


# --- timm's hook ----------------------------------------------------------------------------------------------------


def small_vision(**kwargs: object) -> torch.nn.Module:
    return timm.create_model("groupvit_small_patch16_224", **{**SMALL, "img_size": 32, "patch_size": 8, **kwargs})


@pytest.mark.parametrize("key", ["stages.1.grouping.assignment.k_proj.weight", "pos_embed", "norm.bias"])
def test_filter_lists_missing_keys(key: str) -> None:
    model = small_vision()
    state_dict = model.state_dict()
    del state_dict[key]
    with pytest.raises(ValueError, match=f"missing keys: {re.escape(key)}"):
        checkpoint_filter_fn(state_dict, model)


def test_filter_lists_leftover_keys() -> None:
    model = small_vision()
    with pytest.raises(ValueError, match=r"leftover keys: stages\.0\.momentum, stages\.7\.norm\.weight"):
        checkpoint_filter_fn(
            model.state_dict() | {"stages.7.norm.weight": torch.zeros(1), "stages.0.momentum": torch.zeros(1)}, model
        )


def test_a_checkpoint_of_other_depth_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"leftover keys: stages\.0\.blocks\.1\."):
        checkpoint_filter_fn(small_vision(depths=(2, 1)).state_dict(), small_vision())


def test_a_checkpoint_of_other_width_is_an_error(tmp_path: Path) -> None:
    torch.save(small_vision(embed_dim=64).state_dict(), tmp_path / "wide.pth")
    with pytest.raises((ValueError, RuntimeError), match=r"pos_embed|size mismatch"):
        small_vision(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "wide.pth")))


def test_filter_takes_the_vision_tower_of_two_towers() -> None:
    towers = ImageTextModel("groupvit_small_patch16_224", dict(SMALL, img_size=32, patch_size=8), projection_dim=8)
    model = small_vision()
    for prefix in ("", "model."):
        state_dict = {prefix + key: value for key, value in towers.state_dict().items()}
        model.load_state_dict(checkpoint_filter_fn(state_dict, model), strict=True)
        for key, value in model.state_dict().items():
            assert torch.equal(value, towers.vision.state_dict()[key])


def test_filter_resizes_the_position_embedding_bicubically() -> None:
    source, target = small_vision(), small_vision(img_size=(48, 24))
    filtered = checkpoint_filter_fn(source.state_dict(), target)
    expected = torch.nn.functional.interpolate(
        source.pos_embed.unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=(6, 3), mode="bicubic", align_corners=False
    )
    assert torch.allclose(filtered["pos_embed"], expected.flatten(2).transpose(1, 2), atol=1e-6)
    target.load_state_dict(filtered, strict=True)


def test_filter_keeps_the_head_that_fits_and_the_models_own_where_there_is_none() -> None:
    with_head, without = small_vision(num_classes=5), small_vision()
    filtered = checkpoint_filter_fn(with_head.state_dict(), small_vision(num_classes=5))
    assert torch.equal(filtered["head.weight"], with_head.head.weight)
    fresh = small_vision(num_classes=5)
    filtered = checkpoint_filter_fn(without.state_dict(), fresh)
    assert torch.equal(filtered["head.weight"], fresh.head.weight)
    fresh.load_state_dict(filtered, strict=True)


def test_filter_does_not_change_the_checkpoint_it_is_given() -> None:
    source = small_vision().state_dict()
    before = {key: value.clone() for key, value in source.items()}
    checkpoint_filter_fn(source, small_vision(img_size=64))
    assert {k: v.shape for k, v in source.items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(source[key], before[key]) for key in before)


def test_check_keys_accepts_equal_sets() -> None:
    check_keys(["a", "b"], ["b", "a"])
    with pytest.raises(ValueError, match=r"missing keys: b; leftover keys: c"):
        check_keys(["a", "c"], ["a", "b"])
