"""What timm, and its training script, expect of every registered architecture."""

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models import get_pretrained_cfg, group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from exemptions import EXEMPTIONS
from grouping_zoo.models.builder import zoo_models
from grouping_zoo.models.family import GroupingNetwork, as_grouping_network
from zoo import MODELS, SmallModel, every_model, loss_of

NAMES = zoo_models()
every_name = pytest.mark.parametrize("name", NAMES)
ODD, WIDE = (33, 49), (32, 64)


def spatial(model: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """Shape behind the channels of what the head gives for images of a size."""
    reduction = model.feature_info[0]["reduction"]
    return tuple(math.ceil(side / reduction) for side in size) if model.predicts_pixels else ()


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


# --- registration ---------------------------------------------------------------------------------------------------


def test_every_registered_architecture_is_in_the_table() -> None:
    assert {small.name for small in MODELS} == set(NAMES)
    assert len({small.case for small in MODELS}) == len(MODELS)


@pytest.mark.parametrize(("test", "case"), EXEMPTIONS)
def test_every_exemption_is_of_a_test_and_an_architecture(test: str, case: str) -> None:
    modules = Path(__file__).parent.glob("test_*.py")
    assert any(f"def {test}(" in module.read_text() for module in modules)
    assert any(small.case.startswith(case) for small in MODELS)


@pytest.mark.slow
def test_names_are_new_to_timm_and_unknown_without_the_package() -> None:
    code = f"""
import json, timm
try:
    timm.create_model({NAMES[0]!r})
except RuntimeError as error:
    print(json.dumps([str(error), *timm.list_models(), *timm.list_modules()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    error, *known = json.loads(done.stdout)
    assert error == f"Unknown model ({NAMES[0]})"
    # timm replaces a model of the same name, or of another module of the same last name, with no more than a warning.
    modules = {timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1] for name in NAMES}
    assert not (set(NAMES) | modules) & set(known)


@every_name
def test_pretrained_cfg_describes_the_model(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    cfg = model.pretrained_cfg
    for key in ("input_size", "crop_pct", "interpolation", "mean", "std"):
        assert key in cfg, key
    assert model.num_classes == cfg["num_classes"]
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0]
    assert timm.data.resolve_model_data_config(model)["input_size"] == cfg["input_size"]
    model.reset_classifier(3)
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert cfg["license"] == "apache-2.0"
    if not get_pretrained_cfg(name).has_weights:
        with pytest.raises(RuntimeError, match="No pretrained weights"):
            timm.create_model(name, pretrained=True, device="meta")


@every_model
def test_device_and_dtype_are_those_that_are_asked_for(small: SmallModel) -> None:
    model = small.build(device="cpu", dtype=torch.bfloat16)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    features = small.build(features_only=True, device="meta")
    assert {p.device.type for p in features.parameters()} == {"meta"}


# --- forward --------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("size", [None, ODD, WIDE], ids=str)
@torch.no_grad()
def test_shapes_of_features_and_head(size: tuple[int, int] | None, small: SmallModel) -> None:
    model, x = small.create(), small.images(size=size)
    assert as_grouping_network(model) is model
    rest = spatial(model, (x.shape[-2], x.shape[-1]))
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert model.num_features == model.head_hidden_size
    assert pooled.shape == (2, model.num_features, *rest)
    logits = model(x)
    assert logits.shape == (2, 5, *rest)
    assert logits.isfinite().all()
    assert torch.equal(logits, model.forward_head(features))
    assert torch.equal(logits, model.get_classifier()(pooled))


@every_model
@torch.no_grad()
def test_reset_classifier(small: SmallModel) -> None:
    model, x = small.create().double(), small.images().double()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7, *pooled.shape[2:])
    assert model.get_classifier().weight.dtype == torch.float64
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    with pytest.raises(ValueError, match=r"global_pool: expected .* got 'nonsense'"):
        model.reset_classifier(0, "nonsense")
    model.reset_classifier(3)
    assert (
        model.get_classifier().weight.shape[1]
        == model.num_features
        == features.shape[1 if model.predicts_pixels else 2]
    )


@every_model
@torch.no_grad()
def test_a_model_created_without_pooling_gives_its_features(small: SmallModel) -> None:
    model = small.create(0, global_pool="")
    assert torch.equal(model(small.images()), model.forward_features(small.images()))


@every_model
@torch.no_grad()
def test_other_input_channels(small: SmallModel) -> None:
    for channels in (1, 4):
        model = small.create(in_chans=channels)
        assert model.in_chans == channels
        assert model(small.images(channels=channels)).isfinite().all()
    shape = rf"\(2, 3, {small.size}, {small.size}\)"
    with pytest.raises(
        ValueError, match=rf"{type(model).__name__}: expected images of shape \(B, 4, H, W\), got {shape}"
    ):
        model(small.images())


@every_model
@torch.no_grad()
def test_evaluation_is_deterministic_and_treats_images_one_by_one(small: SmallModel) -> None:
    model, x = small.create(), small.images(4)
    x[3] = x[1]
    state = torch.get_rng_state()
    logits = model(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(model(x), logits)
    assert_close(torch.cat([model(image[None]) for image in x]), logits)
    assert_close(logits[3], logits[1])
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


@every_model
@torch.no_grad()
def test_no_images_give_no_results(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    assert model(x[:0]).shape == (0, *model(x).shape[1:])


# --- intermediates --------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("size", [None, ODD], ids=str)
@torch.no_grad()
def test_intermediates(size: tuple[int, int] | None, small: SmallModel) -> None:
    model, x = small.create(), small.images(size=size)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(maps) == len(model.feature_info)
    for found, info in zip(maps, model.feature_info, strict=True):
        expected = (math.ceil(side / info["reduction"]) for side in x.shape[-2:])
        assert found.shape == (2, info["num_chs"], *expected)
    last = len(maps) - 1
    for indices, wanted in ((1, {last}), (2, {last - 1, last}), ([0], {0}), ([-1, 0], {0, last})):
        for stop_early in (False, True):
            taken = model.forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True)
            assert [any(torch.equal(one, maps[index]) for one in taken) for index in wanted] == [True] * len(wanted)
            assert len(taken) == len(wanted)
    final, taken = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert torch.equal(final, model.forward_features(x)), "the final features need every stage"
    assert torch.equal(taken[0], maps[0])
    with pytest.raises(ValueError, match=r"output_fmt: expected 'NCHW'.* got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@every_model
@torch.no_grad()
def test_norm_is_applied_to_tokens_when_asked_for(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    options = dict(output_fmt="NLC", intermediates_only=True)
    plain, normed = (model.forward_intermediates(x, norm=norm, **options) for norm in (False, True))
    assert all(torch.equal(a, model.norm(b)) for a, b in zip(normed, plain, strict=True))


@every_model
@torch.no_grad()
def test_stopping_early_leaves_the_later_stages_out(small: SmallModel) -> None:
    model, ran = small.create(), [0]
    for module in model.modules():
        module.register_forward_hook(lambda *_: ran.append(ran.pop() + 1))
    calls = []
    for index in range(len(model.feature_info)):
        ran[:] = [0]
        model.forward_intermediates(small.images(), indices=[index], stop_early=True, intermediates_only=True)
        calls += ran
    assert calls == sorted(set(calls)), "each stage costs something, and only where it is needed"


@every_model
@torch.no_grad()
def test_features_only(small: SmallModel) -> None:
    model, x = small.create(), small.images(size=ODD)
    _, maps = model.forward_intermediates(x)
    last = len(maps) - 1
    for indices in ((0,), (last,), (0, last), (-1,)):
        backbone = small.build(features_only=True, out_indices=indices)
        backbone.model.load_state_dict(model.state_dict(), strict=False)
        wanted = [index % len(maps) for index in indices]
        infos = [model.feature_info[index] for index in wanted]
        assert backbone.feature_info.channels() == [info["num_chs"] for info in infos]
        assert backbone.feature_info.reduction() == [info["reduction"] for info in infos]
        assert all(torch.equal(a, maps[b]) for a, b in zip(backbone(x), wanted, strict=True))
    backbone = small.build(features_only=True)
    assert len(backbone(x)) == len(backbone.feature_info.channels()) > 1


@every_model
def test_features_only_keeps_no_part_that_it_does_not_need(small: SmallModel) -> None:
    for indices in ((0,), (1,), tuple(range(len(small.build().feature_info)))):
        backbone = small.create(features_only=True, out_indices=indices)
        sum(loss_of(feature) for feature in backbone(small.images())).backward()
        assert not [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]


@every_model
def test_stages_of_the_feature_info_are_modules(small: SmallModel) -> None:
    model = small.build()
    for info in model.feature_info:
        model.get_submodule(info["module"])


@every_model
@torch.no_grad()
def test_pruning_keeps_what_the_indices_need(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    before = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    number = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert model.num_classes == 0
    assert sum(p.numel() for p in model.parameters()) < number
    after = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)[0]
    assert torch.equal(before, after)


# --- training -------------------------------------------------------------------------------------------------------


@every_model
def test_gradients_reach_every_parameter_that_is_not_frozen(small: SmallModel) -> None:
    model = small.create(drop_rate=0.1).train()
    loss_of(model(small.images())).backward()
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in trainable.items() if gradient is None]
    assert all(gradient.isfinite().all() for gradient in trainable.values())
    # A bias that shifts all keys, or what a BatchNorm centres, alike changes nothing.
    dead = [name for name, gradient in trainable.items() if not gradient.any()]
    assert all(name.endswith(".bias") for name in dead), dead


@every_model
def test_a_batch_of_one_image_trains(small: SmallModel) -> None:
    model = small.create().train()
    loss_of(model(small.images(1))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
def test_drop_path_acts_in_training_alone_and_rises_to_its_rate(small: SmallModel) -> None:
    model, x = small.create(drop_path_rate=0.5), small.images(8)
    with torch.no_grad():
        assert torch.equal(model(x), small.create()(x))
    layers = [module for module in model.modules() if isinstance(module, DropPath) and module.drop_prob]
    rates = [layer.drop_prob for layer in layers]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)
    dropped: list[bool] = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _, taken, given: dropped.append(bool(((given == 0) & (taken[0] != 0)).any()))
        )
    model.train()(x)
    assert any(dropped)


@every_model
def test_drop_rate_acts_before_the_head_in_training_alone(small: SmallModel) -> None:
    model = small.create(drop_rate=0.5)
    features = torch.ones_like(model.forward_features(small.images()))
    assert torch.equal(model.forward_head(features), model.forward_head(features))
    model.train()
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@every_model
def test_gradient_checkpointing_gives_equal_gradients(small: SmallModel) -> None:
    gradients, calls = [], []
    for enable in (False, True):
        model, ran = small.create().train(), [0]
        for module in model.modules():
            module.register_forward_pre_hook(lambda *_, ran=ran: ran.append(ran.pop() + 1))
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss_of(model(small.images())).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        calls += ran
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, 1e-4)
    assert calls[1] > calls[0], "parts are computed again"


@every_model
def test_parameter_groups_cover_every_parameter_in_order(small: SmallModel) -> None:
    model = small.build()
    names = [name for name, _ in model.named_parameters()]
    first, head = (f"{model.pretrained_cfg[key]}.weight" for key in ("first_conv", "classifier"))
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        layer = {name: index for index, group in groups.items() for name in group}
        assert sorted(name for group in groups.values() for name in group) == sorted(names)
        assert layer[first] == min(layer.values())
        assert layer[head] == max(layer.values())
        assert len(groups) > 2
    assert model.no_weight_decay() <= set(names)
    scales: dict[int, float] = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        scales |= {id(p): group["lr_scale"] for p in group["params"]}
    assert scales[id(model.get_parameter(head))] == 1 > scales[id(model.get_parameter(first))]


# --- precision, copies, compilation ---------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_half_precision(dtype: torch.dtype, small: SmallModel) -> None:
    model, x = small.create(), small.images()
    exact = model(x)
    with torch.autocast("cpu", dtype):
        output = model.train()(x)
        grouped = model.eval().forward_grouped(x)
    loss_of(output.float()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert grouped.grouping is None or grouped.grouping.assignments[0].dtype == torch.float32
    half = small.create().to(dtype)
    with torch.no_grad():
        output = half(x.to(dtype))
    assert output.dtype == dtype
    assert torch.cosine_similarity(output.float().flatten(), exact.flatten(), dim=0) > 0.9


@every_model
@torch.no_grad()
def test_channels_last(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    expected = model(x)
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_close(found, expected, 1e-4)


@every_model
@torch.no_grad()
def test_copies_pickles_and_state_dicts(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    expected = model(x)
    fresh = small.build()
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(model.state_dict())
    copies = [fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(pointers) == len(set(pointers)), "no two parameters share memory"
    for parameter in model.parameters():
        parameter.zero_()
    assert all(torch.equal(other(x), expected) for other in copies)


@pytest.mark.slow
@every_model
@torch.no_grad()
def test_compiled_model_gives_the_same(small: SmallModel) -> None:
    model, x = small.create(), small.images(1)
    torch._dynamo.reset()
    assert_close(torch.compile(model, backend="eager")(x), model(x))


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def from_file(small: SmallModel, path: Path, state_dict: dict[str, Tensor], **kwargs: Any) -> GroupingNetwork:
    """The model with the weights of a file, as `timm.create_model(pretrained=True)` loads them."""
    save_file({key: value.contiguous() for key, value in state_dict.items()}, path)
    overlay = dict(file=str(path), num_classes=5)
    return small.build(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@every_model
@torch.no_grad()
def test_weights_load_into_other_heads_and_channels(small: SmallModel, weights: Path) -> None:
    model, x = small.create(), small.images()
    state_dict = model.state_dict()
    assert torch.equal(from_file(small, weights, state_dict)(x), model(x))
    other = from_file(small, weights, state_dict, num_classes=7)
    assert torch.equal(other.forward_features(x), model.forward_features(x))
    assert from_file(small, weights, state_dict, in_chans=1)(x[:, :1]).isfinite().all()
    head = f"{model.pretrained_cfg['classifier']}."
    headless = {key: value for key, value in state_dict.items() if not key.startswith(head)}
    assert torch.equal(from_file(small, weights, headless).forward_features(x), model.forward_features(x))


@every_model
def test_weights_that_do_not_fit_are_refused_with_their_keys(small: SmallModel, weights: Path) -> None:
    state_dict = small.create().state_dict()
    cfg = small.build().pretrained_cfg
    adapted = (f"{cfg['classifier']}.", f"{cfg['first_conv']}.")  # by timm, to other numbers of classes and channels
    body = [key for key, value in state_dict.items() if value.ndim and not key.startswith(adapted)][-1]
    missing = {key: value for key, value in state_dict.items() if key != body}
    for changed, message in (
        (missing, rf"missing keys: .*{body}"),
        (state_dict | {"unknown.weight": torch.zeros(2)}, r"leftover keys: unknown\.weight"),
        (state_dict | {body: torch.zeros(3, 3)}, rf"keys of another shape: {body} \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            from_file(small, weights, changed)


@every_model
@torch.no_grad()
def test_another_img_size_resizes_the_position_embedding(small: SmallModel, weights: Path) -> None:
    model, side = small.create(), small.size
    for img_size in ((side // 2, side), (2 * side, 2 * side)):
        other = from_file(small, weights, model.state_dict(), img_size=img_size)
        square = model.pos_embed.unflatten(1, tuple(model.patch_embed.grid_size)).permute(0, 3, 1, 2)
        grid = tuple(other.patch_embed.grid_size)
        resized = nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        assert_close(other.pos_embed.transpose(1, 2), resized.flatten(2))
    other = small.create(img_size=(side, 2 * side))
    with pytest.raises(ValueError, match="no square grid to resize"):
        from_file(small, weights, other.state_dict())


@every_model
@torch.no_grad()
def test_an_image_of_another_size_equals_a_model_of_that_size(small: SmallModel, weights: Path) -> None:
    model = small.create()
    for size in ((small.size // 2, small.size), (2 * small.size, 2 * small.size)):
        other = from_file(small, weights, model.state_dict(), img_size=size)
        assert_close(other(small.images(size=size)), model(small.images(size=size)))
