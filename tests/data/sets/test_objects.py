import itertools
import json
import math
import multiprocessing
import re
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import objects as module
from grouping_zoo.data.sets.objects import (
    CATEGORIES,
    CLASSES,
    COLORS,
    MIN_VISIBLE,
    PHOTOS_OF,
    SIZES,
    STYLES,
    Objects,
    _paint_anew,
)
from grouping_zoo.data.sets.objects_backgrounds import PHOTOS, load_backgrounds
from grouping_zoo.data.sets.objects_captions import (
    PHRASES,
    UNUSED_SYNONYMS,
    Mention,
    Place,
    article,
    caption_of,
    counted,
    plural,
    relations,
)
from grouping_zoo.data.sets.objects_pictures import NOUNS, PAINTED_NOUNS, SIDE, Pose, load_pictures

WORDS = {
    word: number
    for number, noun in enumerate(NOUNS)
    for word in (noun.name, *noun.synonyms)
    if word not in UNUSED_SYNONYMS
}


def _bits(scene):
    return scene.image.tobytes(), scene.mask.tobytes(), scene.instances.tobytes(), scene.classes, scene.caption


# ---------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize("image_size", [64, (96, 64), 128])
def test_scene_parts_agree(image_size):
    scenes = Objects(length=40, image_size=image_size, recolor=0.5)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    for scene in scenes:
        assert scene.image.shape == (*size, 3)
        assert scene.mask.shape == scene.instances.shape == scene.categories.shape == size
        assert (scene.image.dtype, scene.mask.dtype, scene.instances.dtype) == (np.uint8, np.int16, np.uint8)
        assert 1 <= len(scene.classes) <= 5
        assert set(np.unique(scene.instances)) - {0} == set(range(1, len(scene.classes) + 1))
        expected = np.array([0, *(1 + c for c in scene.classes)])[scene.instances]
        np.testing.assert_array_equal(scene.mask, expected)
        categories = np.array([0, *(1 + CATEGORIES.index(NOUNS[c].category) for c in scene.classes)])[scene.instances]
        np.testing.assert_array_equal(scene.categories, categories)
        assert [WORDS[noun] for noun in scene.nouns] == list(dict.fromkeys(scene.classes))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_same_scene_in_any_order_and_process(method):
    scenes = Objects("val_style", length=8, image_size=48, seed=3)
    here = [_bits(scenes[index]) for index in range(8)]
    assert [_bits(scenes[SampleKey(0, index)]) for index in reversed(range(8))] == here[::-1]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert [_bits(scene) for scene in pool.map(scenes.__getitem__, range(8))] == here


def test_epoch_seed_and_photos_change_the_scene_and_style_only_its_pictures():
    def classes(split="train", seed=0, epoch=0):
        scenes = Objects(split, length=30, image_size=64, seed=seed)
        return [scenes[SampleKey(epoch, index)].classes for index in range(30)]

    assert classes() != classes(epoch=1) != classes(seed=1) != classes("validation")
    assert classes("val") == classes("validation")
    same = [a == b for a, b in zip(classes("validation"), classes("val_style"), strict=True)]
    assert np.mean(same) > 0.9  # up to objects for which one style's outline leaves no room


def test_same_key_gives_the_same_scene_at_any_size():
    small, large = (list(Objects(length=60, image_size=size)) for size in (64, 160))
    same = [a for a, b in zip(small, large, strict=True) if a.classes == b.classes]
    assert len(same) > 50
    overlaps = []
    for a, b in zip(small, large, strict=True):
        if a.classes == b.classes:
            rows = (np.arange(64) * 2.5 + 1.25).astype(int)
            there = b.instances[np.ix_(rows, rows)]
            overlaps.append(((a.instances > 0) & (there > 0)).sum() / ((a.instances > 0) | (there > 0)).sum())
    assert np.median(overlaps) > 0.85


