"""CAST as a timm model: golden outputs, checkpoints, superpixels of all kinds, the hierarchy."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import grouping_zoo.models.cast
from golden_weights import GOLDEN, made_up_weights, photo
from grouping_zoo.models.cast_checkpoint import checkpoint_filter_fn, moco_encoder
from grouping_zoo.models.cast_parts import sincos_position_code
from invariants import assert_invariants, assert_same_image
from zoo import SMALL

CASES = {"plain": "cast_small", "dense": "cast_seg_small", "nano": "cast_nano"}
every_case = pytest.mark.parametrize("case", CASES)


images = SMALL["cast_small"].images


def small_model(case: str, **kwargs: Any) -> Any:
    """A small CAST for 64x64 images, in evaluation mode, always with the same weights, none of them zero."""
    return SMALL[CASES[case]].create(**kwargs)


def blocks_of_labels(size: tuple[int, int], side: int) -> Tensor:
    """(1, H, W) squares of `side` pixels, numbered row by row."""
    rows, columns = (torch.arange(length) // side for length in size)
    return (rows[:, None] * (int(columns[-1]) + 1) + columns)[None]


# --- official numbers -----------------------------------------------------------------------------------------------


def made_up_checkpoint(manifest: str) -> dict[str, Tensor]:
    weights = made_up_weights(manifest)
    width = weights["cls_token"].shape[2]
    fixed = {"pos_embed": sincos_position_code((28, 28), width), "pe_token": torch.zeros(1, 1, width)}
    return {**weights, **fixed}


@torch.no_grad()
def test_golden_outputs() -> None:
    golden = np.load(GOLDEN / "cast_small_astronaut.npz")
    model = timm.create_model("cast_small").eval()
    model.load_state_dict(checkpoint_filter_fn(made_up_checkpoint("cast_small.json"), model))
    x = photo("astronaut", 224)
    superpixels = model.make_superpixels(x)
    assert superpixels.unique().numel() == 196
    found = model.forward_grouped(x, superpixels)
    features = model.forward_features(x, superpixels=superpixels)
    assert torch.equal(found.features, features)
    out = model.forward_head(features, pre_logits=True)
    assert np.abs(out.numpy() - golden["astronaut_out"]).max() < 1e-4
    assert np.abs(model(x).numpy() - golden["astronaut_logits"]).max() < 1e-4
    for level in range(3):
        assert (found.grouping.parents(level).numpy() == golden[f"astronaut_assign{level + 1}"]).all()
        mean = found.stages[level].mean(dim=1).numpy()
        assert np.abs(mean - golden[f"astronaut_block{level + 1}"]).max() < 1e-4


def test_position_code_equals_plain_loop() -> None:
    code = sincos_position_code((3, 5), 16)[0]
    for r in range(3):
        for c in range(5):
            w = [10000 ** (-k / 4) for k in range(4)]
            expected = [f(p * v) for p in (r, c) for f in (math.sin, math.cos) for v in w]
            assert code[r * 5 + c].tolist() == pytest.approx(expected, abs=1e-6)


def test_parameter_counts() -> None:
    model = timm.create_model("cast_small")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 28.34
    assert round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2) == 26.26


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("cast_small", "cast_small"),
        ("cast_base", "cast_base"),
        ("cast_small_deep", "cast_small_deep"),
        ("cast_seg_small_pretrain", "cast_seg_small"),
    ],
)
def test_official_keys_fit_their_models(manifest: str, name: str) -> None:
    with torch.device("meta"):
        shapes = json.loads((GOLDEN / f"{manifest}.json").read_text())
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
        model = timm.create_model(name)
        model.load_state_dict(checkpoint_filter_fn(weights, model), assign=True)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def official(model: Any) -> dict[str, Tensor]:
    """A small model's weights under the official names."""
    renamed = {}
    pooling = dict(norm1="fc1.0", fc1="fc1.1", norm2="fc2.0", fc2="fc2.1") | {
        key: f"centroid_fc.{key}" for key in ("norm", "attn", "bias")
    }
    first = 0
    starts = []
    for stage in model.stages:
        starts.append(first)
        first += len(stage.blocks)
    for key, value in model.state_dict().items():
        if match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.(.+)", key):
            stage, block = int(match[1]), int(match[2])
            renamed[f"blocks{stage + 1}.{starts[stage] + block}.{match[3]}"] = value
            renamed[f"blocks.{starts[stage] + block}.{match[3]}"] = value
        elif match := re.fullmatch(r"stages\.(\d)\.pooling\.(\w+)(.*)", key):
            renamed[f"pool{int(match[1]) + 1}.pool_block.{pooling[match[2]]}{match[3]}"] = value
        else:
            renamed[key] = value
    return renamed | {"pe_token": torch.zeros_like(model.cls_token)}


