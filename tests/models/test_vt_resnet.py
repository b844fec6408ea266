"""VT-ResNet as a timm model: the paper's counts, timm's weights, tokens and grouping."""

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

from invariants import assert_invariants
from zoo import SMALL, with_random_weights

CASES = {
    "basic": "vt_resnet18",
    "bottleneck": "vt_resnet50",
    "clustering": "vt_resnet34",
    "pooling": "vt_resnet_pooling",
    "one_module": "vt_resnet_one_module",
}
DEEP_STEM: dict[str, Any] = dict(stem_type="deep", stem_width=4)
every_case = pytest.mark.parametrize("case", CASES)
# Parameters and multiply-adds of the paper, in millions.
PAPER = {
    "vt_resnet18": (11.7, 1569),
    "vt_resnet34": (21.9, 3236),
    "vt_resnet50": (21.4, 3412),
    "vt_resnet101": (41.5, 7129),
}


images = SMALL["vt_resnet18"].images


def small_model(case: str, **kwargs: Any) -> Any:
    """A small VT-ResNet in evaluation mode, always with the same weights, none of them zero."""
    return SMALL[CASES[case]].create(**kwargs)


def source_arguments(case: str) -> dict[str, Any]:
    """Of timm's ResNet with the small model's stages, one more, and a deep stem."""
    kwargs = SMALL[CASES[case]].kwargs
    return DEEP_STEM | dict(layers=(*kwargs["layers"], 1), channels=(*kwargs["channels"], 8))


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
        model = SMALL[CASES[case]].build(pretrained_backbone=given, **DEEP_STEM)
        found = model.forward_intermediates(x, indices=[0, 1, 2, 3], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    features = SMALL[CASES[case]].build(pretrained_backbone=source.state_dict(), features_only=True, **DEEP_STEM)
    assert torch.equal(features(x)[3], expected[3])


@torch.no_grad()
def test_a_saved_model_opens_with_its_own_weights(tmp_path: Path) -> None:
    save_for_hf(plain_resnet("basic"), str(tmp_path / "plain"), model_args=source_arguments("basic"))
    model = small_model("basic", pretrained_backbone=str(tmp_path / "plain"), **DEEP_STEM)
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
    for changed, message in (
        (
            {k: v for k, v in weights.items() if not k.startswith("layer3.0.conv2")},
            "where 1 are missing, first 'layer3",
        ),
        (
            weights | {"layer1.0.conv1.weight": torch.zeros(1)},
            r"conv1\.weight: expected shape \(8, 8, 3, 3\), got \(1,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            small_model("basic", pretrained_backbone=changed, **DEEP_STEM)
    without_counters = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    small_model("basic", pretrained_backbone=without_counters, **DEEP_STEM)


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
    grouping = model.forward_grouping(x)
    assert grouping.grid == tuple(math.ceil(side / 16) for side in size)
    assert grouping.tokens[0].shape == (2, 6, 32)
    assert_invariants(grouping, [size])
    assert model(x).isfinite().all()


@torch.no_grad()
def test_grouping_is_the_last_projectors_assignment() -> None:
    model, x = small_model("basic"), images()
    seen: list[tuple[Tensor, Tensor]] = []
    projector = model.vt_modules[1].projector
    projector.register_forward_hook(lambda module, args, output: seen.append((args[1], output[1])))
    grouping = model.forward_grouping(x)
    assert torch.equal(grouping.assignments[0][:, 0], seen[0][1])
    assert torch.equal(grouping.tokens[0], seen[0][0])


@torch.no_grad()
def test_grouping_without_projector_is_the_attention_over_tokens() -> None:
    model, x = small_model("basic", projector=False), images()
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
def test_later_parts_are_later_layers(case: str) -> None:
    model = small_model(case)
    groups = group_parameters(model, model.group_matcher())
    layer = {name: index for index, names in groups.items() for name in names}
    order = ["conv1.weight", "layer1.0.conv1.weight", "layer3.0.conv1.weight", "vt_modules.0.tokenizer.norm.weight"]
    found = [layer[name] for name in (*order, "fc.weight")]
    assert found == sorted(set(found))


def test_drop_path_rises_over_blocks_and_modules() -> None:
    layers = [m for m in small_model("basic", drop_path_rate=0.5).modules() if isinstance(m, timm.layers.DropPath)]
    assert sorted({layer.drop_prob for layer in layers}) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["basic", "clustering", "pooling"])
@torch.no_grad()
def test_compiled_model_is_one_graph(case: str) -> None:
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


@torch.no_grad()
def test_nano_runs_at_its_size() -> None:
    model = timm.create_model("vt_resnet_nano").eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    assert model(x).shape == (1, 8)
    assert model.forward_grouping(x).grid == (8, 8)
