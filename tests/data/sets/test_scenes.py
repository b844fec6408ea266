import itertools
import re

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from torch.utils.data import DataLoader

from grouping_zoo.data.sampling import EndlessSampler, SampleKey
from grouping_zoo.data.sets.photos import PHOTOS, load_photos
from grouping_zoo.data.sets.scenes import (
    CLASSES,
    COLORS,
    MIN_VISIBLE,
    OUTLINES,
    USUAL_COLORS,
    Scenes,
    _digits,
)


def _steps(sampler, count):
    return list(itertools.islice(iter(sampler), count))


@pytest.mark.parametrize("objects", ["shapes", "digits"])
@pytest.mark.parametrize("image_size", [64, (48, 80), 128])
def test_scene_parts_agree(objects, image_size):
    scenes = Scenes(length=40, image_size=image_size, objects=objects)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    for scene in scenes:
        assert scene.image.shape == (*size, 3)
        assert scene.mask.shape == scene.instances.shape == size
        assert scene.image.dtype == scene.mask.dtype == scene.instances.dtype == np.uint8
        assert 1 <= len(scene.classes) == len(set(scene.classes)) <= 3
        assert scene.nouns == tuple(scenes.class_names[c] for c in scene.classes)
        # Each instance is there, is of its class, and the background is the same in both.
        assert set(np.unique(scene.instances)) - {0} == set(range(1, len(scene.classes) + 1))
        expected = np.array([0, *(1 + c for c in scene.classes)])[scene.instances]
        np.testing.assert_array_equal(scene.mask, expected)


@pytest.mark.parametrize("objects", ["shapes", "digits"])
def test_caption_names_exactly_the_objects_with_usual_colors(objects):
    scenes = Scenes(length=300, objects=objects)
    colored = 0
    for scene in scenes:
        words = re.findall(r"\w+", scene.caption)
        assert sorted(word for word in words if word in scenes.class_names) == sorted(scene.nouns), scene.caption
        for color, noun in itertools.pairwise(words):
            if color in COLORS:
                colored += 1
                assert color in USUAL_COLORS.get(noun, COLORS), scene.caption
        for article, word in itertools.pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou" and word != "one"), scene.caption
    share = colored / sum(len(scene.nouns) for scene in scenes)
    assert 0.4 < share < 0.6


def test_all_classes_numbers_and_caption_orders_occur():
    scenes = list(Scenes(length=300))
    counts = np.bincount(np.concatenate([scene.classes for scene in scenes]), minlength=len(CLASSES))
    assert counts.min() > 0.6 * counts.mean()
    assert {len(scene.classes) for scene in scenes} == {1, 2, 3}
    pairs = [scene for scene in scenes if len(scene.nouns) == 2]
    first = [scene.caption.index(scene.nouns[0]) < scene.caption.index(scene.nouns[1]) for scene in pairs]
    assert 0.25 < np.mean(first) < 0.75  # the caption's order does not tell which object is in front


def test_a_color_never_tells_the_class():
    for color in COLORS:
        assert sum(color in colors for colors in USUAL_COLORS.values()) >= 3


def test_ring_has_a_hole_of_background():
    ring = CLASSES.index("ring")
    alone = [scene for scene in Scenes(length=300, image_size=96) if scene.classes == (ring,)]
    assert alone
    for scene in alone:
        rows, columns = np.nonzero(scene.mask)
        center = round(rows.mean()), round(columns.mean())
        assert scene.mask[center] == 0
        assert scene.mask[center[0]].any()
        assert scene.mask[:, center[1]].any()


def test_outlines_are_distances_to_shapes_of_their_own():
    axis = np.linspace(-1.2, 1.2, 240)
    x, y = np.meshgrid(axis, axis)
    inside = {}
    for name, outline in OUTLINES.items():
        distance = outline(x, y)
        inside[name] = distance < 0
        slope = np.hypot(*np.gradient(distance, axis, axis))
        near = np.abs(distance) < 0.05
        # Antialiasing takes the value for a distance: unit slope near the outline, up to kinks at corners.
        assert np.median(slope[near]) == pytest.approx(1, abs=0.02), name
        border = inside[name].copy()
        border[1:-1, 1:-1] = False
        assert not border.any(), name
    for one, other in itertools.combinations(CLASSES, 2):
        overlap = (inside[one] & inside[other]).sum() / (inside[one] | inside[other]).sum()
        assert overlap < 0.9, (one, other)


def test_objects_are_painted_where_the_mask_says(monkeypatch):
    scenes = Scenes(length=30, image_size=96)
    drawn = list(scenes)
    photos = load_photos("train")
    # The same scenes on black: what changes is the photo, what stays are the objects.
    monkeypatch.setattr(
        "grouping_zoo.data.sets.scenes.load_photos",
        lambda split: tuple((name, photo.point(lambda _: 0)) for name, photo in photos),
    )
    for before, scene in zip(drawn, scenes, strict=True):
        np.testing.assert_array_equal(before.mask, scene.mask)
        # Away from the edges of objects and image, where the photo shines through: 3x3 pixels of one object.
        low, high = (of(scene.instances, 3, mode="constant") for of in (ndimage.minimum_filter, ndimage.maximum_filter))
        inside = (low == high) & (low > 0)
        # Antialiased tips reach up to two pixels beyond the mask.
        outside = ndimage.binary_erosion(scene.mask == 0, np.ones((3, 3)), iterations=2, border_value=1)
        np.testing.assert_array_equal(before.image[inside], scene.image[inside])
        assert scene.image[inside].max(axis=-1).min() > 60
        assert scene.image[outside].max() == 0


