"""VT-ResNet as a timm model: the paper's counts, timm's weights, grouping, timm's surface."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models._hub import save_for_hf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import grouping_zoo.models.vt_resnet  # noqa: F401 - registers the models
from zoo import with_random_weights

SMALL: dict[str, Any] = dict(
    layers=(1, 1, 1),
    channels=(8, 12, 16),
    stem_type="deep",
    stem_width=4,
    num_modules=3,
    map_dim=24,
    num_tokens=6,
    token_dim=32,
    num_classes=5,
)
CASES: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": dict(block="bottleneck", channels=(4, 4, 8), map_dim=32),
    "clustering": dict(tokenizer="clustering", recurrent=False),
    "pooling": dict(tokenizer="pooling", token_relation="graph"),
    "no_projector": dict(projector=False, token_relation="none"),
    "one_module": dict(num_modules=1),
}
every_case = pytest.mark.parametrize("case", CASES)
# Parameters and multiply-adds of the paper, in millions.
PAPER = {
    "vt_resnet18": (11.7, 1569),
    "vt_resnet34": (21.9, 3236),
    "vt_resnet50": (21.4, 3412),
    "vt_resnet101": (41.5, 7129),
}


def small_model(case: str, **kwargs: Any) -> Any:
    """A small VT-ResNet in evaluation mode, always with the same weights, none of them zero."""
    torch.manual_seed(0)
    return with_random_weights(timm.create_model("vt_resnet18", **{**SMALL, **CASES[case], **kwargs}).eval())


def images(batch_size: int = 2, size: tuple[int, int] = (64, 64), channels: int = 3) -> Tensor:
    return torch.randn(batch_size, channels, *size, generator=torch.Generator().manual_seed(1))


def source_arguments(case: str) -> dict[str, Any]:
    """Of timm's ResNet with the small model's stem and stages, and one more."""
    settings = {**SMALL, **CASES[case]}
    return dict(
        layers=(*settings["layers"], 1),
        channels=(*settings["channels"], 8),
        stem_type=settings["stem_type"],
        stem_width=settings["stem_width"],
    )


def plain_resnet(case: str) -> Any:
    torch.manual_seed(3)
    name = "resnet50" if case == "bottleneck" else "resnet18"
    return with_random_weights(timm.create_model(name, **source_arguments(case), num_classes=7).eval())


def cost(name: str, **kwargs: Any) -> tuple[float, float]:
    """Parameters and multiply-adds at 224x224, in millions."""
    with torch.device("meta"):
        model, x = timm.create_model(name, **kwargs).eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e6


# --- the paper's counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_multiply_adds_are_the_papers(name: str) -> None:
    published, published_multiply_adds = PAPER[name]
    parameters, multiply_adds = cost(name)
    assert abs(parameters / published - 1) < 0.06
    assert 0.97 < multiply_adds / published_multiply_adds < 1.03
    plain_parameters, plain_multiply_adds = cost(name.removeprefix("vt_"))
    assert multiply_adds < plain_multiply_adds
    assert parameters < plain_parameters


def test_multiply_adds_are_counted_as_in_the_paper() -> None:
    assert cost("resnet18")[1] == pytest.approx(1814, abs=1)
    assert cost("resnet50")[1] == pytest.approx(4089, abs=1)


@pytest.mark.parametrize(
    ("kwargs", "parameters", "multiply_adds"),
    [
        # What Tables 5 to 7 say that ResNet-18 and ResNet-34 gain or lose, in millions.
        (dict(token_relation="none"), (-3.2, -4.7), (-52, -77)),
        (dict(token_relation="graph"), (-3.2, -4.7), (-52, -76)),
        (dict(num_tokens=32), (0, 0), (132, 215)),
        (dict(num_tokens=64), (0, 0), (400, 653)),
        (dict(projector=False), (-2.3, -4.5), (-71, -121)),
    ],
)
def test_ablations_move_the_counts_as_in_the_paper(
    kwargs: dict[str, Any], parameters: tuple[float, float], multiply_adds: tuple[float, float]
) -> None:
    for name, wanted_parameters, wanted_multiply_adds in zip(
        ("vt_resnet18", "vt_resnet34"), parameters, multiply_adds, strict=True
    ):
        before, after = cost(name), cost(name, **kwargs)
        assert after[0] - before[0] == pytest.approx(wanted_parameters, rel=0.15, abs=0.02)
        assert after[1] - before[1] == pytest.approx(wanted_multiply_adds, rel=0.1)


def test_tokenizers_cost_about_what_the_paper_says() -> None:
    """Tables 3 and 4; their multiply-adds differ from each other by more than the layers in question have."""
    for name, recurrence, pooling in (("vt_resnet18", 0.6, -0.7), ("vt_resnet34", 1.0, -1.3)):
        default, filters = cost(name), cost(name, recurrent=False)
        assert default[0] - filters[0] == pytest.approx(recurrence, abs=0.1)
        pooled = cost(name, tokenizer="pooling", recurrent=False)
        assert pooled[0] - default[0] == pytest.approx(pooling, rel=0.25)
        clustered = cost(name, tokenizer="clustering")
        assert pooled[1] < filters[1] < default[1] < clustered[1] < 1.01 * default[1]
        assert clustered[0] < default[0]


def test_no_dense_product_runs_over_the_pixels() -> None:
    """With twice the pixels, tokens cost no more: only attention and the shortcut grow."""
    extra = []
    for size in (224, 448):
        with torch.device("meta"):
            model, x = timm.create_model("vt_resnet50").eval(), torch.empty(1, 3, size, size)
            stages = model._stages(x)[-1]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model._run_modules(stages)
        extra.append(counter.get_total_flops() / 2)
    pixels, tokens, modules, projectors = 14 * 14, 16, 3, 2
    assert extra[1] - extra[0] == 3 * pixels * tokens * 1024 * 2 * (modules + projectors)


# --- timm's weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["basic", "bottleneck"])
@torch.no_grad()
def test_timm_resnet_weights_give_the_same_stage_features(case: str, tmp_path: Path) -> None:
    source, x = plain_resnet(case), images(size=(61, 47))
    save_for_hf(source, str(tmp_path / "plain"), model_args=source_arguments(case))
    expected = source.forward_intermediates(x, indices=[0, 1, 2, 3], intermediates_only=True)
    for given in (source.state_dict(), tmp_path / "plain", str(tmp_path / "plain")):
        model = timm.create_model("vt_resnet18", pretrained_backbone=given, **{**SMALL, **CASES[case]}).eval()
        found = model.forward_intermediates(x, indices=[0, 1, 2, 3], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    features = timm.create_model(
        "vt_resnet18", pretrained_backbone=source.state_dict(), features_only=True, **{**SMALL, **CASES[case]}
    ).eval()
    assert torch.equal(features(x)[3], expected[3])


@torch.no_grad()
def test_a_saved_model_opens_with_its_own_weights(tmp_path: Path) -> None:
    save_for_hf(plain_resnet("basic"), str(tmp_path / "plain"), model_args=source_arguments("basic"))
    arguments = {**SMALL, "pretrained_backbone": str(tmp_path / "plain")}
    model = with_random_weights(timm.create_model("vt_resnet18", **arguments).eval())
    save_for_hf(model, str(tmp_path / "saved"))
    opened = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(opened(images()), model(images()))


@pytest.mark.parametrize("depth", [18, 50])
def test_published_models_have_timms_names_and_shapes(depth: int) -> None:
    with torch.device("meta"):
        ours, theirs = timm.create_model(f"vt_resnet{depth}"), timm.create_model(f"resnet{depth}")
    own = {k: v.shape for k, v in ours.state_dict().items() if k.startswith(("conv1", "bn1", "layer"))}
    assert own == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith(("fc", "layer4"))}


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = plain_resnet("basic").state_dict()
    less = {k: v for k, v in weights.items() if not k.startswith("layer3.0.conv2")}
    with pytest.raises(ValueError, match=r"expected all \d+ weights .*, where 1 are missing, first 'layer3"):
        timm.create_model("vt_resnet18", pretrained_backbone=less, **SMALL)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight: expected shape \(8, 8, 3, 3\), got \(1,\)"):
        timm.create_model(
            "vt_resnet18", pretrained_backbone={**weights, "layer1.0.conv1.weight": torch.zeros(1)}, **SMALL
        )
    without_counters = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    timm.create_model("vt_resnet18", pretrained_backbone=without_counters, **SMALL)


# --- tokens and grouping --------------------------------------------------------------------------------------------


@every_case
@torch.no_grad()
def test_modules_follow_each_other_as_written(case: str) -> None:
    model, x = small_model(case), images()
    feature_map, tokens = model._stages(x)[-1], None
    for module in model.vt_modules:
        tokens, _ = module.tokenizer(feature_map, tokens)
        tokens = module.relation(tokens)
        if module.projector is not None:
            feature_map, _ = module.projector(feature_map, tokens)
    features = torch.relu(model.norm(model.final_proj(tokens)))
    assert torch.equal(model.forward_features(x), features)
    assert torch.allclose(model(x), model.fc(features.mean(dim=1)), atol=1e-6)
    assert model.vt_modules[-1].projector is None
    assert features.shape == (2, 6, 32)


@every_case
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (33, 97), (200, 40)])
@torch.no_grad()
def test_any_image_size_groups_every_cell(case: str, size: tuple[int, int]) -> None:
    model, x = small_model(case), images(size=size)
    grid = tuple(math.ceil(side / 16) for side in size)
    assert model(x).isfinite().all()
    grouping = model.forward_grouping(x)
    assert grouping.grid == grid
    assert grouping.num_levels == 2
    assignment = grouping.assignments[0]
    assert assignment.shape == (2, 1, grid[0] * grid[1], 6)
    assert torch.allclose(assignment.sum(dim=3), torch.ones(()), atol=1e-5)
    assert grouping.tokens[0].shape == (2, 6, 32)
    assert grouping.labels(1, size).shape == (2, *size)
    alone = model.forward_grouping(x[1:])
    assert torch.allclose(alone.assignments[0], assignment[1:], atol=1e-5)
    assert torch.allclose(alone.tokens[0], grouping.tokens[0][1:], atol=1e-4)


@torch.no_grad()
def test_grouping_is_the_last_projectors_assignment() -> None:
    model, x = small_model("basic"), images()
    seen: list[tuple[Tensor, Tensor]] = []
    projector = model.vt_modules[1].projector
    projector.register_forward_hook(lambda module, args, output: seen.append((args[1], output[1])))
    grouping = model.forward_grouping(x)
    assert torch.equal(grouping.assignments[0][:, 0], seen[0][1])
    assert torch.equal(grouping.tokens[0], seen[0][0])
    found = model.forward_grouped(x)
    assert torch.equal(found.features, model.forward_features(x))
    assert torch.equal(found.grouping.assignments[0], grouping.assignments[0])
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found.stages, maps, strict=True))


@torch.no_grad()
def test_grouping_without_projector_is_the_attention_over_tokens() -> None:
    model, x = small_model("no_projector"), images()
    attention = model.token_attention(x, -1).flatten(2)  # (B, L, h * w)
    expected = attention / attention.sum(dim=1, keepdim=True)
    assert torch.allclose(model.forward_grouping(x).assignments[0][:, 0], expected.transpose(1, 2), atol=1e-6)
    for parameter in model.vt_modules[-1].tokenizer.parameters():
        parameter.mul_(1e4)  # attention that underflows to zero almost everywhere
    assert torch.allclose(model.forward_grouping(x).assignments[0].sum(dim=3), torch.ones(()), atol=1e-5)


@every_case
@torch.no_grad()
def test_token_attention(case: str) -> None:
    model, x = small_model(case), images(size=(64, 96))
    maps = model.token_attention(x)
    assert maps.shape == (2, 6, 4, 6)
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(()), atol=1e-5)
    assert model.token_attention(x, size=(64, 96)).shape == (2, 6, 64, 96)
    grouping, attention = model.forward_grouping_with_attention(x)
    assert torch.equal(attention, maps)
    assert torch.equal(grouping.assignments[0], model.forward_grouping(x).assignments[0])
    count = len(model.vt_modules)
    with pytest.raises(ValueError, match=f"module: expected -{count} to {count - 1}, got 3"):
        model.token_attention(x, 3)


# --- timm's surface -------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(("batch_size", "size"), [(2, 64), (1, 64), (1, 32)])
def test_training_reaches_every_parameter(case: str, batch_size: int, size: int) -> None:
    model = small_model(case, drop_rate=0.1).train()
    output = model(images(batch_size, (size, size)))
    (output * torch.linspace(-1, 1, 5)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_case
def test_gradient_checkpointing_gives_equal_gradients(case: str) -> None:
    gradients = []
    for enable in (False, True):
        model = small_model(case)
        model.set_grad_checkpointing(enable)
        calls: list[int] = []
        model.vt_modules[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(images()).square().sum().backward()
        assert len(calls) == 1 + enable
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@every_case
@torch.no_grad()
def test_heads(case: str) -> None:
    model, x = small_model(case), images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    assert torch.equal(model(x), model.get_classifier()(pooled))
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    with pytest.raises(ValueError, match="global_pool: expected 'avg' or '', got 'max'"):
        model.reset_classifier(0, "max")


@every_case
@pytest.mark.parametrize("size", [(64, 64), (33, 97)])
@torch.no_grad()
def test_intermediates_and_features_only(case: str, size: tuple[int, int]) -> None:
    model, x = small_model(case), images(size=size)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(maps) == len(model.feature_info) == (4 if case in ("no_projector", "one_module") else 5)
    for found, info in zip(maps, model.feature_info, strict=True):
        assert found.shape == (2, info["num_chs"], *(math.ceil(side / info["reduction"]) for side in size))
        model.get_submodule(info["module"])
    early = model.forward_intermediates(x, indices=[2], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[2])
    with pytest.raises(ValueError, match="output_fmt: expected 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")

    for indices in ((0,), (1, 3), tuple(range(len(maps)))):
        backbone = small_model(case, features_only=True, out_indices=indices)
        backbone.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
        assert backbone.feature_info.channels() == [maps[i].shape[1] for i in indices]
        found = backbone(x)
        assert all(torch.equal(a, maps[i]) for a, i in zip(found, indices, strict=True))
        with torch.enable_grad():
            sum(feature.square().sum() for feature in backbone(x)).backward()
        assert not [name for name, p in backbone.named_parameters() if p.grad is None], "no part is left over"


@every_case
def test_parameter_groups(case: str) -> None:
    model = small_model(case)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
        layer = {name: index for index, group in groups.items() for name in group}
        order = ["conv1.0.weight", "layer1.0.conv1.weight", "layer3.0.conv1.weight", "fc.weight"]
        first = "vt_modules.0.tokenizer.norm.weight"
        order.insert(3, first)
        assert [layer[name] for name in order] == sorted({layer[name] for name in order})
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


def test_drop_path_rises_over_blocks_and_modules() -> None:
    model = small_model("basic", drop_path_rate=0.5)
    assert torch.equal(model(images()), small_model("basic")(images()))
    rates = [m.drop_prob for m in model.modules() if isinstance(m, timm.layers.DropPath)]
    assert sorted(set(rates)) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates == sorted(rates)


@every_case
@torch.no_grad()
def test_precisions_copies_and_other_inputs(case: str) -> None:
    model, x = small_model(case), images()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.allclose(model.to(memory_format=torch.channels_last)(x), expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
        assert model.forward_grouping(x).assignments[0].dtype == torch.float32
    assert copy.deepcopy(model).bfloat16()(x.bfloat16()).isfinite().all()
    for channels in (1, 4):
        assert small_model(case, in_chans=channels)(images(channels=channels)).isfinite().all()
    with pytest.raises(ValueError, match=r"VTResNet: expected images of shape \(B, 3, H, W\), got \(2, 1, 64, 64\)"):
        model(images(channels=1))


@pytest.mark.parametrize("case", ["basic", "clustering", "pooling"])
@torch.no_grad()
def test_compiled_model_gives_the_same(case: str) -> None:
    model, x = small_model(case), images(1)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(block="wide"), r"block: expected one of \('basic', 'bottleneck'\), got 'wide'"),
        (dict(layers=(1, 1)), r"layers and channels: expected one entry a stage.*got \(1, 1\) and \(8, 12, 16\)"),
        (dict(layers=(1, 0, 1)), "layers of at least 1 block"),
        (dict(num_modules=0), "num_modules: expected at least 1, got 0"),
        (dict(num_tokens=0), "num_tokens: expected at least 1, got 0"),
        (dict(token_dim=0), "token_dim: expected at least 1, got 0"),
        (dict(map_dim=0), "map_dim: expected at least 1, got 0"),
        (dict(tokenizer="recurrent"), "tokenizer: expected one of .*got 'recurrent'"),
        (dict(token_relation="mlp"), "token_relation: expected one of .*got 'mlp'"),
        (dict(global_pool="max"), "global_pool: expected 'avg' or '', got 'max'"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model("basic", **kwargs)


@pytest.mark.parametrize("name", [*PAPER, "vt_resnet_nano"])
def test_registered_names(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg = model.pretrained_cfg
    assert model.num_classes == cfg["num_classes"]
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert len(model.vt_modules) == (2 if name in ("vt_resnet18", "vt_resnet_nano") else 3)
    if not timm.models.get_pretrained_cfg(name).has_weights:
        with pytest.raises(RuntimeError, match="No pretrained weights"):
            timm.create_model(name, pretrained=True)


@torch.no_grad()
def test_nano_runs_at_its_size() -> None:
    model = timm.create_model("vt_resnet_nano").eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    assert model(x).shape == (1, 8)
    assert model.forward_grouping(x).grid == (8, 8)