def moco_snapshot(base: Any, momentum: Any) -> dict[str, Tensor]:
    snapshot = {}
    for name, model in (("base", base), ("momentum", momentum)):
        weights = {key: value for key, value in official(model).items() if not key.startswith("head.")}
        weights |= {"head.0.weight": torch.zeros(7, 32), "head.1.running_mean": torch.zeros(7)}
        snapshot |= {f"module.{name}_encoder.{key}": value for key, value in weights.items()}
    return snapshot | {"module.predictor.0.weight": torch.zeros(7, 7)}


def assert_loads(weights: dict[str, Tensor], source: Any, head: bool = True, **kwargs: Any) -> None:
    model = small_model("plain")
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(checkpoint_filter_fn(weights, model, **kwargs))
    for key, value in source.state_dict().items():
        if head or not key.startswith("head."):
            assert torch.equal(model.state_dict()[key], value), key


def test_original_and_own_names_load() -> None:
    source = small_model("plain")
    assert_loads(official(source), source)
    assert_loads({f"module.{key}": value for key, value in official(source).items()}, source)
    assert_loads(source.state_dict(), source)


def test_moco_snapshots_give_the_encoder_that_is_asked_for() -> None:
    base, momentum = small_model("plain"), small_model("plain")
    for parameter in momentum.parameters():
        parameter.data.mul_(0.5)
    snapshot = moco_snapshot(base, momentum)
    assert_loads(snapshot, base, head=False)
    assert_loads(snapshot, momentum, head=False, encoder="momentum")
    assert not any(key.startswith("head.") for key in moco_encoder(snapshot))
    with pytest.raises(ValueError, match=r"encoder: expected one of \('base', 'momentum'\), got 'teacher'"):
        moco_encoder(snapshot, "teacher")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leftover keys that fit no part of a MoCo snapshot: queue"):
        moco_encoder({**snapshot, "queue": torch.zeros(1)})
    only_base = {key: value for key, value in snapshot.items() if "momentum" not in key}
    with pytest.raises(ValueError, match="without momentum_encoder"):
        moco_encoder(only_base, "momentum")


def test_wrong_keys_are_listed() -> None:
    model = small_model("plain")
    weights = official(model)
    with pytest.raises(ValueError, match=r"leftover keys that fit no part of the original CAST: decoder\.weight"):
        checkpoint_filter_fn({**weights, "decoder.weight": torch.zeros(1)}, model)
    with pytest.raises(ValueError, match=r"missing keys: stages\.1\.pooling\.fc1\.weight"):
        checkpoint_filter_fn({k: v for k, v in weights.items() if k != "pool2.pool_block.fc1.1.weight"}, model)
    with pytest.raises(ValueError, match=r"missing keys: fusion\.fc\.bias"):
        checkpoint_filter_fn(weights, small_model("dense"))
    with pytest.raises(ValueError, match="no key of a CAST checkpoint"):
        checkpoint_filter_fn({"stages.0.blocks.0.norm1.weight": torch.zeros(1)}, model)


