"""Labels of tables, of every type that tables have them in."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from grouping_zoo.data.sets import ImageSet, open_set


def open_table(folder: Path, labels: list[Any], feature: Any, column: str = "label") -> ImageSet:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, "png")
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), column: feature})
    rows = {"image": [{"bytes": file.getvalue(), "path": None}] * len(labels), column: labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")
    return open_set(f"hub:{folder}", "train")


@pytest.mark.parametrize("kind", ["int64", "int8", "uint16", "float32", "bool"])
def test_whole_numbers_of_any_type_are_classes_by_their_number(tmp_path: Path, kind: str) -> None:
    source = open_table(tmp_path / "table", [1, 0, 1], datasets.Value(kind))
    assert source.class_names == ("0", "1")
    assert [found.label for found in source] == [1, 0, 1]
    assert all(type(found.label) is int for found in source)


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_texts_are_classes_in_their_order(tmp_path: Path, kind: str) -> None:
    source = open_table(tmp_path / "table", ["dog", "cat", "dog"], datasets.Value(kind))
    assert source.class_names == ("cat", "dog")
    assert [found.label for found in source] == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([1, None, 0], datasets.ClassLabel(names=["a", "b"])),
        (["b", None, "a"], datasets.Value("string")),
        ([1, -1, 0], datasets.Value("int64")),
        ([1, None, 0], datasets.Value("int64")),
        ([1, -1, 0], datasets.ClassLabel(names=["a", "b"])),
    ],
)
def test_a_row_without_label_is_counted_and_named(tmp_path: Path, labels: list[Any], feature: Any) -> None:
    source = open_table(tmp_path / "table", labels, feature)
    assert [index for index, _ in source.readable(range(3))] == [0, 2]
    ((name, reason),) = source.corrupt.reasons.items()
    assert name.endswith("row 1")
    assert "expected a class from 0 to 1, got" in reason


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([[0, 1], [1]], datasets.List(datasets.ClassLabel(names=["a", "b"]))),
        ([[0, 1], [1]], datasets.List(datasets.Value("int64"))),
        ([0.5, 1.0], datasets.Value("float32")),
        ([0, 10**9], datasets.Value("int64")),
        ([None, None], datasets.Value("int64")),
    ],
)
def test_labels_of_other_kinds_are_refused_with_the_column(tmp_path: Path, labels: list[Any], feature: Any) -> None:
    with pytest.raises(ValueError, match="expected one class an image in the column label"):
        open_table(tmp_path / "table", labels, feature)


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 damaged PAR1")
    with pytest.raises(ValueError, match=r"^data: expected a data set that `datasets` reads at") as error:
        open_set(f"hub:{tmp_path}", "train")
    assert "\n" not in str(error.value)


def test_a_loading_script_is_not_run(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit(99)")
    with pytest.raises((ValueError, FileNotFoundError)):
        open_set(f"hub:{tmp_path}", "train")


def test_images_may_stand_in_several_columns(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, "png")
    stored = {"bytes": file.getvalue(), "path": None}
    features = datasets.Features({"jpg": datasets.Image(), "png": datasets.Image()})
    table = datasets.Dataset.from_dict({"jpg": [stored, None], "png": [None, stored]}, features)
    table.to_parquet(tmp_path / "train.parquet")
    assert len(list(open_set(f"hub:{tmp_path}", "train"))) == 2
