import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import jaccard_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from grouping_zoo.evaluation.clustering import dense_features, fit_kmeans, kmeans_segments, merge_by_colour
from grouping_zoo.evaluation.feature_cache import cached_features, folder_fingerprint
from grouping_zoo.evaluation.figure_ground import evaluate_figure_ground, foreground_masks, jaccard, most_attended
from grouping_zoo.evaluation.retrieval import SegmentRetrieval, Segments
from grouping_zoo.evaluation.segmentation import evaluate_segmentation

VOID = 255


# --- figure and ground ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [0.1, 0.6, 1.0])
def test_most_attended_tokens_are_those_of_a_greedy_loop(mass: float) -> None:
    attention = torch.rand(3, 2, 9, generator=torch.Generator().manual_seed(0))
    kept = most_attended(attention, mass)
    for row, mask in zip(attention.flatten(0, 1), kept.flatten(0, 1), strict=True):
        chosen, sum_ = set(), 0.0
        for token in sorted(range(9), key=lambda i: -float(row[i])):
            if sum_ >= mass * float(row.double().sum()) - 1e-6:
                break
            chosen.add(token)
            sum_ += float(row[token])
        assert set(mask.nonzero().flatten().tolist()) == chosen


def test_most_attended_of_a_single_even_and_no_attention() -> None:
    assert most_attended(torch.tensor([0.0, 1.0, 0.0])).tolist() == [False, True, False]
    assert most_attended(torch.full((10,), 0.1)).sum() == 6  # exactly 60 % is enough
    assert most_attended(torch.zeros(4)).sum() == 1
    with pytest.raises(ValueError, match="mass: expected a share"):
        most_attended(torch.ones(3), 60)


def test_jaccard_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, 4, 6, 5, generator=generator) > 0.5
    expected = [100 * jaccard_score(a.flatten(), b.flatten()) for a, b in zip(*masks, strict=True)]
    assert jaccard(masks[0], masks[1]).tolist() == pytest.approx(expected)
    empty = torch.zeros(1, 6, 5, dtype=torch.bool)
    assert float(jaccard(empty, empty)) == 100
    assert float(jaccard(empty, ~empty)) == 0


def test_figure_ground_takes_the_best_head_of_each_image() -> None:
    generator = torch.Generator().manual_seed(2)
    attention, token_map = torch.rand(4, 3, 8, generator=generator), torch.randint(8, (4, 6, 5), generator=generator)
    truth = torch.randint(3, (4, 6, 5), generator=generator)
    truth[1] = 0  # without object
    truth[2, :3] = VOID
    answers = iter([(attention[:3], token_map[:3]), (attention[3:], token_map[3:])])
    batches = [(torch.zeros(3, 3, 6, 5), truth[:3]), (torch.zeros(1, 3, 6, 5), truth[3:])]
    figures = evaluate_figure_ground(lambda x: next(answers), batches, ignore_index=VOID)
    table = []
    for image in (0, 2, 3):
        kept = most_attended(attention[image])
        counted = truth[image] != VOID
        objects = ((truth[image] != 0) & counted)[counted].numpy()
        table.append([100 * jaccard_score(objects, head[token_map[image]][counted].numpy()) for head in kept])
    assert figures["jaccard"] == pytest.approx(np.max(table, axis=1).mean())
    assert figures["jaccard_one_head"] == pytest.approx(np.mean(table, axis=0).max())
    assert figures["images"] == 3


def test_attention_on_the_object_gives_100_and_beside_it_0() -> None:
    token_map = torch.arange(4).view(1, 2, 2).repeat_interleave(3, 1).repeat_interleave(3, 2)
    truth = (token_map == 2).long() * 5
    batch = [(torch.zeros(1, 3, 6, 6), truth)]
    for weights, expected in (([0.1, 0.1, 0.7, 0.1], 100), ([0.7, 0.1, 0.1, 0.1], 0)):
        attention = torch.tensor(weights)[None, None]
        assert evaluate_figure_ground(lambda x, a=attention: (a, token_map), batch)["jaccard"] == expected
        assert foreground_masks(attention, token_map).sum() == 9
    with pytest.raises(ValueError, match="at least one image with an object"):
        evaluate_figure_ground(lambda x: (torch.ones(1, 1, 4), token_map), [(torch.zeros(1), truth * 0)])
    with pytest.raises(ValueError, match="token map of the truth's shape"):
        evaluate_figure_ground(lambda x: (torch.ones(1, 1, 4), token_map[:, :2]), batch)


