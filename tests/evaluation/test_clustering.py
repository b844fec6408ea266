import pytest
import timm
import torch
from torch import Tensor

from grouping_zoo.evaluation.clustering import dense_features, kmeans_segments, merge_by_color


def two_halves(images: int = 2) -> Tensor:
    """Feature maps (B, 4, 6, 8) whose left half points another way than the right one."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])[(torch.arange(8) >= 4).long()].T  # (4, 8)
    lengths = 1 + torch.rand(images, 1, 6, 8, generator=generator)
    return directions[None, :, None] * lengths + 0.01 * torch.randn(images, 4, 6, 8, generator=generator)


def test_kmeans_finds_directions() -> None:
    maps = two_halves()
    labels, means = kmeans_segments(maps, 2, size=(12, 16))
    assert labels.shape == (2, 12, 16)
    assert means.shape == (2, 2, 4)
    for image in range(2):
        left, right = labels[image, :, :8], labels[image, :, 8:]
        assert (left == left[0, 0]).all()
        assert (right == right[0, 0]).all()
        assert left[0, 0] != right[0, 0]
        torch.testing.assert_close(means[image, left[0, 0]], maps[image, :, :, :4].mean(dim=(1, 2)))


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


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_dense_features_of_timm_models(name: str) -> None:
    kwargs = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=0, **kwargs).eval()
    features = dense_features(model, torch.randn(2, 3, 64, 64))
    assert features.shape[:2] == (2, model.num_features)
    assert features.shape[2] == features.shape[3] > 1
    assert not features.requires_grad


def striped_photo(widths: list[int], colors: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    labels = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)).expand(4, -1)
    return torch.tensor(colors, dtype=torch.uint8)[labels].permute(2, 0, 1)[None], labels[None]


def test_color_merging_joins_neighbours_of_like_color() -> None:
    red, dark_red, blue = (200, 20, 20), (180, 20, 20), (20, 20, 200)
    image, superpixels = striped_photo([3, 3, 3, 3], [red, dark_red, blue, red])
    four, three, two, one = merge_by_color(image, 10 * superpixels + 5, [9, 3, 2, 1])
    assert len(four.unique()) == 4
    stripes = [[int(level[0, 0, 3 * i]) for i in range(4)] for level in (three, two)]
    a, b, c, d = stripes[0]
    assert a == b
    assert len({a, c, d}) == 3  # the last red one has no red neighbour
    assert len(set(stripes[1])) == 2
    assert int(one.max()) == 0


def test_color_merging_is_nested_connected_and_covers_the_image() -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(256, (2, 3, 24, 24), generator=generator, dtype=torch.uint8)
    superpixels = (torch.arange(24)[:, None] // 3 * 8 + torch.arange(24) // 3).expand(2, -1, -1)
    levels = [superpixels, *merge_by_color(image, superpixels, [16, 8, 4])]
    for finer, coarser, number in zip(levels, levels[1:], (16, 8, 4), strict=False):
        for row in range(2):
            assert coarser[row].unique().tolist() == list(range(number))
            pairs = torch.stack([finer[row].flatten(), coarser[row].flatten()]).unique(dim=1)
            assert pairs.shape[1] == len(finer[row].unique())


def test_color_merging_of_one_superpixel_and_of_bad_input() -> None:
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    (level,) = merge_by_color(image, torch.full((1, 4, 4), 7), [1])
    assert level.tolist() == torch.zeros(1, 4, 4).tolist()
    with pytest.raises(ValueError, match="images: expected uint8"):
        merge_by_color(image.float(), torch.zeros(1, 4, 4).long(), [1])
    with pytest.raises(ValueError, match="superpixels: expected shape"):
        merge_by_color(image, torch.zeros(1, 4, 5).long(), [1])
    with pytest.raises(ValueError, match="regions: expected numbers"):
        merge_by_color(image, torch.zeros(1, 4, 4).long(), [4, 0])
