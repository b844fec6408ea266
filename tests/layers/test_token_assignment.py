import math

import pytest
import torch
from torch import Tensor

from grouping_zoo.layers.token_assignment import ASSIGNMENT_MODES, CrossAttention, GroupingBlock, TokenAssignment

B, N, M, C = 2, 11, 4, 8


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, M, C, generator=generator, dtype=torch.float64).mul(3).to(dtype),
        torch.randn(B, N, C, generator=generator, dtype=torch.float64).mul(3).to(dtype),
    )


def layer(mode: str, dtype: torch.dtype = torch.float64, temperature: float = 1.0) -> TokenAssignment:
    torch.manual_seed(0)
    return TokenAssignment(C, mode, temperature).to(dtype).eval()


def plain_soft(module: TokenAssignment, groups: Tensor, segments: Tensor) -> Tensor:
    """(B, N, M): softmax over the groups of q . k / sqrt(C), one number at a time."""
    q, k = module.q_proj(groups), module.k_proj(segments)
    soft = torch.zeros(B, N, M, dtype=torch.float64)
    for b in range(B):
        for n in range(N):
            logits = [sum(float(q[b, m, c] * k[b, n, c]) for c in range(C)) / math.sqrt(C) for m in range(M)]
            exponentials = [math.exp(x) for x in logits]
            for m in range(M):
                soft[b, n, m] = exponentials[m] / sum(exponentials)
    return soft


def plain_merge(module: TokenAssignment, weights: Tensor, segments: Tensor) -> Tensor:
    """(B, M, C): sum of the weighted values over (the weights' sum + 1), projected."""
    v = module.v_proj(segments)
    merged = torch.zeros(B, M, C, dtype=torch.float64)
    for b in range(B):
        for m in range(M):
            total = sum(float(weights[b, n, m]) for n in range(N))
            for n in range(N):
                merged[b, m] += weights[b, n, m] / (total + 1.0) * v[b, n]
    return module.proj(merged)


@pytest.mark.parametrize("mode", ASSIGNMENT_MODES)
def test_evaluation_equals_the_equations(mode: str) -> None:
    module, (groups, segments) = layer(mode), inputs()
    with torch.no_grad():
        merged, assignment = module(groups, segments)
        soft = plain_soft(module, groups, segments)
        weights = soft if mode == "soft" else torch.nn.functional.one_hot(soft.argmax(-1), M).double()
        assert torch.allclose(assignment, soft, atol=1e-10)
        assert torch.allclose(merged, plain_merge(module, weights, segments), atol=1e-10)


@pytest.mark.parametrize("mode", ["hard", "gumbel"])
def test_hard_merging_has_the_same_value_with_and_without_gradients(mode: str) -> None:
    module, (groups, segments) = layer(mode, torch.float32), inputs(torch.float32)
    with torch.no_grad():
        without, _ = module(groups, segments)
    assert torch.equal(module(groups, segments)[0], without)


