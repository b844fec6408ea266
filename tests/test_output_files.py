"""Files of a result: all or none."""

import json
import os
import time
from pathlib import Path

import pytest

from grouping_zoo.output_files import LEFTOVER_SECONDS, MAX_STEM_BYTES, all_or_nothing, output_stem, write_json


def write(folder: Path, *names: str | type[BaseException]) -> None:
    """Writes files, all or none, or raises where an exception stands for a name."""
    with all_or_nothing(folder) as unfinished:
        for name in names:
            if not isinstance(name, str):
                raise name
            (unfinished / name).write_text("content")


def test_files_move_when_all_are_written_and_vanish_on_an_error(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with all_or_nothing(out) as unfinished:
        (unfinished / "a").write_text("1")
        assert [file.name for file in out.iterdir()] == [unfinished.name]
    with pytest.raises(KeyboardInterrupt):
        write(out, "b", KeyboardInterrupt)
    assert [file.name for file in out.iterdir()] == ["a"]


def test_nothing_moves_where_a_folder_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ValueError, match=r"b\.png: expected to write a file, got a folder"):
        write(tmp_path, "a.json", "b.png")
    assert [file.name for file in tmp_path.iterdir()] == ["b.png"]


def test_what_a_killed_process_left_is_removed_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".unfinished-old", tmp_path / ".unfinished-fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "a.png").write_text("")
    past = time.time() - LEFTOVER_SECONDS - 1
    os.utime(old, (past, past))
    with all_or_nothing(tmp_path):
        pass
    assert not old.exists()
    assert (fresh / "a.png").exists()


def test_names_that_are_not_utf8_are_written_as_json_escapes(tmp_path: Path) -> None:
    record = {"image": os.fsdecode(b"caf\xff.png"), "name": "星, é"}
    write_json(tmp_path / "a.json", record)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "星, é" in text
    assert json.loads(text) == record
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"value": float("nan")})


@pytest.mark.parametrize("letter", ["a", "é", "星", os.fsdecode(b"\xff")])
def test_long_names_are_cut_between_letters_and_short_ones_are_left_alone(letter: str, tmp_path: Path) -> None:
    assert output_stem(3 * letter) == 3 * letter
    assert output_stem(3 * letter, 12) == f"{3 * letter}-12"
    long = "b" + 300 * letter
    cut = output_stem(long)
    assert len(os.fsencode(cut)) <= MAX_STEM_BYTES
    assert long.startswith(cut)
    assert output_stem(long, 2) != cut
    (tmp_path / f"{output_stem(long, 10)}_head10_level4_labels.png").write_text("")
