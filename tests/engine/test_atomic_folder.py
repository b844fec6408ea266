import os
from pathlib import Path

import pytest

from grouping_zoo.engine import atomic_folder
from grouping_zoo.engine.atomic_folder import replaced_folder, restore_folder


def write(folder: Path, text: str) -> None:
    with replaced_folder(folder) as writing:
        (writing / "file").write_text(text)


def fail_to_write(folder: Path, error: BaseException) -> None:
    with replaced_folder(folder) as writing:
        (writing / "file").write_text("half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_and_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write(tmp_path / "checkpoint", text)
        assert (tmp_path / "checkpoint" / "file").read_text() == text
        assert names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("error", [OSError("full disk"), KeyboardInterrupt()])
def test_an_error_leaves_all_as_it_was(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "checkpoint", "old")
    with pytest.raises(type(error)):
        fail_to_write(tmp_path / "checkpoint", error)
    assert (tmp_path / "checkpoint" / "file").read_text() == "old"
    assert names(tmp_path) == ["checkpoint"]


def test_a_process_killed_between_the_renamings_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "checkpoint", "old")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(atomic_folder.os, "replace", killed)
        patch.setattr(atomic_folder, "restore_folder", lambda folder: None)
        with pytest.raises(SystemExit):
            write(tmp_path / "checkpoint", "new")
    assert names(tmp_path) == [".checkpoint.old", ".checkpoint.writing"]
    restore_folder(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "file").read_text() == "old"
    assert names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "elsewhere" / "weights"
    if exists:
        target.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(target, target_is_directory=True)
    for text in ("first", "second"):
        write(tmp_path / "run" / "checkpoint", text)
        assert (target / "file").read_text() == text
        assert (tmp_path / "run" / "checkpoint").is_symlink()
        assert names(tmp_path / "run") == ["checkpoint"]
        assert names(target.parent) == ["weights"]


def test_a_file_in_the_way_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("a file")
    write(tmp_path / "checkpoint", "new")
    assert (tmp_path / "checkpoint" / "file").read_text() == "new"
    assert names(tmp_path) == ["checkpoint"]