def test_splits_share_no_photo_and_the_held_out_style_is_never_trained_on(monkeypatch):
    assert not {photo.name for photo in PHOTOS["train"]} & {photo.name for photo in PHOTOS["validation"]}
    asked = {}

    def record_style(style):
        asked[split]["styles"].add(style)
        return load_pictures(style)

    def record_photos(photos):
        asked[split]["photos"].add(photos)
        return load_backgrounds(photos)

    monkeypatch.setattr(module, "load_pictures", record_style)
    monkeypatch.setattr("grouping_zoo.data.sets.objects_backgrounds.load_backgrounds", record_photos)
    for split in STYLES:
        asked[split] = {"styles": set(), "photos": set()}
        list(Objects(split, length=20, image_size=32))
        assert asked[split] == {"styles": set(STYLES[split]), "photos": {PHOTOS_OF[split]}}
    assert not asked["train"]["styles"] & asked["val_style"]["styles"]
    assert asked["train"]["styles"] == asked["validation"]["styles"]
    assert not asked["train"]["photos"] & (asked["validation"]["photos"] | asked["val_style"]["photos"])


def test_classes_numbers_and_sizes_are_balanced():
    scenes = Objects(length=1, image_size=32)
    rng = np.random.default_rng(0)
    chosen = [[kind.class_index for kind in scenes._choose(rng)] for _ in range(4000)]
    counts = np.bincount(np.concatenate(chosen), minlength=len(CLASSES))
    expected = counts.mean()
    # Poisson, but for repeated objects: five standard deviations, widened by the largest group of three.
    assert np.abs(counts - expected).max() < 5 * math.sqrt(3 * expected)
    numbers = Counter(map(len, chosen))
    assert set(numbers) == {1, 2, 3, 4, 5}
    assert min(numbers.values()) > 700
    assert 0.1 < np.mean([len(set(kinds)) < len(kinds) for kinds in chosen]) < 0.5


def test_few_objects_find_no_room_and_all_classes_alike():
    scenes = Objects(length=300, image_size=64)
    asked = [len(scenes._choose(rng)) for rng in (np.random.default_rng(number) for number in range(300))]
    placed = [len(scene.classes) for scene in scenes]
    assert sum(placed) > 0.93 * np.mean(asked) * 300


def test_single_objects_have_a_label_and_fill_their_crop():
    scenes = Objects(length=200, image_size=64, max_objects=1)
    drawn = list(scenes)
    assert all(len(scene.classes) == 1 for scene in drawn)
    assert len({scene.classes[0] for scene in drawn}) > 120
    assert np.median([(scene.instances > 0).mean() for scene in drawn]) > 0.15


@pytest.mark.parametrize("max_objects", [3, 12])
def test_objects_stay_visible(max_objects):
    scenes = Objects(length=30, image_size=96, max_objects=max_objects)
    for index in range(30):
        rng = np.random.default_rng(index)
        placed, instances = scenes._place(rng, scenes._choose(rng))
        for number, item in enumerate(placed, start=1):
            seen = (instances == number).sum()
            assert seen == item.seen
            assert seen >= MIN_VISIBLE * item.area
            assert SIZES[0] * 96 - 1e-6 <= item.pose.side <= SIZES[1] * 96


def test_masks_agree_with_a_plain_loop_over_pixels():
    scenes = Objects(length=10, image_size=48)
    for index in range(10):
        rng = np.random.default_rng(index)
        placed, instances = scenes._place(rng, scenes._choose(rng))
        expected = np.zeros((48, 48), dtype=int)
        for number, item in enumerate(placed, start=1):
            for row, column in np.ndindex(item.drawn.shape[:2]):
                y, x = item.top + row, item.left + column
                if 0 <= y < 48 and 0 <= x < 48 and item.drawn[row, column, 3] >= 128:
                    expected[y, x] = number
        np.testing.assert_array_equal(instances, expected)


