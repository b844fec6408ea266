"""The same weights give the same numbers here and in transformers' own GroupViTModel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GroupViTConfig, GroupViTModel

from grouping_zoo import ZooGroupViTConfig, ZooGroupViTModel
from zoo import with_random_weights

TOLERANCE = 1e-4
EOS = 48
TWO_STAGES = dict(depths=[1, 2], num_group_tokens=[6, 3], num_output_groups=[6, 3])
THREE_STAGES = dict(depths=[2, 1, 1], num_group_tokens=[6, 3, 0], num_output_groups=[6, 3, 3])


def config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> GroupViTConfig:
    vision_config = dict(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        num_hidden_layers=3,
        **TWO_STAGES,
    )
    vision_config |= vision or {}
    vision_config["num_hidden_layers"] = sum(vision_config["depths"])
    text_config = dict(
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=49,
        max_position_embeddings=12,
        pad_token_id=1,
        bos_token_id=47,
        eos_token_id=EOS,
    )
    return GroupViTConfig(
        vision_config=vision_config,
        text_config=text_config | (text or {}),
        projection_dim=24,
        projection_intermediate_dim=40,
    )


def texts(count: int, length: int = 10, eos: int = EOS) -> tuple[Tensor, Tensor]:
    """Ids with an end token at different places, then padding; and their mask."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(count):
        end = length - 1 - 2 * (row % 3)
        ids[row, end], ids[row, end + 1 :], mask[row, end + 1 :] = eos, 1, 0
    return ids, mask


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))


def saved_pair(theirs: GroupViTModel, folder: Path) -> tuple[GroupViTModel, ZooGroupViTModel]:
    theirs.save_pretrained(folder)
    return theirs, ZooGroupViTModel.from_pretrained(folder)


def random_model(configuration: GroupViTConfig) -> GroupViTModel:
    torch.manual_seed(0)
    return with_random_weights(GroupViTModel(configuration).eval())


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE


@torch.no_grad()
def assert_parity(theirs: GroupViTModel, ours: ZooGroupViTModel, **inputs: Any) -> None:
    wanted = dict(output_segmentation=True, output_attentions=True)
    if len(inputs["input_ids"]) == len(inputs["pixel_values"]):
        wanted["return_loss"] = True
    expected, found = theirs(**inputs, **wanted), ours(**inputs, **wanted)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "segmentation_logits"):
        assert_same(found[name], expected[name])
    if "return_loss" in wanted:
        assert_same(found.loss, expected.loss)
    for tower in ("vision_model_output", "text_model_output"):
        assert_same(found[tower].pooler_output, expected[tower].pooler_output)
    assert_same(found.vision_model_output.last_hidden_state, expected.vision_model_output.last_hidden_state)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    assert_same(found.text_model_output.last_hidden_state[mask], expected.text_model_output.last_hidden_state[mask])
    assert len(found.vision_model_output.attentions) == len(expected.vision_model_output.attentions)
    for a, b in zip(found.vision_model_output.attentions, expected.vision_model_output.attentions, strict=True):
        assert_same(a, b)
    features = theirs.get_image_features(inputs["pixel_values"]).pooler_output
    assert_same(ours.get_image_features(inputs["pixel_values"]).pooler_output, features)
    text = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    assert_same(ours.get_text_features(**text).pooler_output, theirs.get_text_features(**text).pooler_output)


