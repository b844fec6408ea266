"""Tokenizers, token relations and projector against plain loops over the paper's equations; K-means against Lloyd's."""

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from grouping_zoo.layers.kmeans import spherical_kmeans
from grouping_zoo.layers.token_projector import TokenProjector
from grouping_zoo.layers.token_relation import GraphConvolution, TokenTransformer, make_token_relation
from grouping_zoo.layers.visual_tokenizer import (
    LLOYD_STEPS,
    PoolingTokenizer,
    RecurrentTokenizer,
    VisualTokenizer,
    make_tokenizer,
    token_grid,
)
from zoo import with_random_weights

DIM, TOKEN_DIM, TOKENS, SIZE = 5, 8, 6, (4, 7)
PIXELS = SIZE[0] * SIZE[1]


def feature_map(batch_size: int = 2, dim: int = DIM, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(batch_size, dim, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def some_tokens(batch_size: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch_size, TOKENS, TOKEN_DIM, generator=generator, dtype=torch.float64)


def prepared(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, without a zero or one that could hide a mistake."""
    return with_random_weights(module.double().eval()).requires_grad_(False)


def tokenizer(method: str, dim: int = DIM) -> VisualTokenizer:
    torch.manual_seed(0)
    make = RecurrentTokenizer(dim, TOKEN_DIM, TOKENS) if method == "recurrent" else None
    return prepared(make or make_tokenizer(method, dim, TOKEN_DIM, TOKENS))  # type: ignore[arg-type, return-value]


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def times(vector: Tensor, linear: nn.Module) -> Tensor:
    """x W of a layer that may be missing."""
    return vector if isinstance(linear, nn.Identity) else torch.stack([(vector * w).sum() for w in linear.weight])


# --- tokenizers -----------------------------------------------------------------------------------------------------


def plain_attention(pixels: Tensor, weights: Tensor) -> list[list[float]]:
    """softmax_HW(X W), a row a token: pixels (HW, C), weights (C, L)."""
    return [softmax([dot(pixel, weights[:, token]) for pixel in pixels]) for token in range(weights.shape[1])]


def plain_tokens(attention: list[list[float]], pixels: Tensor, layer: VisualTokenizer) -> Tensor:
    tokens = []
    for row in attention:
        pooled = sum(weight * pixel for weight, pixel in zip(row, pixels, strict=True))
        token = times(pooled, layer.token_proj)
        token = (token - token.mean()) / (token.var(unbiased=False) + layer.norm.eps).sqrt()
        tokens.append(token * layer.norm.weight + layer.norm.bias)
    return torch.stack(tokens)


def group_weights(method: str, layer: VisualTokenizer, x: Tensor, previous: Tensor) -> Tensor:
    """W (C, L) of one image (C, H, W)."""
    if method == "filter":
        return layer.filters.weight.T
    if method == "recurrent":
        return torch.stack([times(token, layer.token_to_filter) for token in previous], dim=1)
    rows, columns = token_grid(TOKENS)
    start = nn.functional.adaptive_avg_pool2d(x, (rows, columns)).flatten(1).T
    return plain_lloyd(x.flatten(1).T, start, LLOYD_STEPS).T


@pytest.mark.parametrize("dim", [DIM, TOKEN_DIM], ids=["projected", "same_width"])
@pytest.mark.parametrize("method", ["filter", "recurrent", "clustering"])
def test_tokenizer_equals_a_plain_loop(method: str, dim: int) -> None:
    layer, x, previous = tokenizer(method, dim), feature_map(dim=dim), some_tokens()
    assert isinstance(layer.token_proj, nn.Identity) == (dim == TOKEN_DIM)
    tokens, attention = layer(x, previous)
    for i in range(2):
        pixels = x[i].flatten(1).T  # (HW, C)
        expected = plain_attention(pixels, group_weights(method, layer, x[i], previous[i]))
        assert torch.allclose(attention[i], torch.tensor(expected, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(tokens[i], plain_tokens(expected, pixels, layer), atol=1e-10)


def test_pooling_tokenizer_averages_cells() -> None:
    layer, x = tokenizer("pooling"), feature_map()
    tokens, attention = layer(x)
    expected = nn.functional.adaptive_avg_pool2d(x, (2, 3)).flatten(2).transpose(1, 2)
    assert torch.allclose(attention.double() @ x.flatten(2).transpose(1, 2), expected, atol=1e-6)
    assert torch.allclose(tokens, layer.norm(layer.token_proj(expected)), atol=1e-5)


@pytest.mark.parametrize("method", ["filter", "recurrent", "clustering", "pooling"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (9, 3)])
def test_attention_sums_to_one_on_any_size(method: str, size: tuple[int, int]) -> None:
    tokens, attention = tokenizer(method)(feature_map(size=size), some_tokens())
    assert tokens.shape == (2, TOKENS, TOKEN_DIM)
    assert tokens.isfinite().all()
    assert attention.shape == (2, TOKENS, size[0] * size[1])
    assert torch.allclose(attention.double().sum(dim=2), torch.ones((), dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("method", ["filter", "recurrent", "clustering", "pooling"])
def test_attention_in_half_precision_is_float32(method: str) -> None:
    tokens, attention = tokenizer(method).bfloat16()(feature_map().bfloat16(), some_tokens().bfloat16())
    assert tokens.dtype == torch.bfloat16
    assert attention.dtype == torch.float32


def test_recurrent_tokens_depend_on_those_before() -> None:
    layer, x = tokenizer("recurrent"), feature_map()
    assert not torch.allclose(layer(x, some_tokens())[0], layer(x, some_tokens().flip(2))[0])


@pytest.mark.parametrize(("count", "grid"), [(16, (4, 4)), (8, (2, 4)), (7, (1, 7)), (1, (1, 1)), (64, (8, 8))])
def test_token_grid(count: int, grid: tuple[int, int]) -> None:
    assert token_grid(count) == grid


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer: expected one of \('filter', .*got 'slots'"):
        make_tokenizer("slots", DIM, TOKEN_DIM, TOKENS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"token_relation: expected one of \('transformer', .*got 'mlp'"):
        make_token_relation("mlp", TOKENS, TOKEN_DIM)  # type: ignore[arg-type]


# --- K-means --------------------------------------------------------------------------------------------------------


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def plain_lloyd(points: Tensor, start: Tensor, num_steps: int) -> Tensor:
    """Listing 1 for one image, point by point: points (N, C), start (K, C)."""
    points = torch.stack([unit(point) for point in points])
    centroids = [unit(centroid) for centroid in start]
    for _ in range(num_steps):
        own: list[list[Tensor]] = [[] for _ in centroids]
        for point in points:
            distances = [float((point - centroid).norm()) for centroid in centroids]
            own[distances.index(min(distances))].append(point)
        centroids = [
            unit(sum(group) / len(group)) if group else centroid for group, centroid in zip(own, centroids, strict=True)
        ]
    return torch.stack(centroids)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 8])
def test_kmeans_is_lloyds_algorithm_step_by_step(num_steps: int) -> None:
    points = feature_map().flatten(2).transpose(1, 2)
    start = points[:, ::5]
    found = spherical_kmeans(points, start, num_steps)
    for i in range(2):
        assert torch.allclose(found[i], plain_lloyd(points[i], start[i], num_steps), atol=1e-12)


def test_kmeans_finds_the_clusters_that_scikit_learn_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 6, dtype=torch.float64)
    points = (centres.repeat(20, 1) + 0.1 * torch.randn(60, 6, generator=generator, dtype=torch.float64))[None]
    points = nn.functional.normalize(points, dim=2)
    found = spherical_kmeans(points, points[:, :3], 10)[0]
    expected = KMeans(3, init=points[0, :3].numpy(), n_init=1).fit(points[0].numpy()).cluster_centers_
    expected = nn.functional.normalize(torch.from_numpy(expected), dim=1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_empty_clusters_stay_where_they_are() -> None:
    points = torch.zeros(1, 4, 3)
    points[0, :, 0] = 1.0
    start = torch.tensor([[[1.0, 0, 0], [1.0, 0, 0], [0, -1.0, 0], [0, 0, 0]]])  # equal, far away, and nowhere
    found = spherical_kmeans(points, start, 5)
    assert torch.equal(found, start)


def test_an_image_without_any_feature_gives_no_nan() -> None:
    layer = make_tokenizer("clustering", DIM, TOKEN_DIM, TOKENS)
    tokens, attention = layer(torch.zeros(2, DIM, 3, 3))
    assert tokens.isfinite().all()
    assert torch.allclose(attention, torch.tensor(1 / 9))


# --- token relations ------------------------------------------------------------------------------------------------


def test_transformer_equals_a_plain_loop() -> None:
    layer, tokens = prepared(TokenTransformer(TOKEN_DIM)), some_tokens()
    found = layer(tokens)
    for i in range(2):
        keys = [times(token, layer.key) for token in tokens[i]]
        queries = [times(token, layer.query) for token in tokens[i]]
        for row in range(TOKENS):
            weights = softmax([dot(keys[row], query) for query in queries])
            token = tokens[i, row] + sum(w * other for w, other in zip(weights, tokens[i], strict=True))
            hidden = times(token, layer.fc1).clamp(min=0)
            assert torch.allclose(found[i, row], token + times(hidden, layer.fc2), atol=1e-10)


def test_transformer_has_the_published_size() -> None:
    assert sum(p.numel() for p in TokenTransformer(1024).parameters()) == 1.5 * 1024**2


def test_graph_convolution_equals_a_plain_loop() -> None:
    layer, tokens = prepared(GraphConvolution(TOKENS)), some_tokens()
    found = layer(tokens)
    for i in range(2):
        for row in range(TOKENS):
            mixed = sum(layer.edges[row, other] * tokens[i, other] for other in range(TOKENS))
            assert torch.allclose(found[i, row], tokens[i, row] + mixed.clamp(min=0), atol=1e-12)


def test_transformer_does_not_depend_on_the_order_of_tokens_and_the_graph_does() -> None:
    tokens = some_tokens()
    transformer, graph = prepared(TokenTransformer(TOKEN_DIM)), prepared(GraphConvolution(TOKENS))
    assert torch.allclose(transformer(tokens.flip(1)), transformer(tokens).flip(1))
    assert not torch.allclose(graph(tokens.flip(1)), graph(tokens).flip(1))


# --- projector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_dim", [DIM, 3, TOKEN_DIM])
def test_projector_equals_a_plain_loop(out_dim: int) -> None:
    layer = prepared(TokenProjector(DIM, out_dim, TOKEN_DIM, key_dim=9))
    x, tokens = feature_map(), some_tokens()
    found, assignment = layer(x, tokens)
    assert isinstance(layer.value, nn.Identity) == (out_dim == TOKEN_DIM)
    for i in range(2):
        keys = [times(token, layer.key) for token in tokens[i]]
        for p in range(PIXELS):
            row, column = divmod(p, SIZE[1])
            pixel = x[i, :, row, column]
            weights = softmax([dot(times(pixel, layer.query), key) for key in keys])
            assert torch.allclose(assignment[i, p], torch.tensor(weights, dtype=torch.float64), atol=1e-10)
            added = times(sum(w * token for w, token in zip(weights, tokens[i], strict=True)), layer.value)
            if out_dim != DIM:
                pixel = torch.stack([(pixel * w).sum() for w in layer.shortcut[0].weight[:, :, 0, 0]])
                norm = layer.shortcut[1]
                pixel = (pixel - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            assert torch.allclose(found[i, :, row, column], pixel + added, atol=1e-10)


@pytest.mark.parametrize(
    "start",
    [
        lambda x, tokens: make_tokenizer("filter", 64, 256, 16).filters.weight @ x.flatten(2),
        lambda x, tokens: RecurrentTokenizer(64, 256, 16).token_to_filter(tokens) @ x.flatten(2),
        lambda x, tokens: (lambda t: t.key(tokens) @ t.query(tokens).transpose(1, 2))(TokenTransformer(256)),
        lambda x, tokens: (lambda p: p.key(tokens) @ p.query.weight @ x.flatten(2))(TokenProjector(64, 64, 256, 256)),
    ],
    ids=["filter", "recurrent", "transformer", "projector"],
)
@torch.no_grad()
def test_logits_start_with_a_spread_of_about_one(start: object) -> None:
    torch.manual_seed(0)
    logits = start(torch.randn(4, 64, 8, 8), torch.randn(4, 16, 256))  # type: ignore[operator]
    assert logits.std() == pytest.approx(1.0, rel=0.25)


def test_pooling_tokenizer_has_no_group_weights() -> None:
    layer = PoolingTokenizer(DIM, TOKEN_DIM, TOKENS)
    assert {name for name, _ in layer.named_parameters()} == {"token_proj.weight", "norm.weight", "norm.bias"}