def _slow_paint(rng, photo, placed):
    """Compose an image pixel by pixel; draws the same random numbers as `_paint`."""
    height, width = photo.shape[1:]
    pixels = np.moveaxis(photo, 0, -1).astype(float)
    contrast, brightness = rng.uniform(0.75, 1.1), rng.uniform(0.75, 1.1)
    pixels = brightness * (pixels.mean() + contrast * (pixels - pixels.mean()))
    direction = rng.uniform(-1.2, 1.2)
    fall_y, fall_x = math.cos(direction), math.sin(direction)
    distance, darkness = rng.uniform(0.02, 0.1), rng.uniform(0.2, 0.6)
    for item in placed:
        border = 1 + round(0.05 * item.pose.side)
        shadow = item.picture.draw_shadow(item.pose, border)
        for row, column in np.ndindex(shadow.shape):
            y = item.top - border + round(item.pose.side * fall_y * distance) + row
            x = item.left - border + round(item.pose.side * fall_x * distance) + column
            if 0 <= y < height and 0 <= x < width:
                pixels[y, x] *= 1 - darkness * shadow[row, column] / 255
        assert item.kind.color is None
        saturation = rng.uniform(0.75, 1.1)
        gain = rng.uniform(0.8, 1.1) * rng.uniform(0.94, 1.06, 3)
        slope = rng.uniform(0.0, 0.35) / item.pose.side
        for row, column in np.ndindex(item.drawn.shape[:2]):
            y, x = item.top + row, item.left + column
            if 0 <= y < height and 0 <= x < width:
                *color, alpha = item.drawn[row, column].astype(float)
                gray = sum(color) / 3
                lit = 1 - slope * fall_y * (row - item.drawn.shape[0] / 2)
                lit -= slope * fall_x * (column - item.drawn.shape[1] / 2)
                for channel in range(3):
                    shown = (gray + saturation * (color[channel] - gray)) * gain[channel] * lit
                    pixels[y, x, channel] *= 1 - alpha / 255
                    pixels[y, x, channel] += min(max(shown, 0), alpha)
    exposure, warmth, noise = rng.uniform(0.88, 1.15), rng.uniform(-0.07, 0.07), rng.uniform(0, 5)
    pixels *= exposure * np.array([1 + warmth, 1, 1 - warmth])
    pixels += noise * rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(pixels, 0, 255)


def test_images_agree_with_a_plain_loop_over_pixels():
    scenes = Objects(length=10, image_size=(40, 56))
    photo = np.random.default_rng(0).uniform(0, 255, (3, 40, 56)).astype(np.float32)
    for index in range(6):
        rng = np.random.default_rng(index)
        kinds = [kind._replace(color=None) for kind in scenes._choose(rng)]
        placed, _ = scenes._place(rng, kinds)
        expected = _slow_paint(np.random.default_rng(index), photo, placed)
        image = module._paint(np.random.default_rng(index), photo.copy(), placed)
        # Cut off to whole numbers, in float32.
        assert np.abs(image + 0.5 - expected).max() < 0.52


