"""Multi-grouping against Algorithm 1 and Eq. 3-5 as plain loops, its gradient, chunks and extremes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import grouping_zoo.layers.multi_grouping as module
from grouping_zoo.layers.attention_pooling import AttentionPooling
from grouping_zoo.layers.multi_grouping import GroupingLayer, MultiGrouping
from zoo import with_random_weights

D, d, H, M, N = 6, 4, 2, 3, 7


def operation(dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    settings = dict(dim=D, group_dim=d, num_heads=H, num_groups=M, num_iters=3) | kwargs
    grouping = with_random_weights(MultiGrouping(**settings)).to(dtype)
    with torch.no_grad():
        grouping.key.weight.mul_(3)  # assignments that are neither hard nor undecided
    return grouping


def tokens(batch: int = 2, number: int = N, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, number, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def unit_noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- the equations --------------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    variance = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def plain_mlp(x: Tensor, mlp: Any) -> Tensor:
    hidden = mlp.fc1.weight @ x + mlp.fc1.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return mlp.fc2.weight @ hidden + mlp.fc2.bias


def plain_gru(update: Tensor, state: Tensor, gru: nn.GRUCell) -> Tensor:
    inputs = (gru.weight_ih @ update + gru.bias_ih).chunk(3)
    states = (gru.weight_hh @ state + gru.bias_hh).chunk(3)
    reset, keep = (inputs[0] + states[0]).sigmoid(), (inputs[1] + states[1]).sigmoid()
    return (1 - keep) * (inputs[2] + reset * states[2]).tanh() + keep * state


def plain_seed(noise: Tensor, head: int, seeds: Any) -> Tensor:
    c = seeds.mean[head, 0] + seeds.scale[head, 0] * noise
    if not hasattr(seeds, "weight1"):
        return c
    hidden = seeds.weight1[head].T @ c + seeds.bias1[head, 0]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    out = seeds.weight2[head].T @ hidden + seeds.bias2[head, 0]
    return torch.exp(out[:d]) * c + out[d:]


def plain_grouping(
    layer: Any, x: Tensor, noise: Tensor, num_iters: int, starts: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One image (N, D) with noise (H, M, d): what comes back (N, D), group tokens (H, M, d), assignment (H, N, M).

    `starts` collects the detached tokens that the last iteration starts from.
    """
    normed = [plain_norm(row, layer.norm) for row in x]
    heads, all_groups, assignments = [], [], []
    for head in range(H):
        rows = slice(head * d, (head + 1) * d)
        keys = [layer.key.weight[rows] @ row + layer.key.bias[rows] for row in normed]
        values = [layer.value.weight[rows] @ row + layer.value.bias[rows] for row in normed]

        def assign(c: list[Tensor], keys: list[Tensor] = keys) -> list[list[Tensor]]:
            exponents = [[torch.exp(group @ key / math.sqrt(d)) for group in c] for key in keys]
            return [[e / sum(row) for e in row] for row in exponents]

        c = [plain_seed(eps, head, layer.seeds) for eps in noise[head]]
        for iteration in range(num_iters):
            if iteration == num_iters - 1:
                c = [group.detach().requires_grad_() for group in c]
                if starts is not None:
                    starts += c
            weights = assign(c)
            new = []
            for j, group in enumerate(c):
                mass = sum(row[j] for row in weights)
                update = sum(row[j] * value for row, value in zip(weights, values, strict=True)) / (mass + 1e-8)
                state = plain_gru(update, group, layer.gru)
                new.append(state + plain_mlp(plain_norm(state, layer.group_norm), layer.group_mlp))
            c = new
        weights = assign(c)
        heads.append([sum(w * group for w, group in zip(row, c, strict=True)) for row in weights])
        all_groups.append(torch.stack(c))
        assignments.append(torch.stack([torch.stack(row) for row in weights]))
    joined = [torch.cat([heads[head][i] for head in range(H)]) for i in range(len(x))]
    back = torch.stack([layer.proj.weight @ row + layer.proj.bias for row in joined])
    return back, torch.stack(all_groups), torch.stack(assignments)


