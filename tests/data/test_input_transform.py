"""One image prepared by training's evaluation, `grouping-zoo eval`, the image processor and timm: the same tensor."""

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from grouping_zoo.data.evaluation_dataset import EvaluationDataset, collate_readable
from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.images import Unreadable
from grouping_zoo.data.input_transform import InputTransform, input_transform
from grouping_zoo.data.sets import ImageSet, open_set
from grouping_zoo.hf.image_processing import ZooImageProcessor
from grouping_zoo.layers.superpixels import superpixels_by_size

PLAIN = InputTransform(image_size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(skimage.data.astronaut()[:height, 100 : 100 + width]))


def network(**pretrained_cfg: Any) -> torch.nn.Module:
    found = timm.create_model("resnet10t", num_classes=0)
    found.pretrained_cfg = {**found.pretrained_cfg, "input_size": (3, 64, 64), **pretrained_cfg}
    return found


class OnePhoto(ImageSource):
    """One photo with a mask."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.mask = (np.asarray(image)[..., 0] // 100).astype(np.uint8)

    def __len__(self) -> int:
        return 1

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return LabelledImage(self.image, 4, self.mask)


@pytest.mark.parametrize("size", [(90, 130), (201, 67), (64, 64), (65, 64), (40, 50), (300, 301)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_all_ways_give_the_same_tensor(size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    model = network(crop_pct=crop_pct, interpolation=interpolation)
    transform, image = input_transform(model), photo(*size)
    expected = transform(image)["pixel_values"]
    assert expected.shape == (3, 64, 64)
    sample = EvaluationDataset(ImageSet(OnePhoto(image), "photo", ("a",)), [0], transform)[0]
    assert torch.equal(sample["pixel_values"], expected)
    processed = ZooImageProcessor.of_network(model)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(processed, expected)
    by_timm = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg))
    torch.testing.assert_close(by_timm(image), expected, atol=1e-6, rtol=1e-6)


def test_any_other_crop_mode_squashes_as_the_processor_does() -> None:
    model, image = network(crop_mode="squash", crop_pct=0.8), photo(90, 130)
    transform = input_transform(model)
    processed = ZooImageProcessor.of_network(model)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(transform(image)["pixel_values"], processed)
    assert transform.crop(image).tobytes() == image.resize((80, 80), 3).crop((8, 8, 72, 72)).tobytes()


def test_a_whole_image_of_the_processor_is_that_of_the_transform_where_it_is_square() -> None:
    model, image = network(), photo(130, 130)
    processed = ZooImageProcessor.of_network(model, whole=True)(image, return_tensors="pt")["pixel_values"][0]
    transform = input_transform(model)
    assert torch.equal(transform.inputs(pil_to_tensor(transform.whole(image)))["pixel_values"], processed)


@pytest.mark.parametrize(("size", "expected"), [((90, 130), (64, 92)), ((201, 67), (192, 64)), ((64, 70), (64, 70))])
def test_a_whole_image_keeps_its_aspect_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert input_transform(network()).whole(photo(*size)).size == expected[::-1]


def test_masks_are_cropped_like_their_images() -> None:
    image = photo(90, 130)
    source = ImageSet(OnePhoto(image), "photo", ("a",))
    transform = input_transform(network(crop_pct=1.0))
    sample = EvaluationDataset(source, [0], transform)[0]
    nearest = image.resize((92, 64), Image.Resampling.NEAREST).crop((14, 0, 78, 64))
    assert sample["mask"].tolist() == (np.asarray(nearest)[..., 0] // 100).tolist()
    assert sample["mask"].dtype == torch.int64
    whole = EvaluationDataset(source, [0], transform, whole=True)[0]
    assert whole["pixel_values"].shape == (3, 64, 92)
    assert whole["mask"].shape == (90, 130)
    assert sample["label"] == whole["label"] == 4


def test_scenes_at_the_networks_size_stay_as_they_are() -> None:
    makers = {"superpixels": partial(superpixels_by_size, size=8, method="grid")}
    source = open_set("scenes", length=2, image_size=32, max_objects=1)
    transform = InputTransform(image_size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, input_makers=makers)
    sample, found = EvaluationDataset(source, [1], transform)[0], source[1]
    assert torch.equal((sample["pixel_values"] * 255).round().to(torch.uint8), pil_to_tensor(found.image))
    assert sample["mask"].tolist() == found.mask.tolist()
    assert sample["instances"].tolist() == found.instances.tolist()
    assert (sample["label"], sample["index"]) == (found.label, 0)
    assert sample["superpixels"].unique().tolist() == list(range(16))


def test_unreadable_images_are_left_out_of_a_batch(tmp_path) -> None:
    for name in ("a", "b", "c"):
        photo(40, 40).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    images = EvaluationDataset(open_set(f"folder:{tmp_path}", None), [0, 1, 2], PLAIN)
    batch, unreadable = collate_readable([images[index] for index in range(3)])
    assert batch is not None
    assert batch["index"].tolist() == [0, 2]
    assert [name for name, _ in unreadable] == [str(tmp_path / "b.png")]
    assert "expected a readable image" in unreadable[0].reason
    assert collate_readable([Unreadable("a", "torn")]) == (None, [Unreadable("a", "torn")])


def test_settings_tell_transforms_apart_and_are_equal_in_every_process() -> None:
    def settings(size: int) -> str:
        make = partial(superpixels_by_size, size=size, method="grid")
        return str(InputTransform(mean=(0.0,) * 3, std=(1.0,) * 3, input_makers={"superpixels": make}).settings())

    assert settings(8) == settings(8) != settings(16)
    assert " at 0x" not in settings(8)


def test_a_transform_with_input_makers_can_be_pickled() -> None:
    makers = {"superpixels": partial(superpixels_by_size, size=8, method="grid")}
    transform = InputTransform(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, input_makers=makers)
    again = pickle.loads(pickle.dumps(transform))
    for name, value in transform(photo(40, 60)).items():
        assert torch.equal(again(photo(40, 60))[name], value)
