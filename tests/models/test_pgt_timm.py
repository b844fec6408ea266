"""PGT as a timm model: sizes, seeds, groups and iterations per call, its groupings, timm's surface."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

import grouping_zoo.models.pgt  # noqa: F401 - registers the models
from evaluated import context_of, model_of
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.tasks import TASKS
from zoo import with_random_weights

SMALL: dict[str, Any] = dict(
    img_size=32,
    patch_size=4,
    embed_dim=24,
    depths=(1, 2, 1),
    group_dims=(6, 8, 12),
    num_heads=3,
    num_groups=5,
    feature_dim=16,
    feature_heads=2,
    num_classes=7,
)
CASES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "flow": dict(seeding="flow"),
    "single_grouping": dict(num_heads=1, num_groups=15),
    "descend": dict(num_groups=(8, 5, 3), group_dims=(12, 8, 6)),
}
every_case = pytest.mark.parametrize("case", CASES)


def small_model(case: str = "gaussian", **kwargs: Any) -> Any:
    """A small PGT in evaluation mode, always with the same weights, none of them zero."""
    torch.manual_seed(0)
    return with_random_weights(timm.create_model("pgt_base", **(SMALL | CASES[case] | kwargs)).eval())


def images(batch_size: int = 2, size: tuple[int, int] = (32, 32), channels: int = 3) -> Tensor:
    return torch.randn(batch_size, channels, *size, generator=torch.Generator().manual_seed(1))


def loss_of(output: Tensor) -> Tensor:
    return (output * torch.linspace(-1, 1, output.shape[-1])).square().sum()


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [("pgt_tiny", 9.9), ("pgt_small", 34.6), ("pgt_base", 70.2), ("pgt_base_flow", 117.0), ("pgt_nano", 0.36)],
)
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    if name != "pgt_nano":
        with pytest.raises(RuntimeError, match="No pretrained weights"), torch.device("meta"):
            timm.create_model(name, pretrained=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert f"{model.pretrained_cfg['first_conv']}.weight" in model.state_dict()
    assert model.num_features == (512 if name == "pgt_tiny" else 256 if name == "pgt_nano" else 2048)
    assert model.pretrained_cfg["input_size"][1] == model.patch_embed.img_size[0]


@torch.no_grad()
def test_the_packaged_nano_tells_photos_apart_better_than_an_untrained_one() -> None:
    torch.manual_seed(0)
    accuracies = []
    for pretrained in (True, False):
        network = timm.create_model("pgt_nano", pretrained=pretrained).eval()
        context = context_of(model_of(network), EvaluationSet(spec="photos", images=300, train_images=300))
        accuracies.append(TASKS["knn"].run(context)["accuracy"])
    assert accuracies[0] > 30
    assert accuracies[0] > accuracies[1] + 8


@torch.no_grad()
def test_nano_runs_as_its_configuration_says() -> None:
    model = timm.create_model("pgt_nano", num_classes=3).eval()
    assert model(torch.zeros(1, *model.pretrained_cfg["input_size"])).shape == (1, 3)


# --- seeds ----------------------------------------------------------------------------------------------------------


@every_case
@torch.no_grad()
def test_evaluation_repeats_itself_and_leaves_the_random_state_alone(case: str) -> None:
    model, x = small_model(case), images()
    state = torch.get_rng_state()
    expected = model(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(model(x), expected)
    assert torch.equal(model(x, seed=0), expected)
    other = model(x, seed=1)
    assert not torch.allclose(other, expected, atol=1e-5)
    assert torch.equal(model(x, seed=1), other)
    assert torch.equal(copy.deepcopy(model).train()(x, seed=1), other), "a seed decides in training too"


@every_case
@pytest.mark.parametrize("seed", [None, 3])
@torch.no_grad()
def test_batch_gives_what_its_images_give_one_by_one(case: str, seed: int | None) -> None:
    model, x = small_model(case), images(5)
    x[4] = x[1]
    joint, logits = model.forward_grouped(x, seed=seed), model(x, seed=seed)
    for i in range(5):
        alone = model.forward_grouped(x[i : i + 1], seed=seed)
        assert torch.allclose(logits[i : i + 1], model(x[i : i + 1], seed=seed), atol=1e-5)
        assert torch.allclose(joint.stages[-1][i : i + 1], alone.stages[-1], atol=1e-5)
        assert torch.allclose(joint.grouping.assignments[0][i], alone.grouping.assignments[0][0], atol=1e-5)
    assert torch.allclose(logits[4], logits[1], atol=1e-5), "the place in the batch does not count"


def test_training_draws_for_each_image_from_the_global_random_state() -> None:
    model, x = small_model().train(), images(1).repeat(2, 1, 1, 1)
    torch.manual_seed(1)
    first, second = model(x), model(x)
    assert not torch.allclose(first, second, atol=1e-6)
    assert not torch.allclose(first[0], first[1], atol=1e-6)
    torch.manual_seed(1)
    assert torch.equal(model(x), first)


# --- groups and iterations per call ---------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("change", [dict(num_groups=9), dict(num_groups=(4, 1, 100)), dict(num_iters=1)])
@torch.no_grad()
def test_a_call_with_other_numbers_equals_a_model_of_those(case: str, change: dict[str, Any]) -> None:
    model, other, x = small_model(case), small_model(case, **change), images()
    assert torch.equal(model(x, **change), other(x))
    assert torch.equal(model.forward_features(x, **change), other.forward_features(x))
    for a, b in zip(
        model.forward_intermediates(x, intermediates_only=True, **change),
        other.forward_intermediates(x, intermediates_only=True),
        strict=True,
    ):
        assert torch.equal(a, b)
    for layer in range(4):
        found, expected = model.forward_grouping(x, layer, **change), other.forward_grouping(x, layer)
        assert torch.equal(found.assignments[0], expected.assignments[0])
    assert torch.equal(model.assignment_entropies(x, **change).marginal, other.assignment_entropies(x).marginal)
    assert not torch.allclose(model(x, **change), model(x), atol=1e-6)


@torch.no_grad()
def test_layouts_hold_for_each_block() -> None:
    model, x = small_model("descend"), images()
    groupings = [model.forward_grouping(x, layer) for layer in range(4)]
    assert [grouping.num_groups() for grouping in groupings] == [8, 5, 5, 3]
    assert [grouping.tokens[0].shape[2] for grouping in groupings] == [3 * 12, 3 * 8, 3 * 8, 3 * 6]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_groups=0), "num_groups: expected a number of at least 1, or 3 of them, one a block, got 0"),
        (dict(num_groups=(4, 4)), r"num_groups: expected .* one a block, got \(4, 4\)"),
        (dict(num_iters=0), "num_iters: expected at least 1 iteration, got 0"),
    ],
)
def test_bad_numbers_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(images(), **kwargs)
    with pytest.raises(ValueError, match=message):
        small_model(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(1, 1)), r"depths and group_dims: expected one entry a block .* got \(1, 1\) and \(6, 8, 12\)"),
        (dict(depths=(1, 0, 1)), "depths of at least 1"),
        (dict(embed_dim=0), "embed_dim: expected at least 1, got 0"),
        (dict(num_heads=0), "num_heads: expected at least 1, got 0"),
        (dict(group_dims=(6, 0, 12)), r"group_dims: expected widths of at least 1, got \(6, 0, 12\)"),
        (dict(seeding="uniform"), "seeding: expected one of"),
        (dict(global_pool="avg"), "global_pool: expected 'map' or '', got 'avg'"),
        (dict(feature_heads=3), "feature_dim: expected a multiple of the pooling's 3 heads, got 16"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**kwargs)


# --- groupings ------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("size", [(32, 32), (29, 43), (3, 64)])
@torch.no_grad()
def test_groupings_of_every_layer_and_head(case: str, size: tuple[int, int]) -> None:
    model, x = small_model(case), images(size=size)
    heads, grid = model.num_heads, (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    for layer in range(4):
        grouping = model.forward_grouping(x, layer)
        assignment = grouping.assignments[0]
        assert grouping.grid == grid
        assert assignment.shape == (2, heads, grid[0] * grid[1], model.num_groups[layer])
        assert torch.allclose(assignment.sum(3), torch.ones(()), atol=1e-5)
        for head in (0, heads - 1, -1):
            alone = model.forward_grouping(x, layer, head)
            assert torch.allclose(alone.assignments[0][:, 0], assignment[:, head], atol=1e-6)
            width = model.layers[layer].grouping.group_dim
            channels = slice((head % heads) * width, (head % heads + 1) * width)
            assert torch.equal(alone.tokens[0], grouping.tokens[0][:, :, channels])
            assert torch.equal(alone.labels(size=size), grouping.head(head).labels(size=size))
            assert torch.allclose(alone.probabilities(size=size).sum(1), torch.ones(()), atol=1e-5)
        assert torch.equal(model.forward_grouping(x, layer - 4).assignments[0], assignment)
    columns = grid[1]
    expected = [[r // 4 * columns + c // 4 for c in range(size[1])] for r in range(size[0])]
    assert grouping.labels(0, size)[0].tolist() == expected


@every_case
@torch.no_grad()
def test_one_pass_gives_features_tokens_and_grouping(case: str) -> None:
    model, x = small_model(case), images()
    for layer in (-1, 1):
        found = model.forward_grouped(x, layer)
        assert torch.equal(found.features, model.forward_features(x))
        tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found.stages, tokens, strict=True))
        assert torch.equal(found.grouping.assignments[0], model.forward_grouping(x, layer).assignments[0])
    last = model.forward_grouped(x).grouping.tokens[0].unflatten(2, (model.num_heads, -1)).transpose(1, 2)
    assert torch.equal(last.flatten(1, 2), found.features), "the feature is that of the last layer's groups"


@pytest.mark.parametrize(("layer", "head", "message"), [(4, None, "layer"), (-5, None, "layer"), (0, 3, "head")])
def test_unknown_layers_and_heads_are_refused(layer: int, head: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}: expected -"):
        small_model().forward_grouping(images(), layer, head)


@every_case
@torch.no_grad()
def test_entropies_are_those_of_the_groupings(case: str) -> None:
    model, x = small_model(case), images()
    found = model.assignment_entropies(x)
    for layer in range(4):
        assignment = model.forward_grouping(x, layer).assignments[0].double()
        conditional = -(assignment * assignment.log()).sum(3).mean((0, 2))
        mean = assignment.mean(2)
        marginal = -(mean * mean.log()).sum(2).mean(0)
        assert torch.allclose(found.conditional[layer].double(), conditional, atol=1e-5)
        assert torch.allclose(found.marginal[layer].double(), marginal, atol=1e-5)
    assert (found.conditional <= found.marginal + 1e-5).all()
    assert model.train().assignment_entropies(x).marginal.shape == (4, model.num_heads)


def test_fresh_assignments_differ_between_tokens() -> None:
    torch.manual_seed(0)
    found = timm.create_model("pgt_nano").eval().assignment_entropies(images(4, (64, 64)))
    information = found.marginal - found.conditional  # what a token's place and look say about its group, in nats
    assert information.mean(dim=1).min() > 0.15, "of the 2.77 of 16 groups, averaged over heads"


# --- gradients ------------------------------------------------------------------------------------------------------


@every_case
def test_gradients_reach_every_parameter(case: str) -> None:
    model = small_model(case).train()
    loss_of(model(images())).backward()
    unreached = {name for name, p in model.named_parameters() if p.grad is None}
    back = ("layers.3.grouping.proj", "layers.3.norm", "layers.3.mlp")
    assert unreached == {name for name, _ in model.named_parameters() if name.startswith(back)}
    tokens = model.forward_intermediates(images(), 1, intermediates_only=True)[0]
    tokens.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every_case
def test_gradient_checkpointing_gives_equal_gradients(case: str) -> None:
    gradients = []
    for enable in (False, True):
        model, calls = small_model(case).train(), []
        model.layers[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss_of(model(images())).backward()
        assert len(calls) == 1 + enable
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_stay_finite(case: str, dtype: torch.dtype) -> None:
    model, x = small_model(case).train(), images()
    with torch.autocast("cpu", dtype):
        output = model(x)
        grouping = model.forward_grouping(x)
        entropies = model.assignment_entropies(x)
    loss_of(output.float()).backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert grouping.assignments[0].dtype == torch.float32
    assert all(part.isfinite().all() for part in entropies)
    exact = model.eval()(x)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert torch.allclose(model(x).float(), exact, atol=0.1 * float(exact.abs().max()))
    half = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        assert half(x.to(dtype)).isfinite().all()


# --- timm's surface -------------------------------------------------------------------------------------------------


@every_case
@torch.no_grad()
def test_heads(case: str) -> None:
    model, x = small_model(case), images()
    features = model.forward_features(x)
    assert features.shape == (2, model.num_heads * model.num_groups[-1], model.group_dims[-1])
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    assert model.num_features == model.head_hidden_size == 16
    assert torch.equal(model(x), model.get_classifier()(pooled))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert torch.equal(model.get_classifier()(pooled), model(x))
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    with pytest.raises(ValueError, match="global_pool: expected 'map' or ''"):
        model.reset_classifier(0, "avg")
    for bare in (model, small_model(case, num_classes=0, global_pool="")):
        bare.reset_classifier(0, "")
        assert torch.equal(bare(x), features) == (bare is model)
        assert bare.num_features == model.group_dims[-1]
        with pytest.raises(ValueError, match="the pooling was dropped"):
            bare.reset_classifier(0, "map")


def test_reset_classifier_keeps_device_and_dtype() -> None:
    model = small_model().double()
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.float64
    assert not model.head.bias.any()


@every_case
@pytest.mark.parametrize("size", [(32, 32), (29, 43)])
@torch.no_grad()
def test_intermediates_and_features_only(case: str, size: tuple[int, int]) -> None:
    model, x = small_model(case), images(size=size)
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert [tuple(m.shape) for m in maps] == [(2, 24, *grid)] * 4
    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    for spread, own in zip(maps, tokens, strict=True):
        assert torch.equal(spread[:, :, 3, 2], own[:, 3 * grid[1] + 2])
    chosen = model.forward_intermediates(x, indices=[2, 0], intermediates_only=True)
    assert torch.equal(chosen[0], maps[2])
    assert torch.equal(chosen[1], maps[0])
    ran: list[int] = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]
    with pytest.raises(ValueError, match="output_fmt: expected 'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")

    backbone = small_model(case, features_only=True)
    assert [info["module"] for info in backbone.feature_info.get_dicts()] == ["layers.0", "layers.2", "layers.3"]
    assert backbone.feature_info.channels() == [24] * 3
    assert backbone.feature_info.reduction() == [4] * 3
    backbone.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
    for found, expected in zip(backbone(x), (maps[0], maps[2], maps[3]), strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_pruning_keeps_what_the_indices_need() -> None:
    model, x = small_model(), images()
    before = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.layers) == 2
    assert model.num_classes == 0
    after = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert torch.equal(before, after)
    assert model(x).shape == (2, 3 * 5, 8)


@every_case
def test_parameter_groups(case: str) -> None:
    model = small_model(case)
    names = dict(model.named_parameters())
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(name for group in groups.values() for name in group) == sorted(names)
        layer = {name: index for index, group in groups.items() for name in group}
        order = [layer["patch_embed.proj.weight"], *(layer[f"layers.{i}.norm.weight"] for i in range(4))]
        assert order == sorted(set(order))
        assert layer["head.weight"] == max(layer.values())
    exempt = model.no_weight_decay()
    assert exempt <= set(names)
    assert {"pos_embed", "pool.query", "layers.2.grouping.seeds.scale"} <= exempt


@torch.no_grad()
def test_other_sizes_and_channels() -> None:
    for img_size in (64, (32, 64)):
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        model = small_model(img_size=img_size, in_chans=1)
        assert model(images(size=size, channels=1)).isfinite().all()
        assert tuple(model.patch_embed.grid_size) == (size[0] // 4, size[1] // 4)
    with pytest.raises(ValueError, match=r"PGT: expected images of shape \(B, 1, H, W\), got \(2, 3, 32, 32\)"):
        model(images())
    model, other = small_model(), small_model(img_size=(16, 32))
    square = model.pos_embed.unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(square, size=(4, 8), mode="bicubic", align_corners=False)
    other.load_state_dict(model.state_dict() | {"pos_embed": resized.flatten(2).transpose(1, 2)})
    assert torch.allclose(model(images(size=(16, 32))), other(images(size=(16, 32))), atol=1e-5)


@torch.no_grad()
def test_drop_path_acts_in_training_only_and_rises_to_its_rate() -> None:
    model, x = small_model(drop_path_rate=0.5), images()
    assert torch.equal(model(x), small_model()(x))
    rates = [m.drop_prob for m in model.modules() if isinstance(m, timm.layers.DropPath)]
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert model.train()(x).isfinite().all()


@torch.no_grad()
def test_copies_and_state_round_trip() -> None:
    model, x = small_model(), images()
    other = timm.create_model("pgt_base", **SMALL).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@torch.no_grad()
def test_compiled_model_gives_the_same() -> None:
    model, x = small_model(depths=(1, 1), group_dims=(6, 8)), images(1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-5)
