"""`grouping-zoo segment` with models that have text."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command import THRESHOLD, Result, Run, mistake, photo, record, unusual_images
from grouping_zoo.data import images
from grouping_zoo.data.sets.scenes import CLASSES, Scenes

FILES = ("_groups.png", "_overlay.png", "_labels.png", ".json")


# --- segment --------------------------------------------------------------------------------------------------------


def test_segment_writes_four_files_an_image_and_says_what_it_found(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(Scenes("validation")[1].image).save(tmp_path / "scene.png")
    photo((300, 200)).save(tmp_path / "photo.jpg")
    out = tmp_path / "new" / "out"
    result = run("segment", tmp_path / "scene.png", tmp_path / "photo.jpg", "--model", checkpoint, "--out", out)
    assert (result.code, result.err) == (0, "")
    assert sorted(file.name for file in out.iterdir()) == sorted(n + s for n in ("scene", "photo") for s in FILES)
    first, second = result.out.splitlines()
    assert first.startswith(f"{tmp_path / 'scene.png'}: ")
    assert second.endswith(f"-> {out / 'photo_overlay.png'}, photo_groups.png")
    assert any(name in first for name in CLASSES)


def test_labels_and_record_tell_the_same(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo((300, 200)).save(tmp_path / "photo.jpg")
    out = tmp_path / "out"
    assert run("segment", tmp_path / "photo.jpg", "--model", checkpoint, "--out", out, "--masks", "soft").code == 0
    with Image.open(out / "photo_labels.png") as png:
        assert (png.mode, png.size) == ("P", (300, 200))
        labels = np.asarray(png)
    written = record(out, "photo")
    entries = [{"index": 0, "share": written["background"]["share"]}, *written["classes"]]
    assert [entry["index"] for entry in entries] == list(range(1 + len(CLASSES)))
    assert [entry["name"] for entry in entries[1:]] == list(CLASSES)
    for entry in entries:
        assert entry["share"] == pytest.approx((labels == entry["index"]).mean(), abs=1e-5)
    assert sum(entry["image_probability"] for entry in written["classes"]) == pytest.approx(1, abs=1e-4)
    assert written["image_size"] == {"width": 300, "height": 200}
    assert written["groups"]["per_level"] == [6]
    assert 1 <= written["groups"]["seen"] <= 6
    with Image.open(out / "photo_groups.png") as groups:
        assert groups.size == (300, 200)


def test_every_switch_that_changes_the_figures_is_recorded(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo((300, 200)).save(tmp_path / "photo.jpg")
    arguments = ("segment", tmp_path / "photo.jpg", "--model", checkpoint, "--out", tmp_path / "out")
    assert run(*arguments).code == 0
    default = record(tmp_path / "out", "photo")
    expected = dict(background_threshold=THRESHOLD, masks="hard", top_classes=5, window=None, stride=None, size=64)
    assert default["settings"].items() >= expected.items()
    assert default["settings"]["prompts"] == ["a photo of a {}."]
    assert default["working_size"] == {"width": 96, "height": 64}
    assert (default["model"], default["device"]) == (str(checkpoint), "cpu")
    switches = ("--threshold", 0.5, "--size", 100, "--window", 64, "--masks", "soft")
    assert run(*arguments, *switches).code == 0
    changed = record(tmp_path / "out", "photo")
    expected = dict(background_threshold=0.5, size=100, window=64, stride=32, masks="soft")
    assert changed["settings"] == default["settings"] | expected
    assert changed["working_size"] == {"width": 150, "height": 100}


def test_own_classes_are_taken_in_their_order(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    arguments = ("segment", tmp_path / "photo.png", "--model", checkpoint, "--out", tmp_path)
    result = run(*arguments, "--classes", "moon, coffee cup; mug ,ball,", "--threshold", 0)
    assert result.code == 0
    written = record(tmp_path, "photo")
    assert [entry["name"] for entry in written["classes"]] == ["moon", "coffee cup; mug", "ball"]
    assert written["background"]["share"] == 0
    assert "background" not in result.out
    assert result.err.startswith(f"note: {checkpoint} was made for ball, box")
    assert "coffee cup; mug may be wrong" in result.err


def test_threshold_one_leaves_only_the_best_pixels(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo((64, 64)).save(tmp_path / "photo.png")
    arguments = ("segment", tmp_path / "photo.png", "--model", checkpoint, "--out", tmp_path)
    shares = []
    for threshold in (0, 0.05, 1):
        assert run(*arguments, "--masks", "soft", "--threshold", threshold).code == 0
        shares.append(record(tmp_path, "photo")["background"]["share"])
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.5 < shares[2] < 1, "the photo's best pixels are never background"


def test_inputs_of_one_name_do_not_overwrite_each_other(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sizes = {"a.png": (40, 50), "a.jpg": (50, 40), "A.bmp": (30, 30), "other/a.png": (64, 32)}
    for name, size in sizes.items():
        photo(size).save(tmp_path / name)
    out = tmp_path / "out"
    result = run("segment", tmp_path, tmp_path / "a.png", "--model", checkpoint, "--out", out)
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 4, "an image that is named twice is read once"
    assert len(list(out.iterdir())) == 4 * len(FILES)
    found = {json.loads(file.read_text())["image_size"]["width"] for file in out.glob("*.json")}
    assert found == {40, 50, 30, 64}
    assert len({file.name.casefold() for file in out.iterdir()}) == 4 * len(FILES)


def test_a_second_run_does_not_read_what_the_first_one_wrote(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    first, second = (run("segment", ".", "--model", checkpoint) for _ in range(2))
    assert first.code == second.code == 0
    assert first.out == second.out
    assert len(list((tmp_path / "out").iterdir())) == len(FILES)
    mistake(run("segment", "out", "--model", checkpoint), "--out", "another folder")


def test_no_image_is_overwritten(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a_groups.png"):
        photo().save(tmp_path / name)
    before = (tmp_path / "a_groups.png").read_bytes()
    result = run("segment", tmp_path / "a.png", tmp_path / "a_groups.png", "--model", checkpoint, "--out", tmp_path)
    mistake(result, "would overwrite an image")
    assert (tmp_path / "a_groups.png").read_bytes() == before


def test_images_of_every_kind(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name, save in unusual_images().items():
        save(tmp_path / name)
    result = run("segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    for name in unusual_images():
        path = tmp_path / name
        with Image.open(path) as original, Image.open(tmp_path / "out" / f"{path.stem}_labels.png") as labels:
            assert labels.size == original.size, name


def test_a_photo_of_100_megapixels(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    Image.new("1", (12_500, 8_000)).save(tmp_path / "huge.png")
    result = run("segment", tmp_path / "huge.png", "--model", checkpoint, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    with images.open_image(tmp_path / "out" / "huge_overlay.png") as overlay:
        assert overlay.width == 2048
    header = (tmp_path / "out" / "huge_labels.png").read_bytes()[16:24]
    assert header == (12_500).to_bytes(4, "big") + (8_000).to_bytes(4, "big")


def test_more_than_255_classes(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    classes = ", ".join(f"thing {number}" for number in range(300))
    arguments = ("--model", checkpoint, "--out", tmp_path, "--classes", classes, "--threshold", 0)
    assert run("segment", tmp_path / "photo.png", *arguments).code == 0
    with Image.open(tmp_path / "photo_labels.png") as png:
        assert np.unique(np.asarray(png)).tolist() == [
            e["index"] for e in record(tmp_path, "photo")["classes"] if e["share"]
        ]


# --- images that cannot be read -------------------------------------------------------------------------------------


def corrupt_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    return {
        "truncated.png": buffer.getvalue()[: len(buffer.getvalue()) // 2],
        "empty.png": b"",
        "words.jpg": b"no picture, just words\n",
        "noise.gif": bytes(range(256)),
    }


@pytest.mark.parametrize("name", corrupt_files())
def test_one_bad_image_is_an_error(run: Run, checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(corrupt_files()[name])
    out = tmp_path / "out"
    result = run("segment", tmp_path / name, "--model", checkpoint, "--out", out)
    mistake(result, f"image {tmp_path / name}", "expected a readable image", "replace or remove")
    assert not out.exists()


def test_corrupt_files_of_a_folder_are_skipped_and_named(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "good.png")
    for name, content in corrupt_files().items():
        (tmp_path / name).write_bytes(content)
    result = run("segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    first, *others = result.err.splitlines()
    assert first == "skipped: 4 of 5 images could not be segmented"
    assert {name for name in corrupt_files() if name in result.err} == set(corrupt_files())
    assert len(others) == 4


def test_a_bad_image_that_was_asked_for_is_an_error_after_the_others_are_done(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    photo().save(tmp_path / "good.png")
    out = tmp_path / "out"
    result = run("segment", tmp_path / "bad.png", tmp_path / "good.png", "--model", checkpoint, "--out", out)
    assert result.code == 2
    assert (out / "good.json").exists()
    assert result.err.startswith(f"error: 1 of 2 images could not be segmented: image {tmp_path / 'bad.png'}: ")


def test_no_image_left_is_an_error(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"")
    result = run("segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out")
    line = mistake(result, "4 of 4 images could not be segmented", "and 1 more")
    assert "expected a readable image" in line, "the reason"
    assert not (tmp_path / "out").exists()


def test_many_bad_images_do_not_keep_the_others_from_being_done(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_text("<html>")
    photo().save(tmp_path / "last.png")
    result = run("segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out")
    assert result.code == 0
    assert result.err.startswith("skipped: 12 of 13 images could not be segmented")
    assert (tmp_path / "out" / "last.json").exists()


def test_an_image_that_the_network_cannot_take_does_not_keep_the_others_from_being_done(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    photo((400, 50)).save(tmp_path / "long.png")
    photo((50, 50)).save(tmp_path / "square.png")
    arguments = ("--model", checkpoint, "--out", tmp_path / "out", "--size", 600)
    result = run("segment", tmp_path, *arguments)
    assert result.code == 0
    first, reason = result.err.splitlines()
    assert first == "skipped: 1 of 2 images could not be segmented"
    assert reason.startswith(f"  {tmp_path / 'long.png'}: size: expected at most 65536 patches")
    assert (tmp_path / "out" / "square.json").exists()


ODD_NAMES = [b"caf\xff.png", b"a" * 244 + b".png", "é".encode() * 122 + b".png", "星\n$x^$ {0} 100%.png".encode()]


def test_odd_names_neither_stop_nor_clash(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    names = [*ODD_NAMES, b"a" * 243 + b"b.png", b"z.png"]
    for name in names:
        photo().save(tmp_path / os.fsdecode(name))
    result = run("segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert len(list((tmp_path / "out").iterdir())) == len(names) * len(FILES)
    records = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")]
    assert {os.fsencode(one["image"]) for one in records} == set(names)
    assert r"caf\udcff.png: " in result.out


def test_odd_class_names(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    classes = "$x^$ {0} 100%, " + "x" * 300 + ", 星, {}, %s"
    result = run("segment", tmp_path / "a.png", "--model", checkpoint, "--out", tmp_path, "--classes", classes)
    assert result.code == 0, result.err
    names = [entry["name"] for entry in record(tmp_path, "a")["classes"]]
    assert names == [name.strip() for name in classes.split(",")]
    wrong = ("--classes", "cat, caf\udcff")
    mistake(run("segment", tmp_path / "a.png", "--model", checkpoint, *wrong), "classes", r"UTF-8, got 'caf\udcff'")


def test_a_terminal_that_cannot_print_a_character_does_not_end_it(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("café.png", "z.png"):
        photo().save(tmp_path / name)
    arguments = ["segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-m", "grouping_zoo.cli", *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert rb"caf\xe9.png: " in result.stdout
    assert (tmp_path / "out" / "z.json").exists()


def test_a_pipe_is_not_waited_for(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    arguments = ("--model", checkpoint, "--out", tmp_path / "out")
    mistake(run("segment", tmp_path / "fifo.png", *arguments), "fifo.png", "got: a folder, pipe or device")


def test_an_empty_out_is_not_the_current_folder(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    mistake(run("segment", tmp_path / "a.png", "--model", checkpoint, "--out", ""), "--out", "an empty path", "give .")
    mistake(run("eval", checkpoint, "--out", ""), "--out", "an empty path")


def test_a_folder_in_the_way_stops_one_image_alone(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo().save(tmp_path / name)
    out = tmp_path / "out"
    (out / "a_groups.png").mkdir(parents=True)
    result = run("segment", tmp_path, "--model", checkpoint, "--out", out)
    assert result.code == 0
    assert "a_groups.png: expected to write a file, got a folder" in result.err
    assert sorted(file.name for file in out.iterdir()) == sorted(["a_groups.png", *(f"b{suffix}" for suffix in FILES)])


def test_nothing_half_written_stays(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo().save(tmp_path / "photo.png")
    out = tmp_path / "out"

    def full_disk(*_: Any) -> None:
        assert list(out.rglob("*_groups.png")), "the first picture was written already"
        raise OSError("No space left on device")

    monkeypatch.setattr("grouping_zoo.inference.result.save_label_png", full_disk)
    mistake(run("segment", tmp_path / "photo.png", "--model", checkpoint, "--out", out), "No space left on device")
    assert not list(out.iterdir())


def test_an_interruption_is_quiet(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        photo().save(tmp_path / name)
    read = images.open_image

    def interrupted(path: Path) -> Image.Image:
        if path.name == "b.png":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr("grouping_zoo.inference.photos.open_image", interrupted)
    result = run("segment", tmp_path, "--model", checkpoint, "--out", tmp_path / "out")
    assert result.code == 130
    assert result.err == ""
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(f"a{suffix}" for suffix in FILES)


# --- other mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        (("--classes", ""), ["classes: expected at least one class name"]),
        (("--classes", " , ;,"), ["classes: expected at least one class name"]),
        (("--classes", "cat, dog, Cat"), ["classes", "cat more than once"]),
        (("--classes", "cat, background"), ["classes", "background", "set threshold"]),
        (("--threshold", "1.5"), ["--threshold", "from 0 to 1", "'1.5'"]),
        (("--threshold", "nan"), ["--threshold", "from 0 to 1", "'nan'"]),
        (("--threshold", "low"), ["--threshold", "from 0 to 1", "'low'"]),
        (("--size", "0"), ["--size", "at least 1", "'0'"]),
        (("--size", "3"), ["size: expected at least the model's patch of 4 pixels, got 3"]),
        (("--size", "5000"), ["size: expected at most 65536 patches", "lower size"]),
        (("--stride", "8"), ["stride", "set window too"]),
        (("--window", "16", "--stride", "17"), ["stride: expected 1 to the window's 16, got 17"]),
        (("--masks", "fuzzy"), ["--masks", "'fuzzy'", "hard", "see grouping-zoo segment --help"]),
        (("--device", "toaster"), ["device", "'toaster'", "try cpu"]),
        (("--level", "1"), ["level", "for models without text", "leave it out"]),
        (("--clusters", "8,4"), ["num_clusters", "for models without text"]),
        (("--colour", "red"), ["unrecognized arguments: --colour red", "--help"]),
    ],
)
def test_wrong_switches(
    run: Run, checkpoint: Path, tmp_path: Path, switches: tuple[str, ...], words: list[str]
) -> None:
    photo().save(tmp_path / "photo.png")
    out = tmp_path / "out"
    mistake(run("segment", tmp_path / "photo.png", "--model", checkpoint, "--out", out, *switches), *words)
    assert not out.exists()


def test_wrong_paths(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    model = ("--model", checkpoint)
    mistake(run("segment", tmp_path / "none.png", *model), "none.png does not exist", "check the path")
    mistake(run("segment", tmp_path / "empty", *model), "got none in", "empty", "check the path")
    mistake(run("segment", tmp_path / "photo.png", *model, "--out", tmp_path / "file"), "--out", "got the file")
    mistake(run("segment", *model), "IMAGE_OR_FOLDER", "see grouping-zoo segment --help")
    mistake(run("eval", checkpoint, "--out", tmp_path / "file"), "--out", "got the file")
    mistake(run("eval", checkpoint, "--images", "0"), "--images", "at least 1")
    mistake(run("segment", "", *model, "--out", tmp_path / "out"), "images", "got an empty one")
    mistake(run("segment", tmp_path / "photo.png", "--model", ""), "model: '' is no folder")


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_folders_that_cannot_be_made_are_told_before_the_work(
    run: Run, checkpoint: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    line = mistake(run("eval", checkpoint, option, tmp_path / "file" / "deeper"), f"{option}: expected a folder")
    assert line.endswith(f"got the file {tmp_path / 'file'}; choose another name")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    mistake(run("eval", checkpoint, option, tmp_path / "new" / "deeper"), f"{option}: ", "read-only", "choose another")


def test_a_checkpoint_that_cannot_be_fetched_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str) -> None:
        raise OSError("Check your internet connection")

    monkeypatch.setattr("grouping_zoo.hf.checkpoint_folder.open_checkpoint", offline)
    photo().save(tmp_path / "photo.png")
    mistake(run("segment", tmp_path / "photo.png", "--model", "user/name"), "user/name: expected", "connection")


def test_models_that_cannot_be_opened(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")

    def segment(model: Path | str) -> Result:
        return run("segment", tmp_path / "photo.png", "--model", model, "--out", tmp_path / "out")

    def copy(name: str) -> Path:
        return shutil.copytree(checkpoint, tmp_path / name)

    mistake(segment("groupvit_nano_scene"), "model: 'groupvit_nano_scene' is no folder")
    mistake(segment("groupvit_small_patch16_224"), "no packaged weights")
    mistake(segment(tmp_path), "expected a checkpoint folder, found no config.json")
    damaged = copy("damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    mistake(segment(damaged), "its weights are damaged")
    garbled = copy("garbled")
    (garbled / "config.json").write_text("{")
    mistake(segment(garbled), "config.json")
    wordless = copy("wordless")
    config = json.loads((wordless / "config.json").read_text())
    (wordless / "config.json").write_text(json.dumps(config | {"class_names": None}))
    mistake(segment(wordless), "classes", "has no classes of its own")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_do_it_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "photo.png")
    monkeypatch.setattr(
        "grouping_zoo.hf.checkpoint_folder.open_checkpoint", lambda name: (torch.nn.Linear(1, 1), object())
    )
    mistake(run("segment", tmp_path / "photo.png"), "makes no groups", "grouping-zoo list")
    mistake(run("eval", "groupvit_nano_scenes"), "got a Linear", "grouping-zoo list")
