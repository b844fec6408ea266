"""Farthest point sampling, the other centroids, and graph pooling."""

import math

import pytest
import torch
from torch import Tensor

from grouping_zoo.layers.graph_pooling import GraphPooling
from grouping_zoo.layers.sampling import CENTROID_METHODS, choose_centroids, farthest_point_sampling

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda"))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_sampling(points: Tensor, num_samples: int, mask: Tensor) -> list[int]:
    """The definition for one image, in Python's floats."""
    rows = points.double().tolist()
    sampled, distances = [0], [math.inf if kept else -math.inf for kept in mask.tolist()]
    while len(sampled) < num_samples:
        last = rows[sampled[-1]]
        for j, row in enumerate(rows):
            distances[j] = min(distances[j], sum((a - b) ** 2 for a, b in zip(row, last, strict=True)))
        sampled.append(distances.index(max(distances)))
    return sampled


def point_sets() -> dict[str, Tensor]:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))
    normal = torch.randn(3, 30, 8, generator=generator())
    return {
        "random": normal,
        "wide": torch.randn(2, 40, 384, generator=generator(1)),
        "double": torch.randn(3, 30, 3, generator=generator(2), dtype=torch.float64),
        "far from zero": normal + 1000,
        "tied": torch.stack([grid, grid.flip(0), grid[torch.randperm(20, generator=generator())]]),
        "repeated": normal[:, :7].repeat(1, 4, 1),
        "all equal": torch.full((2, 12, 5), 0.1),
        "mixed batch": torch.cat([normal[:1, :20, :2], grid[None], grid[None, :5].repeat(1, 4, 1)]),
        "one point": normal[:, :1],
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", point_sets())
@pytest.mark.parametrize("num_samples", [1, 6, 25])
def test_sampling_equals_the_definition(kind: str, num_samples: int, device: str) -> None:
    points = point_sets()[kind]
    mask = torch.ones(points.shape[:2], dtype=torch.bool)
    sample = farthest_point_sampling(points.to(device), num_samples)
    for b in range(len(points)):
        expected = plain_sampling(points[b], num_samples, mask[b])
        assert sample.indices[b].tolist() == expected
        seen: list[list[float]] = []
        for index, fresh in zip(expected, sample.fresh[b].tolist(), strict=True):
            assert fresh == (points[b, index].tolist() not in seen)
            seen.append(points[b, index].tolist())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["random", "tied", "repeated"])
def test_masked_points_are_never_sampled(kind: str, device: str) -> None:
    points = point_sets()[kind]
    mask = torch.rand(points.shape[:2], generator=generator(3)) > 0.4
    mask[:, 0] = True
    points = points.where(mask[:, :, None], 1e4)  # farther than any other
    sample = farthest_point_sampling(points.to(device), 9, mask.to(device))
    for b in range(len(points)):
        assert sample.indices[b].tolist() == plain_sampling(points[b], 9, mask[b])


def test_sampling_at_working_size_equals_the_definition_with_shortened_mantissas_allowed() -> None:
    points = torch.randn(4, 196, 384, generator=generator())
    expected = farthest_point_sampling(points.double(), 64).indices
    mask = torch.ones(196, dtype=torch.bool)
    assert expected[0, :12].tolist() == plain_sampling(points[0], 12, mask)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(farthest_point_sampling(points, 64).indices, expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points: expected \(B, N, C\) with N of at least 1, got shape \(2, 3\)"):
        farthest_point_sampling(torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        farthest_point_sampling(torch.zeros(2, 3, 4), 0)


# --- centroids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CENTROID_METHODS)
def test_centroids_are_averages_of_usable_tokens(method: str) -> None:
    tokens = torch.randn(3, 20, 6, generator=generator())
    usable = torch.ones(3, 20, dtype=torch.bool)
    usable[1, 5:] = False
    usable[2, 1:] = False
    centroids = choose_centroids(tokens, 8, usable, method)
    assert centroids.weights.shape == (3, 8, 20)
    assert centroids.valid.sum(dim=1).tolist() == [8, 5, 1]
    for b in range(3):
        weights = centroids.weights[b, centroids.valid[b]]
        assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights)))
        assert not weights[:, ~usable[b]].any()
        assert len(weights.unique(dim=0)) == len(weights)
        if method != "kmeans":
            assert set(weights.unique().tolist()) <= {0.0, 1.0}


