"""What timm expects of every registered model, shaped after the assertions of its own generic tests."""

import copy
import json
import math
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from zoo import MODELS, SmallModel, case_name

# CAST answers to the same contract in a file of its own.
NAMES = timm.list_models(module="groupvit")
every_model = pytest.mark.parametrize("small", MODELS, ids=case_name)
every_name = pytest.mark.parametrize("name", NAMES)


def loss_of(output: Tensor) -> Tensor:
    """A loss whose gradient differs between channels; a plain sum is constant behind a LayerNorm."""
    return (output * torch.linspace(-1, 1, output.shape[-1])).square().sum()


# --- registration ---------------------------------------------------------------------------------------------------


def test_every_registered_model_takes_part_in_the_shared_tests() -> None:
    assert {small.name for small in MODELS} == set(NAMES)
    assert len({small.case for small in MODELS}) == len(MODELS)


@pytest.fixture(scope="module")
def timm_alone() -> dict[str, list[str]]:
    """What timm knows in a process that has not imported the package."""
    code = f"""
import json, timm
try:
    timm.create_model({NAMES[0]!r})
except RuntimeError as error:
    print(json.dumps(dict(names=timm.list_models() + timm.list_modules(), error=[str(error)])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_timm_alone_says_that_the_name_is_unknown(timm_alone: dict[str, list[str]]) -> None:
    assert timm_alone["error"] == [f"Unknown model ({NAMES[0]})"]


def test_names_are_unique_among_timms(timm_alone: dict[str, list[str]]) -> None:
    # timm replaces a model of the same name, or of another module of the same last name, with no more than a warning.
    modules = {timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1] for name in NAMES}
    assert not (set(NAMES) | modules) & set(timm_alone["names"])


def test_list_models_finds_the_names_by_wildcard() -> None:
    assert set(timm.list_models("*groupvit*")) == {name for name in NAMES if "groupvit" in name}


@every_name
def test_pretrained_cfg_describes_the_model(name: str) -> None:
    model = timm.create_model(name).eval()
    cfg = model.pretrained_cfg
    for key in ("input_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier", "num_classes"):
        assert key in cfg, key
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0]
    with_head = timm.create_model(name, num_classes=3)
    assert f"{cfg['classifier']}.weight" in with_head.state_dict()
    assert with_head.get_classifier() is with_head.get_submodule(cfg["classifier"])
    with torch.no_grad():
        output = model(torch.randn(1, *cfg["input_size"]))
    assert output.shape == (1, model.num_features)
    assert output.isfinite().all()
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == tuple(cfg["input_size"])


@every_name
def test_pretrained_is_loaded_or_refused_with_a_reason(name: str) -> None:
    if timm.models.get_pretrained_cfg(name).has_weights:
        assert timm.create_model(name, pretrained=True).eval()
    else:
        with pytest.raises(RuntimeError, match="No pretrained weights"):
            timm.create_model(name, pretrained=True)


# --- forward and backward -------------------------------------------------------------------------------------------


@every_model
def test_forward_shape(small: SmallModel) -> None:
    with torch.no_grad():
        for num_classes in (0, 5):
            model = small.create(num_classes=num_classes)
            output = model(small.images())
            assert output.shape == (2, num_classes or model.num_features)
            assert output.isfinite().all()


@every_model
def test_backward_reaches_every_parameter(small: SmallModel) -> None:
    model = small.create(num_classes=5).train()
    loss_of(model(small.images())).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # A bias that only shifts all keys alike changes no softmax over the groups' or segments' axis it is constant on.
    zero = [n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith("k_proj.bias")]
    assert not zero


@every_model
def test_soft_assignments_take_part_in_the_gradient(small: SmallModel) -> None:
    model = small.create().train()
    grouping = model.forward_grouping(small.images())
    sum((a.square()).sum() for a in grouping.assignments).backward()
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.grad.abs().max() > 0


@every_model
@pytest.mark.parametrize("size", [(32, 48), (29, 43), (64, 64), (16, 16)])
def test_any_image_size(small: SmallModel, size: tuple[int, int]) -> None:
    model = small.create()
    with torch.no_grad():
        assert model(small.images(size=size)).isfinite().all()
        patch = model.patch_size[0]
        tokens = model.forward_grouping(small.images(size=size)).num_groups(0)
    assert tokens == math.ceil(size[0] / patch) * math.ceil(size[1] / patch)


@every_model
def test_other_img_size_and_channels(small: SmallModel) -> None:
    for img_size in (2 * small.size, (small.size, 2 * small.size)):
        model = small.create(img_size=img_size, in_chans=1)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        with torch.no_grad():
            assert model(small.images(size=size, channels=1)).isfinite().all()
        assert tuple(model.patch_embed.grid_size) == tuple(side // model.patch_size[0] for side in size)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, H, W\), got \(2, 3, "):
        model(small.images())


@every_model
def test_a_smaller_image_equals_a_model_of_that_size_with_the_resized_embedding(small: SmallModel) -> None:
    model, other = small.create(), small.create(img_size=(small.size // 2, small.size))
    state_dict = model.state_dict()
    square = state_dict["pos_embed"].unflatten(1, tuple(model.patch_embed.grid_size)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(
        square, size=tuple(other.patch_embed.grid_size), mode="bicubic", align_corners=False
    )
    other.load_state_dict(state_dict | {"pos_embed": resized.flatten(2).transpose(1, 2)})
    images = small.images(size=(small.size // 2, small.size))
    with torch.no_grad():
        assert torch.allclose(model(images), other(images), atol=1e-5)


@every_model
def test_drop_path_acts_in_training_only_and_rises_to_its_rate(small: SmallModel) -> None:
    model = small.create(drop_path_rate=0.5)
    with torch.no_grad():
        assert torch.equal(model(small.images()), small.create()(small.images()))
    rates = [m.drop_prob for m in model.modules() if isinstance(m, timm.layers.DropPath)]
    assert rates == sorted(rates)
    # A rise from 0 over a single block stays at 0.
    blocks = sum(len(stage.blocks) for stage in model.stages)
    assert max(rates, default=0) == (0.5 if blocks > 1 else 0)


@every_model
def test_drop_rate_acts_before_the_head_in_training_only(small: SmallModel) -> None:
    features = torch.ones(2, 4, small.create().num_features)
    model = small.create(num_classes=3, drop_rate=0.5)
    assert torch.equal(model.forward_head(features), model.forward_head(features))
    model.train()
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@every_model
def test_autocast_stays_finite(small: SmallModel) -> None:
    model = small.create(num_classes=3).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(small.images())
    loss_of(output.float()).backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_half_precision_weights(small: SmallModel) -> None:
    model = small.create(num_classes=3).to(torch.bfloat16)
    with torch.no_grad():
        output = model(small.images().to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


@pytest.mark.parametrize("small", {small.name: small for small in reversed(MODELS)}.values(), ids=case_name)
def test_compiled_model_equals_the_plain_one(small: SmallModel) -> None:
    model, images = small.create(), small.images()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images), model(images), atol=1e-5)


# --- head -----------------------------------------------------------------------------------------------------------


@every_model
def test_head_of_features_is_forward(small: SmallModel) -> None:
    model = small.create(num_classes=5)
    with torch.no_grad():
        features = model.forward_features(small.images())
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert pooled.shape[1] == model.head_hidden_size
        assert torch.equal(pooled, features.mean(1))
        assert torch.equal(model.forward_head(features), model(small.images()))
        assert torch.equal(model.get_classifier()(pooled), model(small.images()))


@every_model
def test_reset_classifier(small: SmallModel) -> None:
    model = small.create(num_classes=5)
    with torch.no_grad():
        features = model.forward_features(small.images())
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert torch.equal(model(small.images()), features.mean(1))
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(small.images()).shape == (2, 7)
        model.reset_classifier(0, "")
        assert torch.equal(model(small.images()), features)
        assert torch.equal(model.forward_head(features, pre_logits=True), features)
        created = small.create(num_classes=0, global_pool="")
        assert created(small.images()).shape == features.shape
    with pytest.raises(ValueError, match="global_pool: expected 'avg' or '', got 'max'"):
        model.reset_classifier(0, "max")
    assert model.global_pool == ""


@every_model
def test_reset_classifier_keeps_device_and_dtype(small: SmallModel) -> None:
    model = small.create().to(torch.float64)
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.float64
    assert not model.head.bias.any()


# --- features -------------------------------------------------------------------------------------------------------


@every_model
def test_features_only(small: SmallModel) -> None:
    stages = len(small.create().stages)
    for out_indices in (None, (0,), (stages - 1,), (0, stages - 1), (-1,)):
        kwargs = {} if out_indices is None else dict(out_indices=out_indices)
        model = small.create(features_only=True, **kwargs)
        indices = [index % stages for index in (out_indices or range(stages))]
        reductions, channels = model.feature_info.reduction(), model.feature_info.channels()
        assert [info["module"] for info in model.feature_info.get_dicts()] == [f"stages.{i}" for i in indices]
        for size in ((small.size, small.size), (29, 43)):
            with torch.no_grad():
                features = model(small.images(size=size))
            assert len(features) == len(reductions) == len(channels) == len(indices)
            for feature, reduction, width in zip(features, reductions, channels, strict=True):
                assert feature.shape == (2, width, math.ceil(size[0] / reduction), math.ceil(size[1] / reduction))
                assert feature.isfinite().all()


@every_model
def test_features_only_of_other_numbers_of_stages(small: SmallModel) -> None:
    stages = dict(depths=(1, 1), num_group_tokens=(5, 3), num_output_groups=(4, 2))
    model = small.create(features_only=True, **stages)
    with torch.no_grad():
        assert len(model(small.images())) == 2


@every_model
def test_intermediates_equal_features_only(small: SmallModel) -> None:
    model, features_only = small.create(), small.create(features_only=True)
    with torch.no_grad():
        final, intermediates = model.forward_intermediates(small.images())
        features = features_only(small.images())
        assert torch.equal(final, model.forward_features(small.images()))
    assert len(features) == len(intermediates)
    for a, b in zip(features, intermediates, strict=True):
        assert torch.equal(a, b)


@every_model
def test_intermediates_spread_each_stages_tokens_over_the_grid_by_the_soft_assignments(small: SmallModel) -> None:
    model, images = small.create(), small.images(size=(29, 43))
    with torch.no_grad():
        _, maps = model.forward_intermediates(images)
        _, tokens = model.forward_intermediates(images, output_fmt="NLC")
        grouping = model.forward_grouping(images)
    for level, (spread, own) in enumerate(zip(maps, tokens, strict=True)):
        assert own.shape[1] == grouping.num_groups(level), "group tokens are not among a stage's tokens"
        expected = grouping.compose(level) @ own  # (B, N_0, C)
        assert torch.allclose(spread.flatten(2).transpose(1, 2), expected, atol=1e-5)


@every_model
def test_intermediates_options(small: SmallModel) -> None:
    model, images = small.create(), small.images()
    last = len(model.stages) - 1
    with torch.no_grad():
        every = model.forward_intermediates(images, intermediates_only=True)
        for indices, expected in ((1, [last]), (2, [last - 1, last]), ([0], [0]), ([-1, 0], [last, 0])):
            found = model.forward_intermediates(images, indices=indices, intermediates_only=True)
            assert [any(torch.equal(f, every[i]) for f in found) for i in expected] == [True] * len(expected)
            assert len(found) == len(expected)
        early = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], every[0])
        final, taken = model.forward_intermediates(images, indices=[0], stop_early=True)
        assert torch.equal(final, model.forward_features(images)), "the final features need every stage"
        assert torch.equal(taken[0], every[0])
        normed = model.forward_intermediates(images, norm=True, output_fmt="NLC", intermediates_only=True)
        plain = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        assert all(torch.equal(a, model.norm(b)) for a, b in zip(normed, plain, strict=True))
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(images, output_fmt="NHWC")


@every_model
def test_stopping_early_skips_the_later_stages(small: SmallModel) -> None:
    model, ran = small.create(), []
    for index, stage in enumerate(model.stages):
        for block in stage.blocks:
            block.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        model.forward_intermediates(small.images(), indices=[0], stop_early=True, intermediates_only=True)
    assert set(ran) == {0}


@every_model
def test_pruning_keeps_what_the_indices_need(small: SmallModel) -> None:
    model, images = small.create(num_classes=4), small.images()
    with torch.no_grad():
        before = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
        assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
        assert len(model.stages) == 2
        assert model.num_classes == 0
        after = model.forward_intermediates(images, indices=[1], intermediates_only=True, stop_early=True)[0]
    assert torch.equal(before, after)


# --- training helpers -----------------------------------------------------------------------------------------------


@every_model
def test_gradient_checkpointing_gives_equal_gradients(small: SmallModel) -> None:
    gradients = []
    for enable in (False, True):
        model = small.create(num_classes=3).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss_of(model(small.images())).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*gradients, strict=True))


@every_model
def test_gradient_checkpointing_recomputes_blocks(small: SmallModel) -> None:
    model, calls = small.create().train(), []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(small.images()).sum().backward()
    assert len(calls) == 2


@every_model
@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_covers_every_parameter_in_order(small: SmallModel, coarse: bool) -> None:
    model = small.create(num_classes=3)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    layer = {name: index for index, names in groups.items() for name in names}
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    assert layer[first] == min(layer.values())
    assert layer["head.weight"] == max(layer.values())
    order = [layer[f"stages.{i}.blocks.0.norm1.weight"] for i, stage in enumerate(model.stages) if len(stage.blocks)]
    assert order == sorted(set(order)), "later stages are later layers"
    assert layer[first] < order[0]


@every_model
def test_layer_decay_scales_grow_from_the_stem_to_the_head(small: SmallModel) -> None:
    model = small.create(num_classes=3)
    scales: dict[int, float] = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        scales |= {id(p): group["lr_scale"] for p in group["params"]}
    named = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert named["head.weight"] == 1
    assert named["pos_embed"] < named["stages.0.blocks.0.norm1.weight"] < named["head.weight"]
    assert named["stages.0.group_tokens"] < 1
    later = [scale for name, scale in named.items() if ".blocks." in name and not name.startswith("stages.0.")]
    assert named["stages.0.grouping.assignment.q_proj.weight"] <= min(later, default=1)


@every_model
def test_no_weight_decay_names_exist(small: SmallModel) -> None:
    model = small.create()
    names = model.no_weight_decay()
    assert names <= {name for name, _ in model.named_parameters()}
    assert any("group_tokens" in name for name in names)
    assert "pos_embed" in names


# --- state ----------------------------------------------------------------------------------------------------------


@every_model
def test_state_dict_round_trip_and_copies(small: SmallModel) -> None:
    model = small.create(num_classes=3)
    copied = copy.deepcopy(model)
    other = timm.create_model(small.name, **small.kwargs, num_classes=3).eval()
    with torch.no_grad():
        expected = model(small.images())
        assert not torch.equal(other(small.images()), expected)
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(other(small.images()), expected)
        model.norm.weight.zero_()
        assert torch.equal(copied(small.images()), expected), "a copy shares nothing"


@every_model
def test_no_two_parameters_share_memory(small: SmallModel) -> None:
    pointers = [p.data_ptr() for p in small.create(num_classes=3).parameters()]
    assert len(pointers) == len(set(pointers))


@every_model
def test_initialisation(small: SmallModel) -> None:
    torch.manual_seed(0)
    model = timm.create_model(small.name, **small.kwargs, num_classes=3).requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            expected = module.in_features**-0.5 if model.unit_init else 0.02
            if model.unit_init and name.endswith(("assignment.q_proj", "assignment.k_proj")):
                expected /= 2
            assert module.weight.std() == pytest.approx(expected, rel=0.35), name
            assert not module.bias.any(), name
    assert model.stages[0].group_tokens.std() == pytest.approx(1.0 if model.unit_init else 0.02, rel=0.3)
    for stage in model.stages[1:]:
        assert stage.group_tokens is None or not stage.group_tokens.any(), "later group tokens start at zero"


def test_published_model_has_the_published_size() -> None:
    model = timm.create_model("groupvit_small_patch16_224")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(28.8e6, rel=0.005)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(1, 1)), "depths, num_group_tokens and num_output_groups: expected one entry a stage"),
        (dict(num_group_tokens=(0, 8, 0)), "num_group_tokens: expected at least 1 in every stage but the last"),
        (dict(num_group_tokens=(8, 0, 8)), "num_group_tokens"),
        (dict(num_output_groups=(0, 8, 0)), "num_output_groups"),
        (dict(global_pool="token"), "global_pool: expected 'avg' or ''"),
        (dict(stem="resnet"), "stem: expected 'patch' or 'conv', got 'resnet'"),
        (dict(stem="conv", patch_size=12), "patch_size: a convolution stem needs a power of two"),
        (dict(assignment="argmax"), "assignment: expected one of"),
        (dict(embed_dim=50), "embed_dim|num_heads"),
        (dict(depths=()), "depths|num_group_tokens"),
    ],
)
def test_wrong_arguments_are_an_error_that_names_them(kwargs: dict[str, object], message: str) -> None:
    small = dict(img_size=32, patch_size=8, embed_dim=48, num_heads=4, depths=(1, 1, 1))
    if kwargs == dict(depths=()):
        kwargs = dict(depths=(), num_group_tokens=(), num_output_groups=())
    with pytest.raises(ValueError, match=message):
        timm.create_model("groupvit_small_patch16_224", **{**small, **kwargs})
