"""The data section of recipes: the grammar of the command, and the keys of older recipes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grouping_zoo.engine.image_text import DataConfig
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.vision import ImageDataConfig, open_source


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (8, 8), (50, 50, 50)).save(tmp_path / "JPEGImages/a.jpg")
    Image.fromarray(np.full((8, 8), 15, dtype=np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    return tmp_path


def test_recipes_name_sets_as_the_command_does_and_as_before(voc: Path) -> None:
    new, old = ImageDataConfig(source=f"voc:{voc}"), ImageDataConfig(source="voc", path=str(voc))
    assert new.spec == old.spec == f"voc:{voc}"
    found = [open_source(config, seed=0)[0] for config in (new, old)]
    assert found[0].mask.tolist() == found[1].mask.tolist() == [[15] * 8] * 8


def test_digits_are_one_set_however_they_are_asked_for() -> None:
    ways = [dict(source="digits"), dict(source="scenes", objects="digits"), dict(source="digits", objects="digits")]
    images = [open_source(ImageDataConfig(length=3, image_size=32, **way), seed=1) for way in ways]
    assert {source.object_names[0] for source in images} == {"zero"}
    assert len({source[2].image.tobytes() for source in images}) == 1
    assert {DataConfig(nouns="source", **way).spec for way in ways} == {"digits"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(source="folder"), "folder:DIR.*got 'folder'"),
        (dict(source="scenes", path="there"), "got 'scenes:there'"),
        (dict(source="webdataset:there"), "got 'webdataset:there'"),
        (dict(source="cityscapes:there"), "got 'cityscapes:there'"),
    ],
)
def test_other_sets_are_refused_with_those_that_there_are(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"data: expected one of scenes, .*{words}"):
        ImageDataConfig(**settings)


def test_captions_come_from_sets_that_have_them() -> None:
    assert DataConfig(source="webdataset:shards/*.tar").spec == "webdataset:shards/*.tar"
    assert DataConfig(source="folder", path="there").spec == "folder:there"
    with pytest.raises(ValueError, match=r"data: expected one of scenes, .*folder:DIR.*got 'photos'"):
        DataConfig(source="photos")


@pytest.mark.parametrize(
    ("recipe", "source", "target", "words"),
    [
        ("vt_fpn_nano_scenes", "photos", "mask", "images with masks"),
        ("vt_resnet_nano_scenes", "voc:there", "class", "images with labels"),
    ],
)
def test_a_set_must_know_what_is_learned(recipe: str, source: str, target: str, words: str) -> None:
    overrides = [f"data.source={source}", "run.output_dir=there"]
    with pytest.raises(ValueError, match=f"data.source: expected {words} with target={target}, got {source}"):
        load_recipe(recipe, overrides)