# --- retrieval ------------------------------------------------------------------------------------------------------


def random_segments(images: Tensor) -> Segments:
    """Segments that depend on the images' numbers alone; the last of seven has no pixel."""
    labels, features = [], []
    for image in images:
        generator = torch.Generator().manual_seed(int(image.flatten()[0]))
        labels.append(torch.randint(6, image.shape[-2:], generator=generator))
        features.append(torch.randn(7, 5, generator=generator))
    return Segments(torch.stack(labels), torch.stack(features))


def labelled_images(numbers: list[int], classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + numbers[0])
    truth = torch.randint(classes, (len(numbers), 8, 6), generator=generator)
    truth[:, 0] = VOID
    return torch.tensor(numbers)[:, None, None, None].expand(-1, 1, 8, 6).float(), truth


@pytest.mark.parametrize("soft", [False, True])
def test_retrieval_is_that_of_a_plain_loop(soft: bool) -> None:
    train, test = labelled_images([0, 1, 2, 3, 4, 5], 3), labelled_images([6, 7], 3)
    bank, classes = [], []
    for image, truth in zip(*train, strict=True):
        segments = random_segments(image[None])
        for number in range(6):
            pixels = truth[(segments.labels[0] == number) & (truth != VOID)].tolist()
            shares = [pixels.count(label) / len(pixels) for label in range(3)]
            bank.append(segments.features[0, number].numpy())
            classes.append(shares if soft else np.eye(3)[int(np.argmax(shares))])
    neighbours = NearestNeighbors(n_neighbors=5, metric="cosine").fit(np.stack(bank))
    found = random_segments(test[0])
    expected = torch.empty(2, 8, 6, dtype=torch.int64)
    for image in range(2):
        for number in range(7):
            nearest = neighbours.kneighbors(found.features[image, number : number + 1].numpy())[1][0]
            winner = int(np.argmax(np.mean([classes[i] for i in nearest], axis=0)))
            expected[image][found.labels[image] == number] = winner
    retrieval = SegmentRetrieval(random_segments, 3, neighbours=5, soft=soft, ignore_index=VOID)
    batches = [(train[0][:4], train[1][:4]), (train[0][4:], train[1][4:])]
    assert torch.equal(retrieval.fit(batches)(test[0]), expected)


def test_retrieval_of_pure_and_of_swapped_segments() -> None:
    """Segments that are the classes themselves, told apart by their features, are labelled without a mistake."""
    truth = torch.tensor([[0, 0, 1], [2, 2, 1]]).repeat(4, 1, 1)
    images = torch.zeros(4, 3, 2, 3)
    features = torch.eye(3).repeat(4, 1, 1)
    names = ["a", "b", "c"]
    retrieval = SegmentRetrieval(lambda x: Segments(truth[: len(x)], features[: len(x)]), 3).fit([(images, truth)])
    assert evaluate_segmentation(retrieval, [(images, truth)], names)["miou"] < 100  # 20 of 12 vote: a draw for all
    retrieval.neighbours = 4
    assert evaluate_segmentation(retrieval, [(images, truth)], names)["miou"] == 100
    assert evaluate_segmentation(retrieval, [(images, (truth + 1) % 3)], names)["miou"] == 0