@pytest.mark.parametrize("seeding", ["gaussian", "flow"])
@pytest.mark.parametrize("num_iters", [1, 3])
@torch.no_grad()
def test_operation_equals_plain_loop(seeding: Any, num_iters: int) -> None:
    grouping = operation(seeding=seeding)
    x, noise = tokens(), unit_noise(2, H, M, d)
    back, groups = grouping(x, noise, num_iters=num_iters)
    assignment = grouping.assignment(x, groups)
    for image in range(2):
        expected = plain_grouping(grouping, x[image], noise[image], num_iters)
        for found, wanted in zip((back, groups, assignment), expected, strict=True):
            assert (found[image] - wanted).abs().max() < 1e-10
    assert torch.equal(grouping.assignment(x, groups, head=1), assignment[:, 1:2])


@torch.no_grad()
def test_layer_adds_the_mlp_of_what_comes_back() -> None:
    layer = with_random_weights(GroupingLayer(D, operation(), mlp_ratio=2.0).double())
    x, noise = tokens(1), unit_noise(H, M, d)
    refined, groups = layer(x, noise)
    back, expected_groups, _ = plain_grouping(layer.grouping, x[0], noise, 3)
    assert (groups[0] - expected_groups).abs().max() < 1e-10
    for i in range(N):
        assert (refined[0, i] - x[0, i] - plain_mlp(plain_norm(back[i], layer.norm), layer.mlp)).abs().max() < 1e-10


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_chunks_change_nothing(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grouping, x, noise = operation(), tokens().requires_grad_(), unit_noise(H, M, d)
    results = []
    for chunk in (N, length):
        monkeypatch.setattr(module, "_chunk_length", lambda *_, chunk=chunk: chunk)
        back, groups = grouping(x, noise)
        gradient = torch.autograd.grad(back.square().sum() + groups.square().sum(), x)[0]
        results.append((back, groups, gradient, *grouping.entropies(x, groups)))
    for whole, parts in zip(*results, strict=True):
        assert torch.allclose(whole, parts, atol=1e-12)


def test_assignment_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, assign = [], module._assign
    monkeypatch.setitem(module.CHUNK_ENTRIES, "cpu", 5000)

    def recorded(keys: Tensor, queries: Tensor) -> Tensor:
        largest.append(keys.shape[0] * keys.shape[1] * keys.shape[2] * queries.shape[3])
        return assign(keys, queries)

    monkeypatch.setattr(module, "_assign", recorded)
    grouping = operation(torch.float32)
    with torch.no_grad():
        grouping(tokens(1, 3000, torch.float32), num_groups=20)
    assert sum(largest) == 3 * H * 3000 * 20
    assert max(largest) <= 5000


# --- the gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeding", ["gaussian", "flow"])
@pytest.mark.parametrize("num_iters", [1, 2, 3])
def test_gradient_is_that_of_the_last_iteration_alone(seeding: Any, num_iters: int) -> None:
    grouping = operation(seeding=seeding)
    x, noise, starts = tokens(1).requires_grad_(), unit_noise(H, M, d), []

    def loss(back: Tensor, groups: Tensor) -> Tensor:
        return (back * torch.linspace(-1, 1, D, dtype=back.dtype)).sum() + groups.square().sum()

    names = [name for name, _ in grouping.named_parameters() if not name.startswith("seeds.")]
    trained = [*(grouping.get_parameter(name) for name in names), x]
    back, groups, _ = plain_grouping(grouping, x[0], noise, num_iters, starts)
    expected = torch.autograd.grad(loss(back, groups), [*trained, *starts])
    found = torch.autograd.grad(loss(*(part[0] for part in grouping(x, noise, num_iters=num_iters))), trained)
    for name, a, b in zip([*names, "x"], found, expected, strict=False):
        assert torch.allclose(a, b, atol=1e-10), name
        assert b.any(), name

    # The seeds get what reaches the tokens that the last iteration starts from.
    seeds = list(grouping.seeds.parameters())
    arriving = torch.stack(expected[len(trained) :]).view(H, M, d)
    made = torch.stack([torch.stack([plain_seed(noise[h, j], h, grouping.seeds) for j in range(M)]) for h in range(H)])
    expected_seeds = torch.autograd.grad((made * arriving).sum(), seeds)
    found_seeds = torch.autograd.grad(loss(*(part[0] for part in grouping(x, noise, num_iters=num_iters))), seeds)
    for a, b in zip(found_seeds, expected_seeds, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_seeds_that_do_not_learn_change_no_other_gradient() -> None:
    gradients = []
    for learn in (True, False):
        grouping = operation(learn_seeds=learn)
        x = tokens().requires_grad_()
        sum(part.square().sum() for part in grouping(x, unit_noise(H, M, d))).backward()
        assert all((p.grad is not None) == learn for p in grouping.seeds.parameters())
        gradients.append([x.grad, *(p.grad for n, p in grouping.named_parameters() if not n.startswith("seeds."))])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_autocast_leaves_every_weight_its_gradient() -> None:
    grouping = operation(torch.float32).train()
    with torch.autocast("cpu", torch.bfloat16):
        back, groups = grouping(tokens(dtype=torch.float32))
        (back.float().square().sum() + groups.float().square().sum()).backward()
    for name, parameter in grouping.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_seeds_are_drawn_for_each_image_and_follow_the_distribution() -> None:
    grouping = operation(torch.float32, num_groups=4000)
    torch.manual_seed(0)
    seeds = grouping._seed(tokens(2, dtype=torch.float32), None, None)
    assert not torch.equal(seeds[0], seeds[1])
    for head in range(H):
        assert torch.allclose(seeds[0, head].mean(0), grouping.seeds.mean[head, 0], atol=0.1)
        assert torch.allclose(seeds[0, head].std(0), grouping.seeds.scale[head, 0].abs(), atol=0.1)


def test_flow_starts_as_a_gaussian() -> None:
    torch.manual_seed(0)
    noise = unit_noise(H, M, d).float()
    flow = MultiGrouping(D, d, H, seeding="flow").seeds
    assert torch.equal(flow(noise), flow.mean + flow.scale * noise)


def test_unknown_seeding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seeding: expected one of \('gaussian', 'flow'\), got 'uniform'"):
        operation(seeding="uniform")


# --- extremes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_groups", [1, 50])
@pytest.mark.parametrize("num_iters", [1, 5])
@torch.no_grad()
def test_one_group_and_more_groups_than_tokens(num_groups: int, num_iters: int) -> None:
    grouping, x = operation(), tokens()
    back, groups = grouping(x, num_groups=num_groups, num_iters=num_iters)
    assert back.isfinite().all()
    assert groups.shape == (2, H, num_groups, d)
    assignment = grouping.assignment(x, groups)
    assert torch.allclose(assignment.sum(3), torch.ones((), dtype=torch.float64))
    if num_groups == 1:
        entropies = grouping.entropies(x, groups)
        assert not entropies.marginal.any()
        assert not entropies.conditional.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_groups_that_no_token_chooses_stay_finite_in_half_precision(dtype: torch.dtype) -> None:
    grouping = operation(dtype)
    grouping.key.weight.mul_(1000)  # hard assignments: most groups stay empty
    x = tokens(2, 5000, torch.float32).to(dtype)
    back, groups = grouping(x, num_groups=40)
    assert groups.isfinite().all()
    assert back.isfinite().all()
    assert grouping.assignment(x, groups).dtype == torch.float32


@torch.no_grad()
def test_entropies_are_those_of_the_assignment() -> None:
    grouping, x = operation(), tokens()
    _, groups = grouping(x, unit_noise(H, M, d))
    assignment = grouping.assignment(x, groups)  # (B, H, N, M)
    found = grouping.entropies(x, groups)
    for head in range(H):
        conditional = [-sum(p * math.log(p) for p in row) for image in assignment[:, head].tolist() for row in image]
        marginals = assignment[:, head].mean(1).tolist()
        marginal = [-sum(p * math.log(p) for p in row) for row in marginals]
        assert float(found.conditional[head]) == pytest.approx(sum(conditional) / len(conditional), abs=1e-12)
        assert float(found.marginal[head]) == pytest.approx(sum(marginal) / len(marginal), abs=1e-12)


# --- pooling --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pooling_equals_plain_loop() -> None:
    pool = with_random_weights(AttentionPooling(D, 8, num_heads=2)).double()
    x, attention = tokens(1), pool.attention
    biases = attention.in_proj_bias.chunk(3)
    query = attention.q_proj_weight @ pool.query[0, 0] + biases[0]
    keys = [attention.k_proj_weight @ row + biases[1] for row in x[0]]
    values = [attention.v_proj_weight @ row + biases[2] for row in x[0]]
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = F.softmax(torch.stack([query[part] @ key[part] / 2 for key in keys]), dim=0)
        heads.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
    expected = attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias
    assert torch.allclose(pool(x)[0], expected, atol=1e-12)
    with pytest.raises(ValueError, match="feature_dim: expected a multiple of the pooling's 3 heads, got 8"):
        AttentionPooling(D, 8, num_heads=3)
