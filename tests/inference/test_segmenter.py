"""The Python face: one call from a photo to a result that equals what the command writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import grouping_zoo
from command import Run, caller, loud_libraries, photo, record, save_tiny_groupvit
from grouping_zoo import Segmenter, open_checkpoint, segment
from grouping_zoo.data.sets.scenes import CLASSES
from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints
from grouping_zoo.hf.image_processing import ZooImageProcessor
from groupings import Looking, Stripes, StripesModel


@pytest.fixture(scope="module")
def groupvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_groupvit(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def cast() -> str:
    return str(packaged_checkpoints()["cast_nano_scenes"])


def stripes(network: Stripes, **settings: Any) -> Any:
    model = (StripesModel(network), ZooImageProcessor(crop_size=32))
    return segment(photo((300, 200)), model, **settings)


# --- what a result offers -------------------------------------------------------------------------------------------


def test_named_pixels(groupvit: Path) -> None:
    result = segment(photo((300, 200)), groupvit)
    assert isinstance(result, grouping_zoo.Segmentation)
    assert result.image.size == (300, 200)
    assert (result.labels.shape, result.labels.dtype) == ((200, 300), np.int32)
    assert result.names == ["background", *CLASSES]
    assert list(result.fractions) == result.names
    assert sum(result.fractions.values()) == pytest.approx(1)
    assert set(result.masks) == {name for name, fraction in result.fractions.items() if fraction}
    for name, mask in result.masks.items():
        np.testing.assert_array_equal(mask, result.labels == result.names.index(name))
        assert mask.mean() == pytest.approx(result.fractions[name])
    assert sum(mask.sum() for mask in result.masks.values()) == 300 * 200
    assert result.tree.num_groups == [256 * 3 // 2, 6]
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert result.to_dict()["image"] is None
    assert repr(result) == f"<NamedSegmentation of 300x200 pixels: {result.summary}>"


def test_groups_level_by_level(cast: str) -> None:
    result = segment(photo((300, 200)), cast)
    assert result.names == [f"group {index}" for index in range(4)]
    assert set(np.unique(result.labels)) == {result.names.index(name) for name in result.masks}
    tree = result.tree
    assert tree.num_groups[1:] == [32, 16, 8, 4]
    np.testing.assert_array_equal(tree.labels(-1, (300, 200)), result.labels)
    for level, parents in enumerate(tree.parents):
        np.testing.assert_array_equal(parents[tree.labels(level)], tree.labels(level + 1))
    third = segment(photo((300, 200)), cast, level=3)
    np.testing.assert_array_equal(third.labels, tree.labels(3, (300, 200)))
    assert len(third.names) == 8


def test_heads_that_group_apart_are_not_mixed() -> None:
    result = stripes(Stripes())
    for name in ("labels", "fractions", "masks", "tree"):
        with pytest.raises(ValueError, match=r"head: 3 heads group the image on their own; choose one by head="):
            getattr(result, name)
    rows, columns, _ = result.heads
    assert len(result.trees) == 3
    np.testing.assert_array_equal(rows.labels[::25, 150], np.arange(8) % 6)
    np.testing.assert_array_equal(columns.labels[100, 12::25], np.arange(12) % 6)
    np.testing.assert_array_equal(stripes(Stripes(), head=1).labels, columns.labels)


def test_a_notebook_shows_the_figure_to_look_at_first(groupvit: Path, tmp_path: Path) -> None:
    result = segment(photo(), groupvit)
    (first, *others) = result.save(tmp_path)
    assert result._repr_png_() == first.read_bytes()
    assert [path.name for path in (first, *others)] == ["image_overlay.png", "image_groups.png"]


def test_show_draws_the_figure_by_matplotlib(groupvit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(
        "grouping_zoo.viz.show.plt.show",
        lambda: shown.append(np.asarray(plt.gcf().axes[0].images[0].get_array())),
    )
    from matplotlib import pyplot as plt

    result = segment(photo(), groupvit)
    result.show()
    np.testing.assert_array_equal(shown[0], np.asarray(result.figure()))
    plt.close("all")


# --- photos and models in any form ----------------------------------------------------------------------------------


def test_every_form_of_a_photo_gives_the_same(groupvit: Path, tmp_path: Path) -> None:
    image = photo((60, 40))
    image.save(tmp_path / "a.png")
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [image, tmp_path / "a.png", str(tmp_path / "a.png"), pixels, tensor]
    results = segment(forms, groupvit)
    assert isinstance(results, list)
    assert [result.to_dict()["image"] for result in results] == [None, "a.png", "a.png", None, None]
    for result in results:
        np.testing.assert_array_equal(result.labels, results[0].labels)
    assert segment([], groupvit) == []


def test_an_opened_model_gives_the_same_and_is_not_opened_again(
    groupvit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(groupvit)
    by_name = segment(photo(), groupvit)
    monkeypatch.setattr("grouping_zoo.hf.checkpoint_folder.open_checkpoint", lambda name: pytest.fail("opened again"))
    result = segment(photo(), opened)
    assert result.to_dict() == by_name.to_dict()
    segmenter = Segmenter(opened, classes=["ball", "ring; star"])
    assert [segmenter(photo()).names for _ in range(2)] == [["background", "ball", "ring; star"]] * 2


def test_a_model_in_training_mode_is_brought_to_evaluation_mode(groupvit: Path) -> None:
    model, processor = open_checkpoint(groupvit)
    expected = segment(photo(), (model, processor)).to_dict()
    assert segment(photo(), (model.train(), processor)).to_dict() == expected


def test_classes_as_text_or_list(groupvit: Path) -> None:
    with pytest.warns(UserWarning, match="was made for ball, .* finds of cup may be wrong"):
        listed = segment(photo(), groupvit, classes=["cup", " ball "])
    with pytest.warns(UserWarning, match="cup"):
        written = segment(photo(), groupvit, "cup, ball,")
    assert listed.names == written.names == ["background", "cup", "ball"]
    assert listed.to_dict() == written.to_dict()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ["cat", "Cat"]}, "classes: expected different names, got cat more than once"),
        ({"classes": ["background"]}, "classes: background is what reaches no class; .* set threshold"),
        ({"classes": []}, "classes: expected at least one class name"),
        ({"stride": 8}, "stride: expected only with window"),
        ({"threshold": 2}, "background_threshold: expected 0 to 1, got 2"),
        ({"masks": "fuzzy"}, "masks: expected 'hard' or 'soft'"),
        ({"level": 1}, "level: is for models without text, which .* is not; leave it out"),
        ({"num_slots": 3}, "num_slots: is for models without text"),
        ({"device": "toaster"}, "device: expected a device of this machine, got 'toaster'"),
    ],
)
def test_wrong_settings(groupvit: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Segmenter(groupvit, **settings)


def test_settings_for_text_are_refused_by_a_model_without(cast: str) -> None:
    for settings in ({"classes": "cat"}, {"threshold": 0.5}, {"masks": "soft"}, {"window": 32}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}: .* has no text encoder.*; leave it out, or choose"):
            Segmenter(cast, **settings)  # type: ignore[arg-type]


def test_a_model_that_makes_no_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="makes no groups; choose from: grouping-zoo list"):
        Segmenter((torch.nn.Linear(1, 1), object()))
    plain = timm.create_model("semantic_fpn_nano")
    with pytest.raises(ValueError, match="makes no groups"):
        Segmenter((StripesModel(plain), object()))  # type: ignore[arg-type]


def test_the_public_names_are_there_although_they_are_imported_late() -> None:
    assert grouping_zoo.segment is segment
    assert {"segment", "Segmenter", "Segmentation"} <= set(grouping_zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'segmet'"):
        grouping_zoo.segmet  # noqa: B018


# --- the command writes what a result saves --------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


@pytest.mark.parametrize(
    ("name", "switches", "settings"),
    [
        ("groupvit_nano_scenes", "--masks soft --window 64 --size 96", {"masks": "soft", "window": 64, "size": 96}),
        ("groupvit_nano_scenes", "--classes ring,star --threshold 0.1", {"classes": "ring,star", "threshold": 0.1}),
        ("cast_nano_scenes", "--clusters 20,10,5,3 --level -1", {"num_clusters": [20, 10, 5, 3], "level": -1}),
        ("pgt_nano_photos", "--layer 0 --groups 4 --set num_iters=2", {"layer": 0, "num_groups": 4, "num_iters": 2}),
        ("vt_resnet_nano_scenes", "--size 96", {"size": 96}),
        ("vt_fpn_nano_scenes", "", {}),
    ],
)
def test_the_command_writes_exactly_what_save_writes(
    run: Run, tmp_path: Path, name: str, switches: str, settings: dict[str, Any]
) -> None:
    photo((120, 90)).save(tmp_path / "photo.jpg")
    with loud_libraries():
        result = run("segment", tmp_path / "photo.jpg", "--model", name, "--out", tmp_path / "a", *switches.split())
    assert result.code == 0, result.err
    segment(tmp_path / "photo.jpg", name, **settings).save(tmp_path / "b")
    written = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    assert len(written) >= 3


# --- one pass -------------------------------------------------------------------------------------------------------


def count_passes(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[int, ...]]:
    """Shapes of what the deepest shared method of a network is called with."""
    shapes: list[tuple[int, ...]] = []
    original = getattr(model, method)

    def counted(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(model, method, counted)
    return shapes


@pytest.mark.parametrize("masks", ["hard", "soft"])
def test_groupvit_sees_a_photo_once(groupvit: Path, masks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = open_checkpoint(groupvit)
    passes = count_passes(model.model.vision, monkeypatch, "_encode")
    segment(photo((64, 64)), (model, processor), masks=masks)
    assert passes == [(1, 3, 64, 64)]


def test_with_a_window_the_photo_and_each_window_are_seen_once(groupvit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = open_checkpoint(groupvit)
    passes = count_passes(model.model.vision, monkeypatch, "_encode")
    segment(photo((96, 64)), (model, processor), window=32, size=64)
    assert sorted(passes) == [(1, 3, 32, 32)] * 15 + [(1, 3, 64, 96)]
    passes.clear()
    segment(photo((64, 64)), (model, processor), window=64)
    assert passes == [(1, 3, 64, 64)]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("cast_nano_scenes", "_encode"),
        ("pgt_nano_photos", "_steps"),
        ("vt_resnet_nano_scenes", "_stages"),
        ("vt_fpn_nano_scenes", "_levels"),
    ],
)
def test_other_networks_see_a_photo_once(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = open_checkpoint(name)
    passes = count_passes(model.model, monkeypatch, method)
    result = segment(photo((64, 64)), (model, processor))
    assert len(passes) == 1
    assert ("_attention.png" in result._figures()) == name.startswith("vt")


def test_attention_is_that_of_the_network() -> None:
    result = stripes(Looking())
    assert result.token_attention.shape == (5, 8, 12)
    model, processor = open_checkpoint("vt_resnet_nano_scenes")
    result = segment(photo((64, 64)), (model, processor))
    pixels = processor(photo((64, 64)), return_tensors="pt", do_center_crop=False)["pixel_values"]
    expected = model.model.token_attention(pixels)[0].detach().numpy()
    assert result.token_attention.shape == expected.shape


def test_records_name_every_setting(groupvit: Path, tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    result = segment(tmp_path / "a.png", groupvit, size=32)
    result.save(tmp_path / "out")
    assert record(tmp_path / "out", "a") == result.to_dict()
    assert result.to_dict()["settings"]["size"] == 32
    assert stripes(Stripes(), num_stripes=4, layer=2).to_dict()["settings"] == {
        "size": 64,
        "level": None,
        "num_stripes": 4,
        "layer": 2,
        "head": None,
    }
