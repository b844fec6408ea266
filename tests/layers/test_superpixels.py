"""Superpixels and average pooling over them."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from grouping_zoo.layers import seeds as seeds_module
from grouping_zoo.layers.seeds import seeds
from grouping_zoo.layers.segment_pooling import (
    check_superpixels,
    interpolated_pooling,
    nearest_labels,
    nearest_pooling,
)
from grouping_zoo.layers.slic import grid_labels, rgb_to_lab, slic
from grouping_zoo.layers.superpixels import SUPERPIXEL_METHODS, contiguous_labels, make_superpixels


def crop(height: int, width: int, left: int = 60) -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[20 : 20 + height, left : left + width])


def batch(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


# --- all methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SUPERPIXEL_METHODS)
@pytest.mark.parametrize(("height", "width", "number"), [(64, 64, 16), (33, 70, 20), (224, 224, 196), (16, 16, 1)])
def test_labels_are_contiguous_and_counted(method: str, height: int, width: int, number: int) -> None:
    images = batch(crop(height, width), crop(height, width, left=90))
    found = make_superpixels(images, number, method)
    assert found.labels.shape == (2, height, width)
    assert found.labels.dtype == torch.int64
    for labels, count in zip(found.labels, found.counts.tolist(), strict=True):
        assert labels.unique().tolist() == list(range(count))


@pytest.mark.parametrize("method", SUPERPIXEL_METHODS)
def test_batch_gives_what_its_images_give_one_by_one(method: str) -> None:
    images = batch(*(crop(48, 64, left) for left in (0, 50, 100)))
    joint = make_superpixels(images, 24, method)
    for i in range(3):
        alone = make_superpixels(images[i : i + 1], 24, method)
        assert torch.equal(joint.labels[i], alone.labels[0])
        assert joint.counts[i] == alone.counts[0]


@pytest.mark.parametrize("method", SUPERPIXEL_METHODS)
def test_grey_images(method: str) -> None:
    assert make_superpixels(batch(crop(32, 32))[:, :1], 8, method).counts[0] > 1


@pytest.mark.parametrize("method", ["seeds", "slic"])
def test_regions_follow_a_strong_edge(method: str) -> None:
    image = np.full((64, 64, 3), 30, dtype=np.uint8)
    image[:, 27:] = (200, 60, 40)  # off the grid of 16 squares, whose edges lie at multiples of 16
    labels = make_superpixels(batch(image), 16, method).labels[0]
    assert not set(labels[:, :27].unique().tolist()) & set(labels[:, 27:].unique().tolist())


def test_bad_arguments_name_what_was_expected() -> None:
    images = batch(crop(32, 32))
    with pytest.raises(ValueError, match=r"superpixel_method: expected one of .*got 'felzenszwalb'"):
        make_superpixels(images, 16, "felzenszwalb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_superpixels: expected at least 1, got 0"):
        make_superpixels(images, 0)
    with pytest.raises(ValueError, match=r"images: expected uint8 of shape .*got torch.float32 \(1, 3, 32, 32\)"):
        make_superpixels(images.float(), 16)


def test_contiguous_labels_keep_the_order() -> None:
    labels = torch.randint(0, 40, (3, 5, 7), generator=torch.Generator().manual_seed(0)) ** 3
    found = contiguous_labels(labels)
    for i in range(3):
        values, inverse = np.unique(labels[i].numpy(), return_inverse=True)
        assert (found.labels[i].numpy() == inverse.reshape(5, 7)).all()
        assert found.counts[i] == len(values)
    with pytest.raises(ValueError, match="labels: expected values of at least 0"):
        contiguous_labels(-labels)


# --- SEEDS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "asked", "made"), [(224, 224, 196, 196), (224, 224, 100, 81)])
def test_seeds_returns_the_real_count(height: int, width: int, asked: int, made: int) -> None:
    labels, count = seeds(crop(height, width), asked)
    assert count == made == len(np.unique(labels))


def test_seeds_is_opencvs_call_in_lab() -> None:
    import cv2

    image = crop(64, 64)
    algorithm = cv2.ximgproc.createSuperpixelSEEDS(64, 64, 3, 32, 1, 2, 15, False)
    algorithm.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), 20)
    assert (seeds(image, 32)[0] == algorithm.getLabels()).all()


def test_seeds_closes_gaps_in_opencvs_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.array([[0, 7, 7, 3]] * 8, dtype=np.int32).repeat(2, axis=1)
    algorithm = SimpleNamespace(iterate=lambda *args, **kwargs: None, getLabels=lambda: raw)
    fake = SimpleNamespace(ximgproc=SimpleNamespace(createSuperpixelSEEDS=lambda *args, **kwargs: algorithm))
    monkeypatch.setattr(seeds_module, "_opencv", lambda: fake)
    labels, count = seeds(np.zeros((8, 8, 1), dtype=np.uint8), 4)
    assert count == 3
    assert labels[0].tolist() == [0, 0, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("height", "width", "asked"),
    [(9, 31, 7), (8, 200, 6), (10, 500, 20), (32, 32, 1000), (64, 64, 4096), (31, 224, 27), (7, 6, 1), (64, 5, 10)],
)
def test_seeds_survives_sizes_at_which_opencv_would_crash(height: int, width: int, asked: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    labels, count = seeds(image, asked)
    assert labels.shape == (height, width)
    assert count == len(np.unique(labels)) > 0


@pytest.mark.parametrize("size", [(4, 4), (1, 50), (200, 3)])
def test_seeds_refuses_images_that_are_too_small_for_it(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels is too small for SEEDS; choose .* 'slic'"):
        seeds(np.zeros((*size, 3), dtype=np.uint8), 4)


def test_missing_seeds_is_an_error_with_the_command_and_never_another_method(monkeypatch: pytest.MonkeyPatch) -> None:
    images = batch(crop(32, 32))
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="4"))
    with pytest.raises(ModuleNotFoundError, match=r"no cv2.ximgproc.*pip install opencv-contrib-python-headless"):
        make_superpixels(images, 16)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed.*pip install opencv-contrib-python-headless"):
        make_superpixels(images, 16)
    assert make_superpixels(images, 16, "slic").counts[0] > 1


# --- SLIC and grid --------------------------------------------------------------------------------------------------


def test_lab_equals_scikit_image() -> None:
    image = crop(40, 50)
    assert np.allclose(rgb_to_lab(batch(image))[0].permute(1, 2, 0).numpy(), skimage.color.rgb2lab(image), atol=0.05)


def test_slic_equals_plain_loops() -> None:
    image = crop(16, 24)
    rows, columns, number = 2, 3, 6
    lab = skimage.color.rgb2lab(image)
    weight = 10.0 / (16 * 24 / number) ** 0.5
    position = np.stack(np.meshgrid(np.arange(16), np.arange(24), indexing="ij"), axis=-1) * weight
    features = np.concatenate([lab, position], axis=-1)
    labels = np.array([[r * rows // 16 * columns + c * columns // 24 for c in range(24)] for r in range(16)])
    home = labels.copy()
    for _ in range(10):
        centres = np.stack([features[labels == k].mean(axis=0) for k in range(number)])
        for r in range(16):
            for c in range(24):
                at = divmod(home[r, c], columns)
                near = [k for k in range(number) if abs(k // columns - at[0]) <= 1 and abs(k % columns - at[1]) <= 1]
                labels[r, c] = min(near, key=lambda k: ((features[r, c] - centres[k]) ** 2).sum())
    assert (slic(batch(image), number)[0].numpy() == labels).mean() > 0.99  # Lab differs in the last digits


def test_grid_of_196_is_16_pixel_patches() -> None:
    rows = torch.arange(224) // 16
    assert torch.equal(grid_labels(224, 224, 196), rows[:, None] * 14 + rows)


def test_grid_has_at_most_a_cell_a_pixel() -> None:
    assert grid_labels(3, 5, 1000).flatten().tolist() == list(range(15))
    assert grid_labels(1, 40, 10).max() == 9


# --- label maps and pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 8, 9), "integer tensor of labels.*got torch.float32; convert with .long"),
        (torch.zeros(2, 8, 9, dtype=torch.bool), "got torch.bool, a mask"),
        (torch.zeros(2, 9, 8, dtype=torch.int64), r"expected shape \(2, 8, 9\).*got \(2, 9, 8\)"),
        (torch.zeros(8, 9, dtype=torch.int64), r"expected shape \(2, 8, 9\).*got \(8, 9\)"),
        (torch.full((2, 8, 9), -1), "labels from 0 to 71.*got -1 to -1"),
        (torch.full((2, 8, 9), 72), "labels from 0 to 71.*got 72 to 72; number them with `contiguous_labels`"),
        (np.zeros((2, 8, 9), dtype=np.int64), "got ndarray"),
    ],
)
def test_bad_label_maps_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_superpixels(labels, torch.zeros(2, 3, 8, 9))


def random_labels(height: int, width: int, number: int) -> Tensor:
    labels = torch.randint(0, number, (2, height, width), generator=torch.Generator().manual_seed(0))
    return labels.where(labels != 2, 3)  # label 2 is on no pixel


def test_nearest_pooling_equals_plain_loop() -> None:
    features = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(1))
    superpixels = random_labels(32, 40, 5)
    labels = nearest_labels(superpixels, (4, 5))
    assert torch.equal(labels, F.interpolate(superpixels[:, None].float(), size=(4, 5), mode="nearest")[:, 0].long())
    pooled = nearest_pooling(labels, 5) @ features
    for b in range(2):
        for label in range(5):
            cells = [features[b, i] for i in range(20) if labels[b].flatten()[i] == label]
            expected = sum(cells) / len(cells) if cells else torch.zeros(6)
            assert torch.allclose(pooled[b, label], expected, atol=1e-6)
    assert not pooled[:, 2].any()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("grid", "size"), [((4, 5), (32, 40)), ((5, 3), (37, 23)), ((1, 2), (7, 9)), ((6, 6), (4, 5))])
def test_interpolated_pooling_equals_resizing_first(mode: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    features = torch.randn(2, 6, *grid, generator=torch.Generator().manual_seed(1))
    superpixels = random_labels(*size, 5)
    resized = F.interpolate(features, size=size, mode=mode)
    pooled = interpolated_pooling(superpixels, grid, 5, mode) @ features.flatten(2).transpose(1, 2)
    for b in range(2):
        for label in range(5):
            inside = superpixels[b] == label
            expected = resized[b][:, inside].mean(dim=1) if inside.any() else torch.zeros(6)
            assert torch.allclose(pooled[b, label], expected, atol=1e-5)