def test_heads_and_image_sizes_may_differ() -> None:
    weights = official(small_model("plain"))
    headless = small_model("plain", num_classes=0)
    headless.load_state_dict(checkpoint_filter_fn(weights, headless))
    larger = small_model("plain", img_size=(64, 96))
    larger.load_state_dict(checkpoint_filter_fn(weights, larger))
    with torch.no_grad():
        x = images(size=(64, 96))
        assert torch.allclose(larger(x), small_model("plain")(x), atol=1e-5)
    with pytest.raises(ValueError, match=r"pos_embed holds 96 positions, which are no square grid"):
        checkpoint_filter_fn(larger.state_dict(), headless)


def test_the_class_tokens_position_is_added_to_it() -> None:
    model = small_model("plain")
    weights = official(model) | {"pe_token": torch.full((1, 1, 32), 0.5)}
    assert torch.equal(checkpoint_filter_fn(weights, model)["cls_token"], model.cls_token + 0.5)


# --- superpixels ----------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("method", ["seeds", "slic", "grid"])
@torch.no_grad()
def test_image_alone_gets_its_superpixels_from_the_model(case: str, method: str) -> None:
    model = small_model(case, superpixel_method=method)
    x = images()
    superpixels = model.make_superpixels(x)
    assert superpixels.shape == (2, 64, 64)
    assert 40 <= superpixels.max() < 90
    assert torch.equal(model(x), model(x, superpixels))


@torch.no_grad()
def test_superpixels_are_made_of_the_image_before_normalisation() -> None:
    model = small_model("plain", superpixel_method="slic")
    colours = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = grouping_zoo.models.cast.make_superpixels(colours, 64, "slic").labels
    assert torch.equal(model.make_superpixels((colours / 255 - mean) / std), expected)


@every_case
@torch.no_grad()
def test_batch_of_different_label_counts_gives_what_its_images_give_one_by_one(case: str) -> None:
    model = small_model(case)
    x = images(5)
    gaps = blocks_of_labels((64, 64), 8) * 2 % 61
    labels = [blocks_of_labels((64, 64), side) for side in (8, 16, 32, 64)] + [gaps]  # 64, 16, 4, 1 and 61 labels
    superpixels = torch.cat(labels)
    joint, logits = model.forward_grouped(x, superpixels), model(x, superpixels)
    attention = model.class_attention(x, -1, superpixels)
    for i in range(5):
        alone = model.forward_grouped(x[i : i + 1], superpixels[i : i + 1])
        assert_same_image(joint.grouping[i], alone.grouping)
        assert torch.allclose(logits[i : i + 1], model(x[i : i + 1], superpixels[i : i + 1]), atol=1e-4)
        weights = model.class_attention(x[i : i + 1], -1, superpixels[i : i + 1]).weights[0]
        assert torch.allclose(attention.weights[i, :, : weights.shape[1]], weights, atol=1e-5)


