"""The registry of data sets: specs, help texts, and what is refused."""

import pytest

from grouping_zoo.data.sets import DataSet, data_sets, find_set, open_captions, open_set, register, set_names, set_spec

NAMES = {"scenes", "digits", "photos", "voc", "context", "coco-object", "coco-stuff", "ade20k", "lip", "parts"}
NAMES |= {"densepose", "folder", "hub", "objects"}


def test_every_set_says_what_it_knows_and_how_it_is_opened() -> None:
    assert {entry.name for entry in data_sets()} == NAMES
    for entry in data_sets(("label", "mask", "caption")):
        assert entry.help
        assert (entry.open_images is not None) == bool({"label", "mask"} & set(entry.knows))
        assert (entry.open_captions is not None) == ("caption" in entry.knows)
    assert {entry.name for entry in data_sets() if entry.is_built_in} == {"scenes", "digits", "photos", "objects"}
    assert {entry.name for entry in data_sets() if entry.has_objects} == {"scenes", "digits", "objects"}


def test_help_names_every_set_by_its_spec_the_default_first() -> None:
    assert set_names().startswith("scenes, ")
    assert "voc:DIR" in set_names()
    captioned = {"scenes", "digits", "objects", "folder:DIR", "hub:NAME", "webdataset:SHARDS"}
    assert set(set_names(("caption",)).split(", ")) == captioned
    assert "photos" not in set_names(("mask",))


@pytest.mark.parametrize("spec", ["voc", "scenes:here", "cityscapes:DIR", "", "voc:", "webdataset:here"])
def test_other_specs_are_refused_with_those_that_are(spec: str) -> None:
    with pytest.raises(ValueError, match=r"data: expected one of scenes, .*voc:DIR.*, got '"):
        open_set(spec)


def test_captions_are_asked_of_sets_that_know_them() -> None:
    with pytest.raises(ValueError, match=r"expected one of scenes, .*folder:DIR.*, got 'photos'"):
        open_captions("photos")
    assert open_captions("digits", length=3, image_size=32)[0].caption


def test_a_location_may_hold_colons() -> None:
    assert find_set("folder:C:/data")[1] == "C:/data"


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="expected a new name, got 'voc'"):
        register(DataSet(name="voc", help="another", knows=("mask",), location="DIR"))


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        (("scenes", None), "scenes"),
        (("scenes", None, "digits"), "digits"),
        (("digits", None, "digits"), "digits"),
        (("voc", "/data/voc"), "voc:/data/voc"),
        (("voc:/data/voc", None), "voc:/data/voc"),
        (("scenes", "somewhere"), "scenes:somewhere"),
        (("folder", None), "folder"),
    ],
)
def test_recipes_may_write_the_location_apart_and_digits_as_objects(settings: tuple, spec: str) -> None:
    assert set_spec(*settings) == spec


def test_both_ways_to_ask_for_digits_open_the_same_images() -> None:
    one, other = (
        open_set(set_spec(*way), length=2, image_size=32) for way in (("digits", None), ("scenes", None, "digits"))
    )
    assert one[1].image.tobytes() == other[1].image.tobytes()
    assert one.class_names == other.class_names == ("background", *one.object_names)
    assert one.object_names[0] == "zero"