def test_bank_leaves_out_segments_without_label_and_beyond_the_limit() -> None:
    train = labelled_images(list(range(8)), 3)
    everything = SegmentRetrieval(random_segments, 3, ignore_index=VOID).fit([train])
    assert len(everything.features) == 8 * 6
    counts = everything.classes.sum(dim=0)
    assert int(counts.min()) > 5
    limited = SegmentRetrieval(random_segments, 3, ignore_index=VOID, max_per_class=5)
    limited.fit(zip(train[0].split(3), train[1].split(3), strict=True))
    assert limited.classes.sum(dim=0).tolist() == [5, 5, 5]
    first = [everything.features[everything.classes[:, c] == 1][:5] for c in range(3)]
    kept = [limited.features[limited.classes[:, c] == 1] for c in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_retrieval_mistakes_are_errors() -> None:
    images, truth = labelled_images([0], 3)
    with pytest.raises(ValueError, match="call `fit` first"):
        SegmentRetrieval(random_segments, 3)(images)
    with pytest.raises(ValueError, match="is ignore_index set"):
        SegmentRetrieval(random_segments, 3).fit([(images, truth)])
    with pytest.raises(ValueError, match="at least one labelled segment"):
        SegmentRetrieval(random_segments, 3, ignore_index=VOID).fit([(images, torch.full_like(truth, VOID))])
    with pytest.raises(ValueError, match="labels of the truth's shape"):
        SegmentRetrieval(random_segments, 3).fit([(images, truth[:, :4])])
    for setting in ({"neighbours": 0}, {"max_per_class": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            SegmentRetrieval(random_segments, 3, **setting)


# --- clustering -----------------------------------------------------------------------------------------------------


def two_halves(images: int = 2) -> Tensor:
    """Feature maps (B, 4, 6, 8) whose left half points another way than the right one."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])[(torch.arange(8) >= 4).long()].T  # (4, 8)
    lengths = 1 + torch.rand(images, 1, 6, 8, generator=generator)
    return directions[None, :, None] * lengths + 0.01 * torch.randn(images, 4, 6, 8, generator=generator)


@pytest.mark.parametrize("per_set", [False, True])
def test_kmeans_finds_directions(per_set: bool) -> None:
    maps = two_halves()
    clusters: Any = fit_kmeans(maps.split(1), 2) if per_set else 2
    labels, means = kmeans_segments(maps, clusters, size=(12, 16))
    assert labels.shape == (2, 12, 16)
    assert means.shape == (2, 2, 4)
    for image in range(2):
        left, right = labels[image, :, :8], labels[image, :, 8:]
        assert (left == left[0, 0]).all()
        assert (right == right[0, 0]).all()
        assert left[0, 0] != right[0, 0]
        torch.testing.assert_close(means[image, left[0, 0]], maps[image, :, :, :4].mean(dim=(1, 2)))
    if per_set:
        assert (labels[0] == labels[1]).all()


def test_kmeans_is_repeatable_and_takes_one_image_as_in_a_batch() -> None:
    maps = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(4))
    labels = kmeans_segments(maps, 4).labels
    assert torch.equal(labels, kmeans_segments(maps, 4).labels)
    assert torch.equal(labels[1:2], kmeans_segments(maps[1:2], 4).labels)


def test_kmeans_of_few_and_equal_cells() -> None:
    assert kmeans_segments(torch.randn(1, 3, 2, 2), 9).features.shape == (1, 4, 3)
    labels, means = kmeans_segments(torch.ones(1, 3, 4, 4), 3)
    assert int(labels.max()) < 3
    assert means.isfinite().all()
    with pytest.raises(ValueError, match="clusters: expected at least 1"):
        kmeans_segments(torch.ones(1, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="expected 1 to the 4 cells"):
        fit_kmeans([torch.ones(1, 3, 2, 2)], 5)
    with pytest.raises(ValueError, match="is the split empty"):
        fit_kmeans([], 5)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_dense_features_of_timm_models(name: str) -> None:
    kwargs = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=0, **kwargs).eval()
    features = dense_features(model, torch.randn(2, 3, 64, 64))
    assert features.shape[:2] == (2, model.num_features)
    assert features.shape[2] == features.shape[3] > 1
    assert not features.requires_grad


def striped_photo(widths: list[int], colours: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    labels = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)).expand(4, -1)
    return torch.tensor(colours, dtype=torch.uint8)[labels].permute(2, 0, 1)[None], labels[None]


def test_colour_merging_joins_neighbours_of_like_colour() -> None:
    red, dark_red, blue = (200, 20, 20), (180, 20, 20), (20, 20, 200)
    image, superpixels = striped_photo([3, 3, 3, 3], [red, dark_red, blue, red])
    four, three, two, one = merge_by_colour(image, 10 * superpixels + 5, [9, 3, 2, 1])
    assert len(four.unique()) == 4
    stripes = [[int(level[0, 0, 3 * i]) for i in range(4)] for level in (three, two)]
    a, b, c, d = stripes[0]
    assert a == b
    assert len({a, c, d}) == 3  # the last red one has no red neighbour
    assert len(set(stripes[1])) == 2
    assert int(one.max()) == 0


def test_colour_merging_is_nested_connected_and_covers_the_image() -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(256, (2, 3, 24, 24), generator=generator, dtype=torch.uint8)
    superpixels = (torch.arange(24)[:, None] // 3 * 8 + torch.arange(24) // 3).expand(2, -1, -1)
    levels = [superpixels, *merge_by_colour(image, superpixels, [16, 8, 4])]
    for finer, coarser, number in zip(levels, levels[1:], (16, 8, 4), strict=False):
        for row in range(2):
            assert coarser[row].unique().tolist() == list(range(number))
            pairs = torch.stack([finer[row].flatten(), coarser[row].flatten()]).unique(dim=1)
            assert pairs.shape[1] == len(finer[row].unique())


def test_colour_merging_of_one_superpixel_and_of_bad_input() -> None:
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    (level,) = merge_by_colour(image, torch.full((1, 4, 4), 7), [1])
    assert level.tolist() == torch.zeros(1, 4, 4).tolist()
    with pytest.raises(ValueError, match="images: expected uint8"):
        merge_by_colour(image.float(), torch.zeros(1, 4, 4).long(), [1])
    with pytest.raises(ValueError, match="superpixels: expected shape"):
        merge_by_colour(image, torch.zeros(1, 4, 5).long(), [1])
    with pytest.raises(ValueError, match="regions: expected numbers"):
        merge_by_colour(image, torch.zeros(1, 4, 4).long(), [4, 0])


# --- feature cache --------------------------------------------------------------------------------------------------


class CountedNetwork(nn.Module):
    """Counts how often it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.linear(x.to(self.linear.weight.dtype)))


@pytest.fixture
def network() -> CountedNetwork:
    torch.manual_seed(0)
    return CountedNetwork().eval()


def read(folder: Path, network: CountedNetwork, **changes: Any) -> dict[str, Tensor]:
    descriptions = dict(data={"source": "scenes", "length": 6}, preprocessing={"size": [32, 32]}) | changes
    images = torch.arange(24.0).view(6, 4)
    return cached_features(
        folder, lambda: {"features": network(images), "labels": torch.arange(6)}, model=network, **descriptions
    )


def test_second_reading_does_not_run_the_network(tmp_path: Path, network: CountedNetwork) -> None:
    first = read(tmp_path / "cache", network)
    second = read(tmp_path / "cache", network)
    assert network.calls == 1
    assert first.keys() == second.keys() == {"features", "labels"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not first["features"].requires_grad
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_any_change_runs_it_again(tmp_path: Path, network: CountedNetwork) -> None:
    read(tmp_path, network)
    read(tmp_path, network, data={"source": "scenes", "length": 7})
    read(tmp_path, network, preprocessing={"size": [32, 33]})
    assert network.calls == 3
    with torch.no_grad():
        network.linear.weight[0, 0].nextafter_(torch.tensor(9.0))
    read(tmp_path, network)
    network.norm.running_mean[0] += 1e-3
    read(tmp_path, network)
    network.norm.eps = 1e-3  # no weight, but written out
    read(tmp_path, network)
    assert network.calls == 6
    read(tmp_path, network.half())
    assert network.calls == 7


def test_order_of_a_description_does_not_matter(tmp_path: Path, network: CountedNetwork) -> None:
    read(tmp_path, network)
    read(tmp_path, network, data={"length": 6, "source": "scenes"})
    assert network.calls == 1


def test_what_cannot_be_described_is_an_error(tmp_path: Path, network: CountedNetwork) -> None:
    with pytest.raises(ValueError, match="expected values of JSON"):
        read(tmp_path, network, preprocessing={"resize": object()})


def test_interrupted_run_leaves_nothing_and_a_damaged_file_is_named(tmp_path: Path, network: CountedNetwork) -> None:
    def interrupted() -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path, interrupted, model=network, data={}, preprocessing={})
    assert not list(tmp_path.iterdir())
    read(tmp_path, network)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{kept.name} is damaged .* delete it"):
        read(tmp_path, network)


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"2")
    seen = [folder_fingerprint(tmp_path)]
    assert folder_fingerprint(tmp_path) == seen[0]
    os.utime(tmp_path / "b.png", ns=(1, 1))
    seen.append(folder_fingerprint(tmp_path))
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    seen.append(folder_fingerprint(tmp_path))
    (tmp_path / "cat" / "a.png").unlink()
    seen.append(folder_fingerprint(tmp_path))
    assert len(set(seen)) == 4
    with pytest.raises(FileNotFoundError, match="expected an existing one"):
        folder_fingerprint(tmp_path / "dog")
