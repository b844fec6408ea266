"""`grouping-zoo segment` and `info` with models that have no text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from command import Result, Run, caller, loud_libraries, mistake, photo, record, unusual_images
from grouping_zoo.hf.image_processing import ZooImageProcessor
from grouping_zoo.hf.vision import publish
from groupings import Looking, Stripes, StripesModel
from zoo import with_random_weights

CLUSTERS = [32, 16, 8, 4]
LEVELS = range(5)
CAST_FILES = ["photo.json", "photo_groups.png", *(f"photo_level{level}_labels.png" for level in LEVELS)]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = with_random_weights(timm.create_model("cast_nano", embed_dim=32, depths=(1, 1, 1, 1)).eval())
    folder = tmp_path_factory.mktemp("models") / "tiny_cast"
    publish(network, folder, "# tiny\n", metrics={"knn_accuracy": 41.25, "region_covering": 0.5, "iou/ball": 12.0})
    return folder


@pytest.fixture(autouse=True)
def _library_settings() -> Iterator[None]:
    with loud_libraries():
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


def labels(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / f"{name}_labels.png") as png:
        return np.asarray(png).astype(np.int64)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- CAST: a hierarchy on superpixels -------------------------------------------------------------------------------


def test_cast_gives_one_picture_a_label_map_a_level_and_a_record(run: Run, cast: Path, tmp_path: Path) -> None:
    photo((300, 200)).save(tmp_path / "photo.jpg")
    out = tmp_path / "out"
    result = run("segment", tmp_path / "photo.jpg", "--model", cast, "--out", out)
    assert (result.code, result.err) == (0, "")
    assert "superpixels -> 32 -> 16 -> 8 -> 4 groups" in result.out
    assert result.out.rstrip().endswith(f"-> {out / 'photo_groups.png'}")
    assert files(out) == CAST_FILES
    written = record(out, "photo")
    assert written["image_size"] == {"width": 300, "height": 200}
    assert written["working_size"] == {"width": 96, "height": 64}
    assert written["settings"] == {"size": 64, "level": None, "num_clusters": CLUSTERS}
    assert written["groups_per_level"][1:] == CLUSTERS
    assert [level["level"] for level in written["levels"]] == list(LEVELS)


def test_label_maps_and_record_tell_the_same_and_are_nested(run: Run, cast: Path, tmp_path: Path) -> None:
    photo((300, 200)).save(tmp_path / "photo.jpg")
    assert run("segment", tmp_path / "photo.jpg", "--model", cast, "--out", tmp_path / "out").code == 0
    maps = [labels(tmp_path / "out", f"photo_level{level}") for level in LEVELS]
    levels = record(tmp_path / "out", "photo")["levels"]
    for found, level in zip(maps, levels, strict=True):
        assert found.shape == (200, 300)
        counts = np.bincount(found.ravel(), minlength=level["groups"])
        np.testing.assert_allclose(counts / counts.sum(), level["shares"], atol=1e-5)
        assert level["seen"] == np.count_nonzero(counts)
    for finer, coarser, level in zip(maps, maps[1:], levels, strict=False):
        np.testing.assert_array_equal(np.array(level["parents"])[finer], coarser)
    assert "parents" not in levels[-1]


def test_settings_of_the_call_are_obeyed_and_recorded(run: Run, cast: Path, tmp_path: Path) -> None:
    photo((300, 200)).save(tmp_path / "photo.jpg")
    switches = ("--clusters", "20, 10,5,3", "--size", 100, "--level", "-1")
    assert run("segment", tmp_path / "photo.jpg", "--model", cast, "--out", tmp_path / "out", *switches).code == 0
    written = record(tmp_path / "out", "photo")
    assert written["settings"] == {"size": 100, "level": -1, "num_clusters": [20, 10, 5, 3]}
    assert written["working_size"] == {"width": 150, "height": 100}
    assert written["groups_per_level"][1:] == [20, 10, 5, 3]
    assert [level["level"] for level in written["levels"]] == [4]
    assert files(tmp_path / "out") == ["photo.json", "photo_groups.png", "photo_level4_labels.png"]


def test_images_of_every_kind(run: Run, cast: Path, tmp_path: Path) -> None:
    for name, save in unusual_images().items():
        save(tmp_path / name)
    result = run("segment", tmp_path, "--model", cast, "--out", tmp_path / "out", "--level", 4)
    assert result.code == 0, result.err
    for name in unusual_images():
        path = tmp_path / name
        with Image.open(path) as original, Image.open(tmp_path / "out" / f"{path.stem}_level4_labels.png") as png:
            assert png.size == original.size, name


def test_a_photo_of_100_megapixels(run: Run, cast: Path, tmp_path: Path) -> None:
    Image.new("1", (12_500, 8_000)).save(tmp_path / "huge.png")
    arguments = ("segment", tmp_path / "huge.png", "--model", cast, "--out", tmp_path / "out", "--level", 1)
    assert run(*arguments).code == 0
    with Image.open(tmp_path / "out" / "huge_groups.png") as picture:
        assert max(picture.size) <= 2100
    header = (tmp_path / "out" / "huge_level1_labels.png").read_bytes()[16:24]
    assert header == (12_500).to_bytes(4, "big") + (8_000).to_bytes(4, "big")


def test_no_image_is_overwritten(run: Run, cast: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a_level1_labels.png"):
        photo().save(tmp_path / name)
    before = (tmp_path / "a_level1_labels.png").read_bytes()
    images = (tmp_path / "a.png", tmp_path / "a_level1_labels.png")
    mistake(run("segment", *images, "--model", cast, "--out", tmp_path), "would overwrite an image")
    assert (tmp_path / "a_level1_labels.png").read_bytes() == before


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        (("--classes", "cat"), ["classes", "no text encoder", "leave it out", "grouping-zoo list"]),
        (("--threshold", "0.5"), ["threshold", "no text encoder"]),
        (("--masks", "soft"), ["masks", "no text encoder"]),
        (("--window", "32"), ["window", "no text encoder"]),
        (("--layer", "2"), ["layer", "has no such setting", "it has num_clusters"]),
        (("--groups", "8"), ["num_groups", "has no such setting", "it has num_clusters"]),
        (("--head", "1"), ["head", "has no such setting"]),
        (("--level", "5"), ["level: expected -5 to 4, got 5"]),
        (("--level", "fine"), ["--level", "expected a whole number, got 'fine'"]),
        (("--device", "meta"), ["device", "got 'meta'", "try cpu"]),
        (("--clusters", "8,4"), ["num_clusters: expected 4 numbers", "(8, 4)"]),
        (("--clusters", "8,4,,1"), ["--clusters", "with commas", "'8,4,,1'"]),
        (("--groups", "0"), ["--groups", "at least 1"]),
        (("--set", "num_slots=5"), ["num_slots", "has no such setting", "it has num_clusters"]),
        (("--set", "num_slots"), ["--set", "expected NAME=VALUE, got 'num_slots'"]),
        (("--set", "num_clusters=[8"), ["--set", "expected NAME=VALUE such as"]),
        (("--size", "31"), ["size: expected at least 32 pixels, got 31; raise size"]),
        (("--size", "2000"), ["size: expected at most 1000000 pixels", "lower size"]),
    ],
)
def test_wrong_switches(run: Run, cast: Path, tmp_path: Path, switches: tuple[str, ...], words: list[str]) -> None:
    photo().save(tmp_path / "photo.png")
    out = tmp_path / "out"
    mistake(run("segment", tmp_path / "photo.png", "--model", cast, "--out", out, *switches), *words)
    assert not out.exists()


def test_an_architecture_without_weights_is_refused(run: Run, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    mistake(run("segment", tmp_path / "photo.png", "--model", "cast_base"), "no packaged weights", "train it")


# --- several heads, and token attention -----------------------------------------------------------------------------


def segment(run: Run, network: Stripes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *switches: Any) -> Result:
    """Runs `segment` on a photo with a network that no checkpoint holds."""
    opened = (StripesModel(network), ZooImageProcessor(crop_size=32))
    monkeypatch.setattr("grouping_zoo.hf.checkpoint_folder.open_checkpoint", lambda name: opened)
    photo((300, 200)).save(tmp_path / "photo.png")
    return run("segment", tmp_path / "photo.png", "--model", "stripes", "--out", tmp_path / "out", *switches)


def test_every_head_has_its_groups(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = segment(run, Stripes(), tmp_path, monkeypatch)
    assert (result.code, result.err) == (0, "")
    assert "96 tokens -> 6 groups in each of 3 heads" in result.out
    out = tmp_path / "out"
    assert files(out) == ["photo.json", "photo_groups.png", *(f"photo_head{i}_level1_labels.png" for i in range(3))]
    # The photo as a whole, not its centre: 8 rows and 12 columns of cells.
    np.testing.assert_array_equal(labels(out, "photo_head0_level1")[::25][:, 150], np.arange(8) % 6)
    np.testing.assert_array_equal(labels(out, "photo_head1_level1")[100, 12::25], np.arange(12) % 6)
    written = record(out, "photo")
    assert written["settings"] == {"size": 64, "level": None, "num_stripes": 6, "layer": -1, "head": None}
    assert len(written["heads"]) == 3
    assert written["heads"][2] == written["heads"][0] != written["heads"][1]


def test_one_head_of_a_layer_with_fewer_groups(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = ("--head", 1, "--layer", 2, "--set", "num_stripes=4")  # an argument that has no option of its own
    result = segment(run, Stripes(), tmp_path, monkeypatch, *switches)
    assert result.code == 0
    out = tmp_path / "out"
    assert files(out) == ["photo.json", "photo_groups.png", "photo_level1_labels.png"]
    np.testing.assert_array_equal(labels(out, "photo_level1")[100, 12::25], (np.arange(12) + 3) % 4)
    assert record(out, "photo")["settings"] == {"size": 64, "level": None, "num_stripes": 4, "layer": 2, "head": 1}


def test_too_many_groups_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = segment(run, Stripes(), tmp_path, monkeypatch, "--set", "num_stripes=1000000000")
    mistake(result, "num_stripes: expected at most 4096, got 1000000000; lower it")
    assert not (tmp_path / "out").exists()


def test_attention_of_tokens_is_a_picture_of_its_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = segment(run, Looking(), tmp_path, monkeypatch)
    assert result.code == 0
    assert "photo_groups.png, photo_attention.png" in result.out
    assert files(tmp_path / "out") == [
        "photo.json",
        "photo_attention.png",
        "photo_groups.png",
        "photo_level1_labels.png",
    ]
    mistake(segment(run, Looking(), tmp_path, monkeypatch, "--head", 1), "head", "has no such setting; leave it out")


def test_eval_refuses_what_is_for_models_with_text(run: Run, cast: Path) -> None:
    mistake(run("eval", cast, "--task", "zero-shot-seg"), "zero-shot-seg does not fit", "choose from knn, linear")
    mistake(run("eval", cast, "--threshold", 0.5), "--threshold", "is for models with text")


def test_records_are_json_for_everyone(run: Run, cast: Path, tmp_path: Path) -> None:
    photo((1, 1)).save(tmp_path / "photo.png")
    assert run("segment", tmp_path / "photo.png", "--model", cast, "--out", tmp_path / "out").code == 0
    json.loads((tmp_path / "out" / "photo.json").read_text(), parse_constant=pytest.fail)