def test_masks_of_16_bit_move_with_torchvision():
    scene = Objects(image_size=64)[0]
    mask = tv_tensors.Mask(torch.from_numpy(scene.mask))
    crop = v2.RandomResizedCrop(32, scale=(0.9, 1.0))(mask)
    assert crop.shape == (32, 32)
    assert set(crop.unique().tolist()) <= set(np.unique(scene.mask).tolist())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split": "test"}, "split: expected one of train, validation, val_style, got 'test'"),
        ({"image_size": 8}, "image_size: expected a side or"),
        ({"length": 0}, "length: expected at least 1"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"recolor": 2.0}, "recolor: expected a fraction"),
        ({"max_objects": 0}, "max_objects: expected 1 to 16"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Objects(**setting)


def test_index_out_of_range_is_refused():
    with pytest.raises(IndexError, match="expected 0 to 4"):
        Objects(length=5)[5]


# -------------------------------------------------------------------------------------------------- captions

IRREGULAR = {
    "mouse": "mice",
    "knife": "knives",
    "wolf": "wolves",
    "scarf": "scarves",
    "loaf": "loaves",
    "maple leaf": "maple leaves",
    "tooth": "teeth",
    "die": "dice",
    "dice": "dice",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "tropical fish": "tropical fish",
    "shrimp": "shrimp",
    "squid": "squid",
    "snowman": "snowmen",
    "cactus": "cacti",
    "octopus": "octopuses",
    "hippopotamus": "hippopotamuses",
    "rhinoceros": "rhinoceroses",
    "bus": "buses",
    "compass": "compasses",
    "hourglass": "hourglasses",
    "wine glass": "wine glasses",
    "fox": "foxes",
    "mailbox": "mailboxes",
    "watch": "watches",
    "wrench": "wrenches",
    "peach": "peaches",
    "radish": "radishes",
    "toothbrush": "toothbrushes",
    "butterfly": "butterflies",
    "fairy": "fairies",
    "puppy": "puppies",
    "trophy": "trophies",
    "battery": "batteries",
    "strawberry": "strawberries",
    "turkey": "turkeys",
    "monkey": "monkeys",
    "key": "keys",
    "volcano": "volcanoes",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mosquito": "mosquitoes",
    "mango": "mangoes",
    "avocado": "avocados",
    "piano": "pianos",
    "banjo": "banjos",
    "kangaroo": "kangaroos",
    "giraffe": "giraffes",
    "axe": "axes",
    "box": "boxes",
    "santa claus": "santa clauses",
}


@pytest.mark.parametrize(("one", "several"), IRREGULAR.items())
def test_irregular_plurals(one, several):
    assert plural(one) == several


def test_every_word_has_a_singular_and_a_plural():
    for word in WORDS:
        several = counted(word, 2).removeprefix("two ")
        if word not in PHRASES and word not in IRREGULAR:
            assert several.endswith("s"), several
        assert "{}" not in several
    # Words that are no singular cannot be counted as they are.
    for noun in NOUNS:
        if noun.name.endswith("s") and not noun.name.endswith(("ss", "us", "os")):
            assert noun.name in PHRASES or noun.name in ("compass", "santa claus"), noun.name
    assert counted("scissors", 1) == "a pair of scissors"
    assert counted("scissors", 3) == "three pairs of scissors"
    assert counted("jeans", 2, "red") == "two pairs of red jeans"
    assert counted("pizza", 2) == "two slices of pizza"
    assert counted("bow and arrow", 2) == "two bows and arrows"
    assert counted("balloon", 1, "orange") == "an orange balloon"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("ufo", "a ufo"), ("hourglass", "an hourglass"), ("umbrella", "an umbrella"), ("horse", "a horse")],
)
def test_articles_follow_the_sound(words, expected):
    assert article(words) == expected


def _forms():
    """Each word's phrase in the singular and the plural -> (class, whether several)."""
    forms = {}
    for word, number in WORDS.items():
        one, several = PHRASES.get(word, ("{}" + word, "{}" + plural(word)))
        forms[tuple(several.format("").split())] = (number, True)
        forms[tuple(one.format("").split())] = (number, False)
    return forms


def _parse(caption, forms):
    """Return the objects of a caption as (class, number of them, color), by longest match; "the dog" is none."""
    counts = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
    words = re.findall(r"[\w'-]+", caption)
    found, start = [], 0
    while start < len(words):
        if words[start] in counts or words[start] == "the":
            for stop in range(min(len(words), start + 6), start + 1, -1):
                phrase = words[start + 1 : stop]
                color = next((word for word in phrase if word in COLORS), None)
                bare = tuple(word for word in phrase if word not in COLORS)
                if bare in forms:
                    number, several = forms[bare]
                    if words[start] != "the":
                        count = counts[words[start]]
                        assert several == (count > 1) or counted(NOUNS[number].name, 1)[2:] == " ".join(bare)
                        found.append((number, count, color))
                    start = stop - 1
                    break
        start += 1
    return found