def test_recolored_is_the_share_of_scenes_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(Scenes, "_place", lambda self, rng, classes: [])
    grey = tuple((name, photo.convert("L").convert("RGB")) for name, photo in load_photos("train"))
    monkeypatch.setattr("grouping_zoo.data.sets.scenes.load_photos", lambda split: grey)
    for share, low, high in ((0.0, 0, 0), (0.5, 0.35, 0.65), (1.0, 1, 1)):
        scenes = Scenes(length=200, recolor=share)
        coloured = np.mean([np.ptp(scene.image.astype(int), axis=-1).max() > 0 for scene in scenes])
        assert low <= coloured <= high
    with pytest.raises(ValueError, match="recolor: expected a fraction from 0 to 1, got 2"):
        Scenes(recolor=2)


def test_every_object_keeps_half_of_its_pixels():
    scenes = Scenes(length=100)
    for index in range(100):
        rng = np.random.default_rng(index)
        placed = scenes._place(rng, [0, 3, 6])
        owner = np.zeros((64, 64), int)
        for number, (_, item) in enumerate(placed, 1):
            owner[item.rows, item.columns][item.coverage >= 0.5] = number
        for number, (_, item) in enumerate(placed, 1):
            assert (owner == number).sum() >= MIN_VISIBLE * (item.coverage >= 0.5).sum()


def test_scenes_depend_on_seed_split_epoch_and_index_alone():
    scenes = Scenes(length=10, seed=3)
    reference = scenes[SampleKey(2, 5)]
    np.random.seed(99)
    again = Scenes(length=500, seed=3)[SampleKey(2, 5)]
    np.testing.assert_array_equal(reference.image, again.image)
    assert reference.caption == again.caption
    others = [
        Scenes(length=10, seed=4)[SampleKey(2, 5)],
        scenes[SampleKey(3, 5)],
        scenes[SampleKey(2, 6)],
        Scenes("validation", length=10, seed=3)[SampleKey(2, 5)],
    ]
    assert all((other.image != reference.image).any() for other in others)
    np.testing.assert_array_equal(scenes[4].image, scenes[SampleKey(0, 4)].image)


def test_workers_do_not_change_scenes():
    scenes = Scenes(length=12, image_size=32)
    loaded = list(DataLoader(scenes, batch_size=None, num_workers=2))
    assert len(loaded) == 12
    for expected, scene in zip(scenes, loaded, strict=True):
        np.testing.assert_array_equal(expected.image, scene.image)
        assert expected.caption == scene.caption


def test_splits_share_no_photo_and_no_digit():
    assert not set(PHOTOS["train"]) & set(PHOTOS["validation"])
    photos = {split: {photo.tobytes() for _, photo in load_photos(split)} for split in PHOTOS}
    assert not photos["train"] & photos["validation"]
    assert len(photos["train"]) == len(PHOTOS["train"]) + 1  # the stereo pair stays on one side
    digits = {split: {image.tobytes() for images in _digits(split) for image in images} for split in PHOTOS}
    assert not digits["train"] & digits["validation"]
    assert sum(len(images) for split in PHOTOS for images in _digits(split)) == 1797


def test_photos_come_with_the_package(monkeypatch):
    load_photos.cache_clear()
    monkeypatch.setattr(skimage.data._fetchers, "_image_fetcher", None)  # no downloads
    assert len(load_photos("train")) >= 8
    assert len(load_photos("validation")) >= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "split.*'train', 'validation'.*'test'"),
        ({"objects": "letters"}, "objects.*'letters'"),
        ({"image_size": 8}, "image_size.*at least 16.*8"),
        ({"image_size": (64, 64, 3)}, "image_size"),
        ({"length": 0}, "length"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**settings)


def test_index_out_of_range():
    with pytest.raises(IndexError, match="0 to 9"):
        Scenes(length=10)[10]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (3, 8), (12, 12)])
def test_sampler_runs_on_over_epochs_without_gap(length, batch_size):
    keys = [key for batch in _steps(EndlessSampler(length, batch_size, seed=1), 9) for key in batch]
    epochs = [[key.index for key in keys if key.epoch == epoch] for epoch in range(len(keys) // length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert [key.epoch for key in keys] == sorted(key.epoch for key in keys)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_sampler_ranks_together_read_the_global_batch(world_size):
    whole = _steps(EndlessSampler(7, 6, seed=5), 8)
    ranks = [_steps(EndlessSampler(7, 6, 5, rank, world_size), 8) for rank in range(world_size)]
    assert [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)] == whole


def test_sampler_resumes_and_keeps_order_on_request():
    whole = _steps(EndlessSampler(10, 4, seed=2), 12)
    assert _steps(EndlessSampler(10, 4, seed=2, start_step=7), 5) == whole[7:]
    assert whole != _steps(EndlessSampler(10, 4, seed=3), 12)
    ordered = _steps(EndlessSampler(5, 3, seed=0, shuffle=False), 2)
    assert ordered == [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 4), (1, 0)]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0, "batch_size": 4, "seed": 0}, "length"),
        ({"length": 9, "batch_size": 5, "seed": 0, "world_size": 2}, "batch_size.*2 processes.*5"),
        ({"length": 9, "batch_size": 4, "seed": 0, "rank": 2, "world_size": 2}, "rank"),
        ({"length": 9, "batch_size": 4, "seed": 0, "start_step": -1}, "start_step"),
    ],
)
def test_sampler_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        EndlessSampler(**settings)
