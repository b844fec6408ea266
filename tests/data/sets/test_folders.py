import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from grouping_zoo.data.images import CorruptImages
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import open_set
from grouping_zoo.data.sets.folders import FolderImages
from grouping_zoo.data.sets.scenes import CLASSES, Scenes


def _picture(grey: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (grey, grey, grey))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of grey 10, 20, ... in train/; the class "bird" has none."""
    for number, name in enumerate(("cat/a.png", "cat/deep/b.PNG", "dog/c.jpg", ".trash/d.png"), start=1):
        file = tmp_path / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _picture(10 * number).save(file)
    (tmp_path / "train" / "bird").mkdir()
    return tmp_path


def _grey(image: Image.Image) -> int:
    return round(float(np.asarray(image).mean()))


def test_a_scene_of_one_object_has_its_class_for_label() -> None:
    source = open_set("scenes", "train", length=60, image_size=32, max_objects=1)
    assert source.object_names == CLASSES
    labels = []
    for index in range(len(source)):
        found = source[index]
        assert (found.image.mode, found.image.size) == ("RGB", (32, 32))
        assert set(np.unique(found.mask)) == {0, 1 + found.label}
        assert set(np.unique(found.instances)) == {0, 1}
        labels.append(found.label)
    assert set(labels) == set(range(len(CLASSES)))


def test_scenes_of_several_objects_have_no_label_even_where_one_shows_a_single_object() -> None:
    source = open_set("scenes", "train", length=20, image_size=32)
    numbers = [len(scene.classes) for scene in Scenes(length=20, image_size=32)]
    assert set(numbers) == {1, 2, 3}
    assert all(source[index].label is None for index in range(20))


def test_scenes_are_a_function_of_seed_epoch_and_index() -> None:
    one, again, other = (
        open_set("scenes", "train", length=5, image_size=32, seed=seed, max_objects=2) for seed in (3, 3, 4)
    )
    key = SampleKey(7, 2)
    assert one[key].image.tobytes() == again[key].image.tobytes()
    assert one[key].image.tobytes() != other[key].image.tobytes()
    assert one[key].image.tobytes() != one[SampleKey(8, 2)].image.tobytes()
    assert one[2].image.tobytes() == one[SampleKey(0, 2)].image.tobytes()


@pytest.mark.parametrize("number", [0, 9])
def test_a_wrong_number_of_objects_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"max_objects: expected 1 to 8.*got {number}"):
        open_set("scenes", "train", max_objects=number)


def test_a_folder_has_its_subfolders_for_classes_in_order_and_empty_ones_count(folder: Path) -> None:
    source = open_set(f"folder:{folder}", "train")
    assert source.class_names == ("bird", "cat", "dog")
    assert [(found.label, _grey(found.image)) for found in source] == [(1, 10), (1, 20), (2, 30)]
    assert source[SampleKey(5, 2)].label == 2
    assert source[0].mask is source[0].instances is None
    with pytest.raises(IndexError):
        source[3]


def test_a_folder_without_subfolders_has_no_labels(folder: Path) -> None:
    source = open_set(f"folder:{folder / 'train' / 'cat' / 'deep'}", None)
    assert len(source) == 1
    assert source.class_names == ()
    assert source[0].label is None


def test_a_folder_with_images_inside_and_beside_subfolders_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"got 1 of 2 in subfolders, and a.png beside them; move them"):
        FolderImages(folder / "train" / "cat")


def test_a_missing_split_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="trian is none; check the path"):
        open_set(f"folder:{folder}", "trian")


def test_a_corrupt_file_is_counted_and_replaced_with_its_label(folder: Path) -> None:
    (folder / "train" / "cat" / "deep" / "b.PNG").write_bytes(b"not an image")
    source = FolderImages(folder / "train", CorruptImages())
    assert [(found.label, _grey(found.image)) for found in source] == [(1, 10), (2, 30), (2, 30)]
    assert len(source.corrupt) == 1
    assert source.corrupt.read == 3
    with pytest.raises(ValueError, match="corrupt images: expected at most 5%"):
        FolderImages(folder / "train", CorruptImages(minimum_count=1))[1]


def test_a_folder_of_corrupt_files_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="expected readable images, but none of 1 is"):
        FolderImages(tmp_path)[0]


def _encoded(grey: int) -> bytes:
    file = io.BytesIO()
    _picture(grey).save(file, "png")
    return file.getvalue()


def _save_table(folder: Path, labels: list, label_feature: object, bytes_: list[bytes]) -> str:
    features = datasets.Features({"image": datasets.Image(), "label": label_feature})
    rows = {"image": [{"bytes": data, "path": None} for data in bytes_], "label": labels}
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")
    return str(folder)


def test_a_table_gives_images_with_the_names_of_its_classes(tmp_path: Path) -> None:
    pictures = [_encoded(grey) for grey in (10, 20, 30)]
    feature = datasets.ClassLabel(names=["dog", "cat"])
    source = open_set("hub:" + _save_table(tmp_path / "a", [1, 0, 1], feature, pictures), "train")
    assert source.class_names == ("dog", "cat")
    assert [(found.label, _grey(found.image)) for found in source] == [(1, 10), (0, 20), (1, 30)]
    texts = _save_table(tmp_path / "b", ["dog", "cat", "dog"], datasets.Value("string"), pictures)
    source = open_set(f"hub:{texts}", "train")
    assert source.class_names == ("cat", "dog")
    assert [found.label for found in source] == [1, 0, 1]
    numbers = _save_table(tmp_path / "c", [4, 0, 2], datasets.Value("int64"), pictures)
    assert [found.label for found in open_set(f"hub:{numbers}", "train")] == [4, 0, 2]


def test_a_damaged_row_is_replaced(tmp_path: Path) -> None:
    name = _save_table(tmp_path / "a", [0, 1], datasets.Value("int64"), [b"damaged", _encoded(20)])
    assert [_grey(found.image) for found in open_set(f"hub:{name}", "train")] == [20, 20]


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"expected a column of images called one of image, .*got text"):
        open_set(f"hub:{tmp_path}", "train")


def test_sources_are_read_by_loader_processes(folder: Path) -> None:
    source = open_set(f"folder:{folder}", "train")
    loader = DataLoader(source, batch_size=None, num_workers=1)
    assert [found.label for found in loader] == [1, 1, 2]
