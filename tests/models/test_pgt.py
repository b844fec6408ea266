"""PGT as a timm model: sizes, seeds, groups and iterations per call, its groupings."""

import copy
import math
from typing import Any

import pytest
import timm
import torch

from evaluated import context_of, model_of
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.tasks import TASKS
from zoo import SMALL, loss_of

CASES = {
    "gaussian": "pgt_base",
    "flow": "pgt_base_flow",
    "single_grouping": "pgt_one_head",
    "descend": "pgt_descending",
}
every_case = pytest.mark.parametrize("case", CASES)
images = SMALL["pgt_base"].images


def small_model(case: str = "gaussian", **kwargs: Any) -> Any:
    """A small PGT in evaluation mode, always with the same weights, none of them zero."""
    return SMALL[CASES[case]].create(**kwargs)


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


@pytest.mark.slow
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


@torch.no_grad()
def test_entropies_stay_exact_in_half_precision() -> None:
    model, x = small_model(), images()
    exact = model.assignment_entropies(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found = model.assignment_entropies(x)
        assert all(torch.allclose(a, b, rtol=0.05) for a, b in zip(found, exact, strict=True))


# --- timm's surface -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_only_takes_the_last_layer_of_each_block() -> None:
    backbone = small_model(features_only=True)
    assert [info["module"] for info in backbone.feature_info.get_dicts()] == ["layers.0", "layers.2", "layers.3"]


@every_case
@torch.no_grad()
def test_a_network_without_pooling_gives_its_group_tokens(case: str) -> None:
    model, x = small_model(case), images()
    features = model.forward_features(x)
    assert features.shape == (2, model.num_heads * model.num_groups[-1], model.group_dims[-1])
    tokens = model.forward_grouped(x).grouping.tokens[0].unflatten(2, (model.num_heads, -1))  # (B, M, A, d)
    assert torch.equal(tokens.transpose(1, 2).flatten(1, 2), features), "the last layer's groups, head by head"
    model.reset_classifier(0, "")
    assert model.num_features == model.group_dims[-1]
    with pytest.raises(ValueError, match="the pooling was dropped"):
        model.reset_classifier(0, "map")


def test_seeds_and_the_query_do_not_decay() -> None:
    assert {"pos_embed", "pool.query", "layers.2.grouping.seeds.scale"} <= small_model().no_weight_decay()