def test_farthest_centroids_start_at_the_mean_of_usable_tokens() -> None:
    tokens = torch.tensor([[[0.0], [1.0], [9.0], [-50.0]]])
    usable = torch.tensor([[True, True, True, False]])
    centroids = choose_centroids(tokens, 2, usable, "farthest")  # mean 10 / 3: 9 is farther than 0
    assert centroids.weights[0].argmax(dim=1).tolist() == [2, 0]


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_clustering_finds_separate_clusters(method: str) -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0]])
    tokens = (centres[:, None] + 0.3 * torch.randn(2, 10, 2)).flatten(0, 1)[None]
    centroids = choose_centroids(tokens, 2, torch.ones(1, 20, dtype=torch.bool), method)
    means = (centroids.weights @ tokens)[0]
    assert torch.cdist(means, centres).amin(dim=1).max() < 0.5
    assert means[:, 0].max() > 7


# --- graph pooling --------------------------------------------------------------------------------------------------


def random_pooling(**kwargs: object) -> GraphPooling:
    torch.manual_seed(0)
    pooling = GraphPooling(16, 4, **kwargs).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return pooling


@torch.no_grad()
def test_pooling_equals_the_equations() -> None:
    pooling = random_pooling()
    cls_token, x = torch.randn(1, 1, 16, generator=generator()), torch.randn(1, 9, 16, generator=generator(1))
    pooled = pooling(cls_token, x, 4)

    node = x[0] + pooling.attn(pooling.norm(x))[0]
    node = node - node.mean(dim=0) + pooling.bias
    mean = x[0].double().mean(dim=0)
    points = torch.cat([mean[None], x[0].double()])
    sampled = [i - 1 for i in plain_sampling(points, 5, torch.ones(10, dtype=torch.bool))[1:]]
    assignment = torch.zeros(9, 4)
    for n in range(9):
        cosines = [torch.cosine_similarity(node[n], node[k], dim=0) for k in sampled]
        assignment[n] = (5 * torch.stack(cosines)).softmax(dim=0)
    assert torch.allclose(pooled.assignment[0], assignment, atol=1e-5)

    def widen(token: Tensor) -> Tensor:
        return torch.nn.functional.gelu(pooling.fc1(pooling.norm1(token)))

    for k, index in enumerate(sampled):
        total = sum(assignment[n, k] * widen(x[0, n]) for n in range(9))
        expected = pooling.fc2(pooling.norm2(total / assignment[:, k].sum())) + x[0, index]
        assert torch.allclose(pooled.tokens[0, k], expected, atol=1e-4)
    expected = pooling.fc2(pooling.norm2(widen(cls_token[0, 0]))) + cls_token[0, 0]
    assert torch.allclose(pooled.cls_token[0, 0], expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("num_tokens", [1, 3, 9])
def test_tokens_that_do_not_count_influence_nothing(num_tokens: int) -> None:
    pooling = random_pooling()
    cls_token, x = torch.randn(1, 1, 16, generator=generator()), torch.randn(1, 12, 16, generator=generator(1))
    valid = torch.arange(12)[None] < num_tokens
    x = x.where(valid[:, :, None], 50 * torch.randn(1, 12, 16, generator=generator(2)))
    alone = pooling(cls_token, x[:, :num_tokens], 4)
    padded = pooling(cls_token, x, 4, valid)
    made = min(4, num_tokens)
    assert padded.valid[0].tolist() == [True] * made + [False] * (4 - made)
    assert torch.allclose(padded.cls_token, alone.cls_token, atol=1e-5)
    assert torch.allclose(padded.tokens[:, :made], alone.tokens, atol=1e-5)
    assert torch.allclose(padded.assignment[:, :num_tokens, :made], alone.assignment, atol=1e-5)
    assert torch.allclose(padded.assignment.sum(dim=2), torch.ones(1, 12))
    assert not padded.assignment[:, :, made:].any()


@torch.no_grad()
def test_empty_tokens_are_no_centroids_but_are_pooled() -> None:
    pooling = random_pooling()
    cls_token, x = torch.randn(1, 1, 16, generator=generator()), torch.randn(1, 6, 16, generator=generator(1))
    x[0, 4] = 1000.0
    empty = torch.arange(6)[None] == 4
    pooled = pooling(cls_token, x, 6, empty=empty)
    assert pooled.valid.sum() == 5
    far = x.clone()
    far[0, 4] = -1000.0
    assert not torch.allclose(pooled.tokens, pooling(cls_token, far, 6, empty=empty).tokens)


def test_gradients_are_finite_at_equal_tokens() -> None:
    pooling = random_pooling().train()
    x = torch.ones(2, 5, 16, requires_grad=True)
    pooled = pooling(torch.randn(2, 1, 16), x, 3)
    assert pooled.valid.sum(dim=1).tolist() == [1, 1]
    (pooled.tokens.square().sum() + pooled.cls_token.square().sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pooling.parameters())


def test_unknown_centroids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"centroids: expected one of .*got 'power'"):
        GraphPooling(16, 4, centroids="power")  # type: ignore[arg-type]