@pytest.mark.parametrize("stages", [TWO_STAGES, THREE_STAGES], ids=["two_stages", "three_stages"])
def test_small_model(stages: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = saved_pair(random_model(config(stages)), tmp_path)
    ids, mask = texts(3)
    assert_parity(theirs, ours, input_ids=ids, attention_mask=mask, pixel_values=images(3, 32, 32))
    assert_parity(theirs, ours, input_ids=ids, pixel_values=images(2, 32, 32))


def test_padding_at_the_start(tmp_path: Path) -> None:
    theirs, ours = saved_pair(random_model(config()), tmp_path)
    ids, mask = texts(3)
    assert_parity(theirs, ours, input_ids=ids.flip(1), attention_mask=mask.flip(1), pixel_values=images(2, 32, 32))


def test_legacy_end_token_reads_the_feature_at_the_highest_id(tmp_path: Path) -> None:
    theirs, ours = saved_pair(random_model(config(text=dict(eos_token_id=2))), tmp_path)
    ids, mask = texts(3)  # the highest id is not 2
    assert_parity(theirs, ours, input_ids=ids, attention_mask=mask, pixel_values=images(2, 32, 32))


def test_first_of_several_end_tokens_counts(tmp_path: Path) -> None:
    # CLIP pads with its end token.
    theirs, ours = saved_pair(random_model(config(text=dict(pad_token_id=EOS))), tmp_path)
    ids, mask = texts(3)
    ids[mask == 0] = EOS
    assert_parity(theirs, ours, input_ids=ids, attention_mask=mask, pixel_values=images(2, 32, 32))


def test_published_size(tmp_path: Path) -> None:
    theirs, ours = saved_pair(random_model(GroupViTConfig()), tmp_path)
    ids, mask = texts(2, length=77, eos=49407)
    assert_parity(theirs, ours, input_ids=ids, attention_mask=mask, pixel_values=images(2, 224, 224))


@pytest.mark.parametrize(("height", "width"), [(48, 48), (64, 32), (24, 40)])
def test_other_image_sizes(height: int, width: int, tmp_path: Path) -> None:
    theirs, ours = saved_pair(random_model(config()), tmp_path)
    # transformers' class takes its configured size alone, so it is rebuilt with the resized position embedding.
    other = GroupViTModel(config(dict(image_size=[height, width]))).eval()
    state_dict = theirs.state_dict()
    key = "vision_model.embeddings.position_embeddings"
    square = state_dict[key].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(square, size=(height // 8, width // 8), mode="bicubic", align_corners=False)
    other.load_state_dict(state_dict | {key: resized.flatten(2).transpose(1, 2)})
    ids, mask = texts(2)
    assert_parity(other, ours, input_ids=ids, attention_mask=mask, pixel_values=images(2, height, width))


def test_model_configured_with_a_height_and_a_width(tmp_path: Path) -> None:
    theirs, ours = saved_pair(random_model(config(dict(image_size=[24, 40]))), tmp_path)
    ids, mask = texts(2)
    assert_parity(theirs, ours, input_ids=ids, attention_mask=mask, pixel_values=images(2, 24, 40))


def test_half_precision_weights_are_opened_as_such(tmp_path: Path) -> None:
    random_model(config()).to(torch.bfloat16).save_pretrained(tmp_path)
    ours = ZooGroupViTModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in ZooGroupViTModel.from_pretrained(tmp_path, dtype=torch.float32).parameters()} == {
        torch.float32
    }


def test_converted_model_saves_and_opens_as_ours(tmp_path: Path) -> None:
    _, ours = saved_pair(random_model(config()), tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = ZooGroupViTModel.from_pretrained(tmp_path / "ours")
    ids, mask = texts(2)
    with torch.no_grad():
        before = ours(input_ids=ids, attention_mask=mask, pixel_values=images(2, 32, 32))
        after = again(input_ids=ids, attention_mask=mask, pixel_values=images(2, 32, 32))
    assert torch.equal(before.logits_per_image, after.logits_per_image)
    assert not again.training


@pytest.mark.parametrize("key", ["vision_model.layernorm.weight", "text_model.encoder.layers.1.self_attn.k_proj.bias"])
def test_missing_and_leftover_keys_are_errors_that_name_them(key: str, tmp_path: Path) -> None:
    theirs = random_model(config())
    whole = theirs.state_dict()
    theirs.save_pretrained(tmp_path, state_dict={k: v for k, v in whole.items() if k != key})
    with pytest.raises(ValueError, match=key):
        ZooGroupViTModel.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path, state_dict=whole | {"vision_model.stranger": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"vision_model\.stranger"):
        ZooGroupViTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        (dict(hidden_act="relu"), {}, r"vision_config\.hidden_act: only gelu"),
        (dict(assign_eps=0.5), {}, r"vision_config\.assign_eps: only 1\.0 can be converted, got 0\.5"),
        (dict(layer_norm_eps=1e-6), {}, r"vision_config\.layer_norm_eps"),
        ({}, dict(hidden_act="gelu"), r"text_config\.hidden_act: only quick_gelu"),
        ({}, dict(layer_norm_eps=1e-6), r"text_config\.layer_norm_eps"),
    ],
)
def test_what_cannot_be_converted_is_an_error(vision: dict[str, Any], text: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZooGroupViTConfig.from_transformers(config(vision, text))


@pytest.mark.parametrize("hidden", [*range(30, 50), 1365])
def test_every_hidden_width_survives_its_conversion_to_a_ratio(hidden: int) -> None:
    ratio = ZooGroupViTConfig.from_transformers(config(dict(intermediate_size=hidden))).model_args["mlp_ratio"]
    assert int(32 * ratio) == hidden
