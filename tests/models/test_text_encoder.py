import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grouping_zoo.models.text_encoder import TextEncoder
from zoo import with_random_weights

EOS, WIDTH, HEADS = 19, 8, 2


def encoder(**kwargs: object) -> TextEncoder:
    torch.manual_seed(0)
    settings = dict(vocab_size=20, context_length=9, width=WIDTH, depth=2, num_heads=HEADS, eos_token_id=EOS)
    return with_random_weights(TextEncoder(**{**settings, **kwargs}).eval())


def ids() -> Tensor:
    return torch.tensor([[1, 5, 6, 7, EOS, 0, 0], [1, 9, EOS, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, EOS]])


def plain_states(model: TextEncoder, tokens: list[int]) -> Tensor:
    """The states (T, C) of one unpadded text: pre-norm blocks in which a token sees itself and those before it."""
    x = torch.stack([model.token_embedding.weight[t] + model.pos_embed[i] for i, t in enumerate(tokens)])
    size = WIDTH // HEADS
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).split(WIDTH, dim=-1)
        attended = torch.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(tokens)):
                weights = torch.softmax(k[: i + 1, part] @ q[i, part] / math.sqrt(size), 0)
                attended[i, part] = weights @ v[: i + 1, part]
        x = x + block.attn.proj(attended)
        hidden = block.mlp.fc1(block.norm2(x))
        x = x + block.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))  # QuickGELU
    return F.layer_norm(x, (WIDTH,), model.norm.weight, model.norm.bias)


def test_states_equal_the_plain_transformer() -> None:
    model = encoder()
    with torch.no_grad():
        states, features = model.forward_features(ids()), model(ids())
        for row, tokens in enumerate(ids().tolist()):
            end = tokens.index(EOS)
            expected = plain_states(model, tokens[: end + 1])
            assert torch.allclose(states[row, : end + 1], expected, atol=1e-5)
            assert torch.allclose(features[row], expected[end], atol=1e-5)


def test_later_tokens_do_not_change_earlier_states() -> None:
    model, changed = encoder(), ids()
    changed[0, 5:] = torch.tensor([8, 3])
    with torch.no_grad():
        assert torch.equal(model.forward_features(ids())[0, :5], model.forward_features(changed)[0, :5])
        assert torch.equal(model(ids())[0], model(changed)[0])


def test_mask_of_padding_at_the_end_changes_nothing() -> None:
    model = encoder()
    mask = (torch.arange(7) <= ids().eq(EOS).int().argmax(1, keepdim=True)).long()
    with torch.no_grad():
        assert torch.allclose(model(ids(), mask), model(ids()), atol=1e-6)
        assert torch.allclose(model(ids(), mask.bool()), model(ids()), atol=1e-6)
        assert torch.equal(model(ids(), torch.ones_like(mask)), model(ids()))


def test_masked_tokens_at_the_start_are_not_looked_at() -> None:
    model = encoder()
    first, second = torch.tensor([[3, 4, 5, 6, EOS]]), torch.tensor([[7, 8, 5, 6, EOS]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        assert torch.equal(model(first, mask), model(second, mask))
        assert not torch.allclose(model(first), model(second))
        assert model.forward_features(first, mask).isfinite().all(), "a masked first token has nothing to look at"


@pytest.mark.parametrize(
    ("eos", "expected"),
    [(EOS, [4, 2]), (None, [4, 2]), (6, [2, 0]), (0, [5, 3])],
    ids=["eos", "legacy", "other", "zero"],
)
def test_feature_is_read_at_the_first_end_token(eos: int | None, expected: list[int]) -> None:
    model = encoder(eos_token_id=eos)
    states = torch.randn(2, 7, WIDTH)
    assert torch.equal(model.pool(states, ids()[:2]), states[torch.arange(2), expected])


def test_texts_beyond_the_context_are_an_error() -> None:
    model = encoder()
    with torch.no_grad():
        assert model(torch.full((1, 9), EOS)).shape == (1, WIDTH)
    with pytest.raises(ValueError, match=r"input_ids: expected at most 9 tokens, got 10; truncate"):
        model(torch.full((1, 10), EOS))


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(masked: bool) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1]]).expand(3, -1) if masked else None
    gradients = []
    for enable in (False, True):
        model = encoder().train()
        model.set_grad_checkpointing(enable)
        model(ids(), mask).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g.abs().max() > 0 for g in gradients[0])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_no_weight_decay_names_exist() -> None:
    names = {name for name, _ in encoder().named_parameters()}
    assert encoder().no_weight_decay() <= names


def test_initialisation_is_clips() -> None:
    torch.manual_seed(0)
    model = TextEncoder(vocab_size=500, context_length=40, width=64, depth=4).requires_grad_(False)
    expected = {
        "token_embedding.weight": 0.02,
        "pos_embed": 0.01,
        "blocks.0.attn.qkv.weight": 64**-0.5,
        "blocks.3.attn.proj.weight": (64 * 2 * 4) ** -0.5,
        "blocks.3.mlp.fc1.weight": (2 * 64) ** -0.5,
        "blocks.3.mlp.fc2.weight": (64 * 2 * 4) ** -0.5,
    }
    for name, std in expected.items():
        assert model.get_parameter(name).std() == pytest.approx(std, rel=0.1), name
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


def test_published_size() -> None:
    with torch.device("meta"):
        model = TextEncoder()
    # 49408 x 256 embedding, 77 x 256 positions, 12 layers of 12 C^2 + 13 C, final norm
    assert sum(p.numel() for p in model.parameters()) == 49408 * 256 + 77 * 256 + 12 * (12 * 256**2 + 13 * 256) + 512
