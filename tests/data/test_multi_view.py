from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.multi_view import MultiCropConfig, TwoViewConfig, multi_crop, two_views
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import open_set
from grouping_zoo.layers.superpixels import make_superpixels, superpixels_by_size

PLAIN = InputTransform(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
NOTHING = dict(flip=0.0, color_jitter_probability=0.0, grayscale=0.0)


class RandomImages(ImageSource):
    """Random images of a size, each with a smooth and a rough half."""

    def __init__(self, number: int = 3, size: int = 24) -> None:
        rng = np.random.default_rng(0)
        rough = rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8)
        rough[:, :, : size // 2] = rng.integers(0, 256, (number, 1, 1, 3), dtype=np.uint8)
        self.pixels = rough

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return LabelledImage(Image.fromarray(self.pixels[index]), label=index)


def _bytes(view: torch.Tensor) -> torch.Tensor:
    return (view * 255).round().to(torch.uint8)


def test_a_sample_is_a_function_of_seed_epoch_and_index_alone() -> None:
    def sample(seed: int, key: SampleKey) -> dict:
        return two_views(RandomImages(), 16, PLAIN, TwoViewConfig(), seed)[key]

    before = torch.get_rng_state()
    one = sample(0, SampleKey(3, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = sample(0, SampleKey(3, 1))
    assert all(torch.equal(a, b) for a, b in zip(one["views"], again["views"], strict=True))
    assert not torch.equal(*one["views"])
    for other in (sample(1, SampleKey(3, 1)), sample(0, SampleKey(4, 1)), sample(0, SampleKey(3, 2))):
        assert not torch.equal(one["views"][0], other["views"][0])
    assert one["label"] == 1


def test_without_augmentation_both_views_are_the_whole_image_normalised() -> None:
    inputs = InputTransform(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    config = TwoViewConfig(crop_scale=(1.0, 1.0), blur=(0.0, 0.0), solarize=(0.0, 0.0), **NOTHING)
    source = RandomImages()
    image = torch.from_numpy(source.pixels[2]).permute(2, 0, 1) / 255
    expected = (image - torch.tensor(inputs.mean)[:, None, None]) / torch.tensor(inputs.std)[:, None, None]
    # A crop of another shape than the image's cannot hold all of it, and the fallback is the whole.
    for view in two_views(source, 24, inputs, config, seed=0)[SampleKey(0, 2)]["views"]:
        torch.testing.assert_close(view, expected)


def test_blur_and_solarization_are_asymmetric() -> None:
    config = TwoViewConfig(
        crop_scale=(1.0, 1.0), blur=(1.0, 0.0), blur_sigma=(3.0, 3.0), solarize=(0.0, 1.0), **NOTHING
    )
    source = RandomImages()
    first, second = (_bytes(view) for view in two_views(source, 24, PLAIN, config, 0)[SampleKey(0, 0)]["views"])
    image = torch.from_numpy(source.pixels[0]).permute(2, 0, 1)
    assert torch.equal(second, torch.where(image >= 128, 255 - image, image))
    assert first[..., 14:].float().std() < 0.3 * image[..., 14:].float().std()


@pytest.mark.parametrize(
    ("setting", "fraction", "changed"),
    [
        ("flip", 0.5, lambda view, image: torch.equal(view, image.flip(2))),
        ("grayscale", 0.2, lambda view, image: torch.equal(view[0], view[1]) and torch.equal(view[1], view[2])),
        ("color_jitter_probability", 0.8, lambda view, image: not torch.equal(view, image)),
    ],
)
def test_each_augmentation_happens_as_often_as_it_should(setting, fraction, changed) -> None:
    config = TwoViewConfig(
        crop_scale=(1.0, 1.0), blur=(0.0, 0.0), solarize=(0.0, 0.0), **{**NOTHING, setting: fraction}
    )
    source = RandomImages(1, 8)
    image = torch.from_numpy(source.pixels[0]).permute(2, 0, 1)
    views = two_views(source, 8, PLAIN, config, 0)
    found = [changed(_bytes(view), image) for epoch in range(150) for view in views[SampleKey(epoch, 0)]["views"]]
    assert np.mean(found) == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / 300) ** 0.5)


@pytest.mark.parametrize("method", ["seeds", "slic", "grid"])
def test_superpixels_are_those_of_the_augmented_view(method) -> None:
    makers = {"superpixels": partial(superpixels_by_size, size=8, method=method)}
    inputs = InputTransform(mean=(0.48, 0.45, 0.4), std=(0.2, 0.2, 0.2), input_makers=makers)
    sample = two_views(open_set("scenes", length=2), 32, inputs, TwoViewConfig(), 0)[SampleKey(0, 1)]
    assert not torch.equal(*sample["views"])
    for view, labels in zip(sample["views"], sample["superpixels"], strict=True):
        pixels = view * torch.tensor(inputs.std)[:, None, None] + torch.tensor(inputs.mean)[:, None, None]
        assert torch.equal(labels, make_superpixels(_bytes(pixels)[None], 16, method).labels[0])


def test_views_of_different_sizes_and_superpixels_of_different_counts_make_a_batch() -> None:
    makers = {"superpixels": partial(superpixels_by_size, size=4, method="slic")}
    inputs = InputTransform(mean=(0.0,) * 3, std=(1.0,) * 3, input_makers=makers)
    images = multi_crop(RandomImages(), 24, inputs, MultiCropConfig(num_local=3, local_size=10), 0)
    batch = default_collate([images[SampleKey(0, index)] for index in range(3)])
    sizes = [24, 24, 10, 10, 10]
    assert [tuple(view.shape) for view in batch["views"]] == [(3, 3, size, size) for size in sizes]
    assert [tuple(labels.shape) for labels in batch["superpixels"]] == [(3, size, size) for size in sizes]
    assert all(labels.dtype == torch.int64 for labels in batch["superpixels"])
    # As many as fit a view of that size.
    counts = [{1 + int(labels.max()) for labels in view} for view in batch["superpixels"]]
    assert counts == [{36}, {36}, {6}, {6}, {6}]
    assert batch["label"].tolist() == [0, 1, 2]


def test_local_crops_show_smaller_parts_than_global_ones() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))

    class Ramp(RandomImages):
        def _read(self, epoch: int, index: int) -> LabelledImage:
            return LabelledImage(Image.fromarray(np.ascontiguousarray(ramp)))

    config = MultiCropConfig(num_local=2, local_size=8, blur=(0.0,) * 3, solarize=(0.0,) * 3, **NOTHING)
    crops = multi_crop(Ramp(1), 16, PLAIN, config, 0)
    samples = [crops[SampleKey(epoch, 0)] for epoch in range(40)]
    assert "label" not in samples[0]
    spans = [[float(view.max() - view.min()) for view in sample["views"]] for sample in samples]
    first, second, *local = np.mean(spans, axis=0)
    assert min(first, second) > 0.65
    assert max(local) < 0.55


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (TwoViewConfig, dict(crop_scale=(0.5, 0.1)), "crop_scale: expected 0 < smallest"),
        (TwoViewConfig, dict(blur=(1.0, 1.1)), "blur: expected probabilities"),
        (TwoViewConfig, dict(blur_sigma=(2.0, 0.1)), "blur_sigma: expected 0 < smallest <= largest"),
        (TwoViewConfig, dict(grayscale=-0.1), "grayscale: expected probabilities"),
        (MultiCropConfig, dict(local_scale=(0.0, 0.4)), "local_scale: expected 0 < smallest"),
        (MultiCropConfig, dict(num_local=-1), "num_local, local_size: expected at least 0 and 1"),
    ],
)
def test_wrong_settings_are_named(config, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)
