"""The built-in crops of photos: classes, what may not tell them, and the parts that training and validation share."""

import numpy as np
import pytest
from PIL import Image

import grouping_zoo.data.sets.photos as photos
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import open_set
from grouping_zoo.data.sets.photos import PHOTOS, PhotoCrops


def test_crops_are_grey_and_of_every_photo() -> None:
    crops = PhotoCrops(length=300, image_size=(32, 48))
    labels = [0] * len(crops.class_names)
    for image, label in crops:
        assert (image.mode, image.size) == ("RGB", (48, 32))
        assert np.ptp(np.asarray(image).astype(int), axis=2).max() == 0
        labels[label] += 1
    assert len(labels) == sum(map(len, PHOTOS.values())) == 15
    assert min(labels) >= 8, "300 crops of 15 photos"


def test_brightness_and_contrast_do_not_tell_the_photo() -> None:
    means, deviations = [], []
    for seed in range(2):
        drawn: dict[int, list[np.ndarray]] = {}
        for image, label in PhotoCrops(length=900, image_size=16, seed=seed):
            drawn.setdefault(label, []).append(np.asarray(image, dtype=float))
        means.append([np.mean(drawn[label]) for label in range(15)])
        deviations.append([np.std([crop.mean() for crop in drawn[label]]) for label in range(15)])
    # The means are drawn from 90 to 165: a uniform deviation of 21.7 within each photo, and little between photos.
    assert np.ptp(np.mean(means, axis=0)) < 15
    assert min(map(min, deviations)) > 15


def test_training_and_validation_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("L", (256, 64), 100)
    monkeypatch.setattr(photos, "_first_photos", lambda: (photo,) * 15)
    boxes: list[tuple[float, ...]] = []
    resize = Image.Image.resize

    def noted(self: Image.Image, *args: object, box: tuple[float, ...], **kwargs: object) -> Image.Image:
        boxes.append(box)
        return resize(self, *args, box=box, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", noted)
    seen = {}
    for split in ("train", "validation"):
        boxes.clear()
        list(PhotoCrops(split, length=400, image_size=16))
        assert len(boxes) == 400
        seen[split] = np.zeros(256, dtype=bool)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= 256
            assert 0 <= top < bottom <= 64
            seen[split][int(np.ceil(left)) : int(right)] = True
    assert not (seen["train"] & seen["validation"]).any()
    assert min(columns.sum() for columns in seen.values()) > 100


def test_crops_are_a_function_of_seed_epoch_and_index() -> None:
    def crop(seed: int = 1, epoch: int = 2, index: int = 3) -> bytes:
        image, label = PhotoCrops(length=10, seed=seed)[SampleKey(epoch, index)]
        return image.tobytes() + bytes([label])

    assert crop() == crop()
    assert len({crop(), crop(seed=2), crop(epoch=3), crop(index=4)}) == 4
    assert PhotoCrops(length=10)[4][0].tobytes() == PhotoCrops(length=10)[SampleKey(0, 4)][0].tobytes()


def test_sources_give_them_with_labels_and_without_masks() -> None:
    source = open_set("photos", length=5, image_size=32)
    assert len(source) == 5
    assert "hubble deep field" in source.class_names
    found, (image, label) = source[2], PhotoCrops("validation", 5, 32)[2]
    assert (found.image.tobytes(), found.label, found.mask) == (image.tobytes(), label, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(split="test"), "split: expected one of .'train', 'validation'., got 'test'"),
        (dict(image_size=8), "image_size: expected a side .* at least 16 pixels, got 8"),
        (dict(length=0), "length: expected at least 1 image, got 0"),
        (dict(seed=-1), "seed: expected 0 or more, got -1"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhotoCrops(**settings)