def test_captions_name_exactly_the_visible_objects():
    forms, colors, several = _forms(), Counter(), 0
    for scene in itertools.chain(Objects(length=400, image_size=32), Objects("val_style", 200, 32)):
        found = _parse(scene.caption, forms)
        assert {number: count for number, count, _ in found} == dict(Counter(scene.classes)), scene.caption
        assert len(found) == len(set(scene.classes)) == len(scene.nouns), scene.caption
        for number, count, color in found:
            colors[color] += 1
            several += count > 1
            assert color is None or CLASSES[number] in PAINTED_NOUNS, scene.caption
    assert several > 60
    assert set(colors) == {None, *COLORS}
    assert 0.03 < 1 - colors[None] / colors.total() < 0.2


def test_photo_phrases_name_no_class():
    known = {word for phrase in _forms() for word in phrase} - {"a", "of", "and", "water"}
    for photo in itertools.chain(*PHOTOS.values()):
        assert not known & set(photo.phrase.split()), photo.phrase


def _mention(*boxes, hides=(), number=0, word="dog"):
    return Mention(word, None, tuple(Place(number + i, box, frozenset(hides)) for i, box in enumerate(boxes)))


def test_relations():
    left, right = _mention((0.0, 0.4, 0.2, 0.6)), _mention((0.6, 0.4, 0.8, 0.6), number=1)
    assert relations(left, right) == ["left"]
    assert relations(right, left) == ["right"]
    top = _mention((0.6, 0.0, 0.8, 0.2), number=2)
    assert relations(top, right) == ["above"]
    assert relations(right, top) == ["below"]
    front = _mention((0.05, 0.45, 0.25, 0.65), number=3, hides=[0])
    assert relations(front, left) == ["front"]
    assert relations(left, front) == ["behind"]
    near = _mention((0.15, 0.55, 0.3, 0.75), number=4)
    assert relations(near, left) == ["beside"]
    diagonal = _mention((0.6, 0.9, 0.8, 1.1), number=5)
    assert relations(diagonal, left) == []
    both = _mention((0.0, 0.0, 0.2, 0.2), (0.0, 0.8, 0.2, 1.0), number=6)
    assert relations(both, right) == ["left"]


def test_stated_sides_are_those_of_the_masks():
    """Two single objects and a stated relation: the centers of their pixels are where the caption says."""
    forms, checked = _forms(), 0
    patterns = {
        "to the left of": (1, -1), "left of": (1, -1), "to the right of": (1, 1), "right of": (1, 1),
        "above": (0, -1), "over": (0, -1), "below": (0, 1), "under": (0, 1),
    }  # fmt: skip
    for scene in Objects(length=500, image_size=64, max_objects=2):
        found = _parse(scene.caption, forms)
        relation = next((phrase for phrase in patterns if f" {phrase} " in scene.caption), None)
        if len(found) != 2 or len(scene.classes) != 2 or relation is None or "against" in scene.caption:
            continue
        # "X left of Y", "Y with X left of it"
        (first, *_), (second, *_) = found[::-1] if " it" in scene.caption.split(relation)[1][:4] else found
        axis, sign = patterns[relation]
        centers = [np.argwhere(scene.mask == 1 + number).mean(axis=0)[axis] for number in (first, second)]
        assert sign * (centers[0] - centers[1]) > 0, scene.caption
        checked += 1
    assert checked > 20


def test_caption_order_is_random():
    mentions = [_mention((0.1, 0.1, 0.3, 0.3)), _mention((0.6, 0.6, 0.9, 0.9), number=1, word="pizza")]
    captions = [caption_of(np.random.default_rng(seed), mentions, "grass") for seed in range(200)]
    first = [caption.index("dog") < caption.index("pizza") for caption in captions]
    assert 0.3 < np.mean(first) < 0.7


# -------------------------------------------------------------------------------------------------- pictures


def test_nouns_are_distinct_words_of_a_few_categories():
    assert len(CLASSES) == len(set(CLASSES)) == 338
    assert len(CATEGORIES) == 12
    words = [word for noun in NOUNS for word in (noun.name, *noun.synonyms)]
    assert len(words) == len(set(words))  # no synonym is another class
    assert not set(words) & set(COLORS)
    assert set(CLASSES) >= PAINTED_NOUNS