def test_an_empty_group_gives_the_projections_bias() -> None:
    module, (groups, segments) = layer("hard"), inputs()
    with torch.no_grad():
        groups[:, 0] = groups[:, 1]  # a tie, which the first of the two wins
        merged, assignment = module(groups, segments)
    owners = assignment.argmax(-1)
    empty = [(b, m) for b in range(B) for m in range(M) if m not in owners[b].tolist()]
    assert empty
    for b, m in empty:
        assert torch.allclose(merged[b, m], module.proj.bias, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_frequencies_of_gumbel_samples_approach_the_softmax(temperature: float) -> None:
    # The temperature sharpens the sample's softness, never the choice itself.
    module = layer("gumbel", torch.float32, temperature).train()
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])[None, :, None].expand(1, M, 40_000).contiguous()
    torch.manual_seed(0)
    sampled = module._merge_weights(logits, logits.softmax(1))
    assert torch.equal(sampled.sum(1), torch.ones(1, 40_000))
    assert set(sampled.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(sampled.mean(2)[0], logits[0, :, 0].softmax(0), atol=0.012)  # over 4 standard errors


def test_samples_differ_between_calls_in_training_only() -> None:
    module, (groups, segments) = layer("gumbel", torch.float32), inputs(torch.float32)
    with torch.no_grad():
        assert torch.equal(module(groups, segments)[0], module(groups, segments)[0])
        module.train()
        assert not torch.equal(module(groups, segments)[0], module(groups, segments)[0])
        assert torch.equal(module(groups, segments)[1], module.eval()(groups, segments)[1]), "soft has no noise"


@pytest.mark.parametrize("training", [False, True])
def test_hard_merging_has_the_softmax_gradient(training: bool) -> None:
    # Straight through: the gradient of the weights that reach the values is taken as if they were the softmax.
    logits = torch.randn(B, M, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream = torch.randn(B, M, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for mode in ("hard", "soft"):
        x = logits.clone().requires_grad_()
        (layer(mode).train(training)._merge_weights(x, x.softmax(1)) * upstream).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-12)
    assert gradients[0].abs().max() > 0.01


def test_gumbel_gradient_is_that_of_the_noisy_softmax() -> None:
    logits = torch.randn(B, M, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(B, M, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    temperature = 0.7
    module = layer("gumbel", temperature=temperature).train()
    torch.manual_seed(5)
    weights = module._merge_weights(logits, logits.softmax(1))
    (gradient,) = torch.autograd.grad((weights * upstream).sum(), logits)
    torch.manual_seed(5)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / temperature).softmax(1)
    (expected,) = torch.autograd.grad((soft * upstream).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-12)
    assert torch.equal(weights.argmax(1), soft.argmax(1))


@pytest.mark.parametrize("mode", ASSIGNMENT_MODES)
def test_every_parameter_and_input_gets_a_finite_gradient(mode: str) -> None:
    module = layer(mode, torch.float32).train()
    groups, segments = (x.requires_grad_() for x in inputs(torch.float32))
    merged, _ = module(groups, segments)
    merged.square().sum().backward()
    for name, value in [*module.named_parameters(), ("groups", groups), ("segments", segments)]:
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        if name != "k_proj.bias":
            assert value.grad.abs().max() > 0, name


@pytest.mark.parametrize("mode", ASSIGNMENT_MODES)
@pytest.mark.parametrize("training", [False, True])
def test_assignment_is_float32_and_sums_to_one_under_autocast(mode: str, training: bool) -> None:
    module, (groups, segments) = layer(mode, torch.float32).train(training), inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        merged, assignment = module(groups, segments)
    assert assignment.dtype == torch.float32
    assert torch.allclose(assignment.sum(-1), torch.ones(B, N), atol=1e-6)
    assert merged.isfinite().all()


@pytest.mark.parametrize("mode", ASSIGNMENT_MODES)
def test_extreme_logits_stay_finite(mode: str) -> None:
    module = layer(mode, torch.float32).train()
    groups, segments = (100 * x for x in inputs(torch.float32))
    merged, assignment = module(groups.requires_grad_(), segments)
    merged.sum().backward()
    assert merged.isfinite().all()
    assert assignment.isfinite().all()
    assert groups.grad.isfinite().all()


def test_wrong_settings_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"assignment: expected one of .* got 'argmax'"):
        TokenAssignment(C, "argmax")
    for temperature in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="assignment_temperature"):
            TokenAssignment(C, temperature=temperature)


def test_cross_attention_equals_the_plain_softmax() -> None:
    torch.manual_seed(0)
    module, (groups, segments) = CrossAttention(C, num_heads=2).double(), inputs()
    with torch.no_grad():
        q, k, v = module.q_proj(groups), module.k_proj(segments), module.v_proj(segments)
        expected = torch.zeros(B, M, C, dtype=torch.float64)
        for head in range(2):
            part = slice(head * C // 2, (head + 1) * C // 2)
            for b in range(B):
                for m in range(M):
                    weights = (k[b, :, part] @ q[b, m, part] / math.sqrt(C / 2)).softmax(0)
                    expected[b, m, part] = weights @ v[b, :, part]
        assert torch.allclose(module(groups, segments), module.proj(expected), atol=1e-10)


def test_grouping_block_equals_the_published_order_of_its_parts() -> None:
    torch.manual_seed(0)
    block = GroupingBlock(C, num_heads=2, num_group_tokens=6, num_output_groups=M, mode="hard").double().eval()
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(B, 6, C, generator=generator, dtype=torch.float64)
    segments = torch.randn(B, N, C, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for norm in (m for m in block.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.add_(torch.rand(C, generator=generator, dtype=torch.float64))
        gelu = torch.nn.functional.gelu
        normed = block.norm_segments(segments)
        transposed = block.norm_groups(tokens).transpose(1, 2)  # (B, C, G)
        mixed = block.mixer.fc2(gelu(block.mixer.fc1(transposed))).transpose(1, 2)
        groups = block.norm_mixed(mixed)
        attention = block.cross_attention
        groups = groups + attention.attn(groups, normed)
        groups = groups + attention.mlp.fc2(gelu(attention.mlp.fc1(attention.norm2(groups))))
        groups = attention.norm_post(groups)
        merged, soft = block.assignment(groups, normed)
        merged = merged + groups
        expected = merged + block.mlp.fc2(gelu(block.mlp.fc1(block.norm_output(merged))))
        found, assignment = block(segments, tokens)
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.equal(assignment, soft)
    assert assignment.shape == (B, N, M)


def test_without_group_content_segments_hold_their_tokens_values_alone() -> None:
    torch.manual_seed(0)
    block = (
        GroupingBlock(C, 2, num_group_tokens=6, num_output_groups=M, mode="hard", group_content=False).double().eval()
    )
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(B, 6, C, generator=generator, dtype=torch.float64)
    segments = torch.randn(B, N, C, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found, assignment = block(segments, tokens)
        normed = block.norm_segments(segments)
        merged, soft = block.assignment(block.norm_mixed(block.mixer(block.norm_groups(tokens))), normed)
        assert torch.allclose(found, merged + block.mlp(block.norm_output(merged)), atol=1e-10)
        assert torch.equal(assignment, soft)
    assert not [name for name, _ in block.named_parameters() if "cross_attention" in name]


def test_singletons_are_what_a_group_of_one_token_becomes_but_for_the_added_one() -> None:
    torch.manual_seed(0)
    block = (
        GroupingBlock(C, 2, num_group_tokens=6, num_output_groups=M, mode="hard", group_content=False).double().eval()
    )
    segments = torch.randn(B, N, C, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        found = block.singletons(segments)
        for b in range(B):
            for n in range(N):
                value = block.assignment.proj(block.assignment.v_proj(block.norm_segments(segments[b, n])))
                assert torch.allclose(found[b, n], value + block.mlp(block.norm_output(value)), atol=1e-10)