@every_case
def test_training_does_not_depend_on_tokens_of_other_images(case: str) -> None:
    model = small_model(case).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x, superpixels = images(), blocks_of_labels((64, 64), 16).repeat(2, 1, 1)
    model(x, superpixels).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    original = model._embed

    def with_padding(x: Tensor, superpixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found, _, empty = original(x, superpixels)
        valid = (torch.arange(40) < 16).expand(len(x), -1)
        return (
            torch.cat([found, 30 * torch.ones(len(x), 24, 32)], dim=1),
            valid,
            torch.cat([empty, torch.zeros(len(x), 24, dtype=torch.bool)], dim=1),
        )

    model._embed = with_padding
    model(x, superpixels).square().sum().backward()
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad
        assert torch.allclose(found, gradient, atol=1e-3 * gradient.abs().max() + 1e-5), name


@torch.no_grad()
def test_own_empty_label_is_a_zero_token_that_takes_part_in_attention() -> None:
    model = small_model("plain")
    contiguous = blocks_of_labels((64, 64), 16)
    gap = contiguous + (contiguous >= 7)  # label 7 is on no pixel
    tokens, valid, empty = model._embed(images(1), gap)
    assert valid is None
    assert empty[0].nonzero().tolist() == [[7]]
    assert not tokens[0, 7].any()
    assert not torch.allclose(model(images(1), gap), model(images(1), contiguous), atol=1e-4)


@every_case
@pytest.mark.parametrize("size", [(64, 64), (61, 47), (128, 32), (8, 8), (24, 200)])
@torch.no_grad()
def test_hierarchy_is_nested_and_covers_every_pixel(case: str, size: tuple[int, int]) -> None:
    model, x = small_model(case), images(2, size)
    given = [
        None,
        blocks_of_labels(size, 13).repeat(2, 1, 1),
        torch.zeros(2, *size, dtype=torch.int64),  # one superpixel
        torch.full((2, *size), 6),  # one superpixel, six empty ones
        torch.cat([torch.zeros(1, *size, dtype=torch.int64), blocks_of_labels(size, 3)]),  # some below the stem's grid
        (blocks_of_labels(size, 13) * 7 % (size[0] * size[1])).repeat(2, 1, 1).int(),  # gaps, another integer type
    ]
    for superpixels in given:
        grouping = model.forward_grouping(x, superpixels)
        assert grouping.num_levels == 5
        assert_invariants(grouping, [None])
        if superpixels is not None:
            assert torch.equal(grouping.labels(0), superpixels.long())
        assert model(x, superpixels).isfinite().all()


@pytest.mark.parametrize(
    ("superpixels", "message"),
    [
        (torch.zeros(2, 64, 64), "superpixels: expected an integer tensor"),
        (torch.zeros(2, 64, 32, dtype=torch.int64), r"superpixels: expected shape \(2, 64, 64\)"),
        (torch.full((2, 64, 64), -3), "superpixels: expected labels from 0 to 4095"),
        (torch.full((2, 64, 64), 10**9), "number them with `contiguous_labels`"),
    ],
)
def test_bad_superpixels_are_refused(superpixels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model("plain")(images(), superpixels)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(superpixel_method="watershed"), "superpixel_method: expected one of .*got 'watershed'"),
        (dict(num_clusters=(8, 4)), r"num_clusters: expected 4 numbers of at least 1.*got \(8, 4\)"),
        (dict(num_clusters=(8, 4, 2, 0)), r"num_clusters: expected 4 numbers of at least 1.*got \(8, 4, 2, 0\)"),
        (dict(embed_dim=36, num_heads=3), "embed_dim: expected a multiple of 8, for the stem, got 36"),
        (dict(num_heads=5), "embed_dim: expected a multiple of 5, for num_heads, got 32"),
        (dict(num_heads=0), "embed_dim and num_heads: expected at least 1, got 32 and 0"),
        (dict(superpixel_size=0), "superpixel_size: expected at least 1 pixel, got 0"),
        (dict(global_pool="avg"), "global_pool: expected 'token' or '', got 'avg'"),
        (dict(centroids="first"), "centroids: expected one of .*got 'first'"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model("plain", **kwargs)


# --- the hierarchy --------------------------------------------------------------------------------------------------


@every_case
@torch.no_grad()
def test_number_of_clusters_can_change_per_call(case: str) -> None:
    model, x = small_model(case), images()
    superpixels = blocks_of_labels((64, 64), 8).repeat(2, 1, 1)
    grouping = model.forward_grouping(x, superpixels, num_clusters=(20, 9, 4, 2))
    assert [grouping.num_groups(level) for level in range(5)] == [64, 20, 9, 4, 2]
    other = small_model(case, num_clusters=(20, 9, 4, 2))
    assert torch.equal(model.forward_features(x, superpixels, (20, 9, 4, 2)), other.forward_features(x, superpixels))
    with pytest.raises(ValueError, match="num_clusters: expected 4 numbers"):
        model(x, num_clusters=(20, 9, 4))


@pytest.mark.parametrize("centroids", ["random", "kmedoids", "kmeans"])
def test_other_centroids_train_and_group(centroids: str) -> None:
    model = small_model("plain", centroids=centroids).train()
    model(images()).square().sum().backward()
    assert model.cls_token.grad.isfinite().all()
    assert model.forward_grouping(images()).num_levels == 5


@torch.no_grad()
def test_dense_features_fuse_the_levels_by_the_chain_of_arg_maxima() -> None:
    model, x = small_model("dense"), images()
    superpixels = blocks_of_labels((64, 64), 8).repeat(2, 1, 1)
    found = model.forward_grouped(x, superpixels)
    norm = model.fusion.norm
    for i in range(2):
        for token in (0, 17, 63):
            levels, index = [], token
            for level, tokens in enumerate(found.stages):
                levels.append(tokens[i, index])
                if level < 3:
                    index = int(found.grouping.assignments[level][i, 0, index].argmax())
            joined = torch.cat(levels)
            joined = (joined - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            assert torch.allclose(found.features[i, 1 + token], model.fusion.fc(joined), atol=1e-3)
    assert torch.allclose(found.features[:, 0], found.features[:, 1:].mean(dim=1), atol=1e-4)


@every_case
@torch.no_grad()
def test_class_attention_is_that_of_the_block(case: str) -> None:
    model, x = small_model(case), images()
    superpixels = blocks_of_labels((64, 64), 8).repeat(2, 1, 1)
    recorded: list[tuple[Tensor, Tensor]] = []
    for stage in model.stages:
        for block in stage.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, args, output: recorded.append(output))
    model(x, superpixels)
    expected = list(recorded)
    assert len(expected) == 5
    for block, level in enumerate([0, 0, 1, 2, 3]):
        attention = model.class_attention(x, block, superpixels)
        assert attention.level == level
        assert torch.allclose(attention.weights, expected[block][:, :, 0, 1:], atol=1e-6)
        labels = attention.grouping.labels(level)
        maps = attention.maps()
        assert maps.shape == (2, 2, 64, 64)
        assert maps[1, 0, 40, 9] == attention.weights[1, 0, labels[1, 40, 9]]
    last = model.class_attention(x, -1, superpixels)
    assert torch.equal(last.weights, model.class_attention(x, 4, superpixels).weights)
    with pytest.raises(ValueError, match="block: expected -5 to 4, got 5"):
        model.class_attention(x, 5)


@every_case
def test_the_position_code_and_the_last_pooling_are_frozen(case: str) -> None:
    named = dict(small_model(case).named_parameters())
    frozen = {name for name, parameter in named.items() if not parameter.requires_grad}
    assert frozen == {name for name in named if name.startswith(("pos_embed", "stages.3.pooling"))}


@every_case
@pytest.mark.parametrize("size", [(64, 64), (61, 47)])
@torch.no_grad()
def test_maps_hold_in_each_cell_the_token_of_its_superpixel(case: str, size: tuple[int, int]) -> None:
    model, x = small_model(case), images(size=size)
    _, maps = model.forward_intermediates(x)
    grouped = model.forward_grouped(x)
    for level in range(4):
        labels = grouped.grouping.labels(level)
        row, column = 3 * size[0] // maps[level].shape[2], 2 * size[1] // maps[level].shape[3]
        assert torch.equal(maps[level][1, :, 3, 2], grouped.stages[level][1, labels[1, row, column]])


@torch.no_grad()
def test_the_images_feature_is_the_class_token() -> None:
    model, x = small_model("plain"), images()
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), model.forward_features(x)[:, 0])


@pytest.mark.parametrize("name", ["cast_small", "cast_base", "cast_small_deep", "cast_base_deep", "cast_seg_small"])
def test_published_depths_and_widths(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert sum(len(stage.blocks) for stage in model.stages) == (15 if "deep" in name else 11)
    assert model.embed_dim == (768 if "base" in name else 384)