@pytest.mark.parametrize("style", sorted(set(itertools.chain(*STYLES.values()))))
def test_pictures_fill_their_side_and_shrink_alike(style):
    for picture in load_pictures(style):
        assert SIDE - 1 <= max(picture.size) <= SIDE
        alphas = [np.asarray(level.getchannel("a")) for level in picture.levels]
        for alpha in alphas:
            assert not alpha[[0, -1]].any()
            assert not alpha[:, [0, -1]].any()
            assert alpha.mean() == pytest.approx(alphas[0].mean(), abs=0.6)
        colors = np.asarray(picture.levels[0])
        assert (colors[..., :3] <= colors[..., 3:]).all()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("side", "angle"), [(20.0, 0.4), (50.0, -0.3), (90.0, 0.0)])
def test_drawing_agrees_with_bilinear_sampling_in_a_plain_loop(side, angle, mirrored):
    picture, pose = load_pictures("noto")[CLASSES.index("guitar")], Pose(side, angle, mirrored)
    drawn = picture.draw(pose)
    level = round(math.log2(max(picture.size) / side))
    source = np.asarray(picture.levels[level]).astype(float)
    step = max(picture.size) / side / 2**level
    for row, column in np.ndindex(drawn.shape[:2]):
        y, x = row + 0.5 - drawn.shape[0] / 2, column + 0.5 - drawn.shape[1] / 2
        x_ = (math.cos(angle) * x + math.sin(angle) * y) * step * (-1 if mirrored else 1) + source.shape[1] / 2 - 0.5
        y_ = (math.cos(angle) * y - math.sin(angle) * x) * step + source.shape[0] / 2 - 0.5
        top, left = math.floor(y_), math.floor(x_)
        expected = np.zeros(4)
        for i, j in itertools.product((0, 1), (0, 1)):
            if 0 <= top + i < source.shape[0] and 0 <= left + j < source.shape[1]:
                weight = (1 - abs(y_ - top - i)) * (1 - abs(x_ - left - j))
                expected += weight * source[top + i, left + j]
        assert np.abs(drawn[row, column] - expected).max() < 1.001  # cut off to whole numbers


def test_painted_pictures_have_the_color_that_is_named():
    targets = np.array(list(COLORS.values()), dtype=np.float32)
    for style in set(itertools.chain(*STYLES.values())):
        for name in PAINTED_NOUNS:
            picture, pose = load_pictures(style)[CLASSES.index(name)], Pose(64.0, 0.0, False)
            drawn, paint = picture.draw(pose).astype(np.float32), picture.draw_paint(pose)
            opaque = drawn[..., 3] > 200
            assert (paint[opaque] > 128).mean() > 0.33, (style, name)
            for number, target in enumerate(targets):
                color = drawn[..., :3].transpose(2, 0, 1).copy()
                _paint_anew(color, drawn[..., 3], paint, picture.paint_value, target)
                mean = color[:, opaque & (paint > 128)].mean(axis=1)
                assert np.abs(targets - mean).sum(axis=1).argmin() == number, (style, name, list(COLORS)[number])


def test_package_holds_pictures_with_their_licences():
    folder = files("grouping_zoo.data.sets") / "objects_data"
    found = {file.name: len(file.read_bytes()) for file in folder.iterdir()}
    styles = set(itertools.chain(*STYLES.values()))
    expected = {"LICENSES.md", "nouns.json"} | {f"{s}.webp" for s in styles} | {f"LICENSE-{s}.txt" for s in styles}
    assert set(found) == expected
    assert sum(found.values()) < 8 * 2**20
    table = (folder / "LICENSES.md").read_text(encoding="utf-8")
    for style, title in {
        "noto": "Apache License", "twemoji": "Creative Commons Attribution 4.0", "fluent": "MIT License"
    }.items():  # fmt: skip
        assert title in (folder / f"LICENSE-{style}.txt").read_text(encoding="utf-8")
        assert f"| `{style}.webp` |" in table
    assert len(json.loads((folder / "nouns.json").read_text(encoding="utf-8"))) == len(NOUNS)
