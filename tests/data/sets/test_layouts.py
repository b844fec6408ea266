import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from torch.utils.data import DataLoader

from grouping_zoo.data.images import CorruptImages
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import class_names, open_set
from grouping_zoo.data.sets.coco import OBJECTS, STUFF
from grouping_zoo.data.sets.coco_regions import decode_run_lengths, region_mask
from grouping_zoo.data.sets.layouts import LAYOUTS as PLAIN_LAYOUTS
from grouping_zoo.data.sets.scenes import CLASSES, Scenes

LAYOUTS = {**PLAIN_LAYOUTS, "coco-object": OBJECTS, "coco-stuff": STUFF}
HEIGHT, WIDTH = 4, 6
CLASS_COUNTS = {
    "voc": 21,
    "context": 60,
    "coco-object": 81,
    "coco-stuff": 171,
    "ade20k": 150,
    "lip": 20,
    "parts": 15,
}
FOLDERS = {  # images, label maps, listing; of the validation split
    "voc": ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt"),
    "context": ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext/val.txt"),
    "coco-object": ("val2017", "stuffthingmaps/val2017", None),
    "coco-stuff": ("val2017", "stuffthingmaps/val2017", None),
    "ade20k": ("images/validation", "annotations/validation", None),
    "lip": ("val_images", "val_segmentations", None),
    "parts": ("images/val", "parts/val", None),
}
# A label map's value -> name of the class, or None for what is ignored.
MEANINGS = {
    "voc": {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor", 255: None},
    "context": {0: "background", 1: "aeroplane", 37: "person", 59: "wood", 255: None},
    "coco-object": {0: "person", 12: "stop sign", 89: "toothbrush", 91: "background", 181: "background", 255: None},
    "coco-stuff": {0: "person", 12: "stop sign", 89: "toothbrush", 91: "banner", 181: "wood", 255: None},
    "ade20k": {0: None, 1: "wall", 13: "person", 150: "flag"},
    "lip": {0: "background", 13: "face", 19: "right-shoe", 255: None},
    "parts": {0: "background", 1: "torso", 14: "head", 255: None},
}
UNKNOWN_VALUES = {
    "voc": 21,
    "context": 60,
    "coco-object": 11,
    "coco-stuff": 90,
    "ade20k": 151,
    "lip": 20,
    "parts": 15,
}


def _save_image(path: Path, grey: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def _save_map(path: Path, values: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def _value_map(kind: str) -> np.ndarray:
    values = list(MEANINGS[kind])
    return np.resize(values, (HEIGHT, WIDTH))


def _make(root: Path, kind: str, numbers: str = "ab", values: np.ndarray | None = None) -> None:
    images, masks, listing = FOLDERS[kind]
    for position, number in enumerate(numbers):
        _save_image(root / images / f"{number}.jpg", grey=40 * position)
        values = _value_map(kind) if values is None else values
        _save_map(root / masks / f"{number}.png", np.roll(values, position, axis=1), mode="P" if kind == "voc" else "L")
    if listing:
        (root / listing).parent.mkdir(parents=True, exist_ok=True)
        (root / listing).write_text("\n".join(numbers) + "\n")


def _grey(found) -> int:
    return round(float(np.asarray(found.image).mean()))


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_label_maps_become_masks_of_class_numbers(tmp_path: Path, kind: str) -> None:
    _make(tmp_path, kind)
    found = open_set(f"{kind}:{tmp_path}")
    assert len(found) == 2
    assert len(found.class_names) == CLASS_COUNTS[kind]
    assert found.ignore_index == 255
    assert (None if found.background is None else found.class_names[found.background]) == (
        None if kind in ("ade20k", "coco-stuff") else "background"
    )
    assert len(found.object_names) == CLASS_COUNTS[kind] - (found.background is not None)
    for index in range(2):
        sample = found[index]
        assert abs(_grey(sample) - 40 * index) <= 2  # JPEG
        assert sample.label is sample.instances is None
        assert sample.mask.dtype == np.uint8
        expected = np.roll(_value_map(kind), index, axis=1)
        for value, name in MEANINGS[kind].items():
            number = 255 if name is None else found.class_names.index(name)
            assert (sample.mask[expected == value] == number).all()
            assert (expected == value).any()


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_a_value_that_is_no_class_is_refused(tmp_path: Path, kind: str) -> None:
    values = _value_map(kind)
    values[1, 2] = UNKNOWN_VALUES[kind]
    _make(tmp_path, kind, "a", values)
    found = open_set(f"{kind}:{tmp_path}")
    found.source.corrupt = CorruptImages(minimum_count=1, max_fraction=0)
    with pytest.raises(ValueError, match="corrupt images") as error:
        found[0]
    reason = str(error.value.__cause__)
    assert f"got {UNKNOWN_VALUES[kind]}; is it one of another data set?" in reason
    assert {"voc": "in 0-20, 255,", "ade20k": "in 0-150,", "coco-stuff": "in 0-10, 12-24, 26-27,"}.get(
        kind, "in"
    ) in reason


def test_class_names_are_all_different_and_complete() -> None:
    for kind, layout in LAYOUTS.items():
        assert len(set(layout.class_names)) == len(layout.class_names) == CLASS_COUNTS[kind]
        assert all(name == name.strip().lower() for name in layout.class_names)
        numbers = set(layout.values.values()) - {255}
        assert numbers == set(range(CLASS_COUNTS[kind]))
        assert layout.palette is None or layout.palette.shape == (CLASS_COUNTS[kind], 3)
    assert list(class_names.PASCAL_CONTEXT[1:]) == sorted(class_names.PASCAL_CONTEXT[1:])
    assert list(class_names.COCO_STUFF_ONLY) == sorted(class_names.COCO_STUFF_ONLY)
    assert len(class_names.COCO_THING_IDS) == len(class_names.COCO_THINGS)
    assert len(class_names.COCO_STUFF_IDS) == len(class_names.COCO_STUFF_ONLY)


def test_palettes_are_the_published_ones() -> None:
    voc = LAYOUTS["voc"].palette
    assert voc[[0, 1, 2, 4, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [0, 0, 128],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert class_names.voc_palette(256)[255].tolist() == [224, 224, 192]  # the devkit's border
    assert LAYOUTS["ade20k"].palette[[0, 2, 149]].tolist() == [[120, 120, 120], [6, 230, 230], [92, 0, 255]]
    assert LAYOUTS["coco-object"].palette[[0, 1, 80]].tolist() == [[0, 0, 0], [220, 20, 60], [191, 162, 208]]


def test_splits_have_usual_names_and_the_data_sets_own(tmp_path: Path) -> None:
    for kind in ("voc", "ade20k"):
        root = tmp_path / kind
        _make(root, kind, "abc")
    lists = tmp_path / "voc/ImageSets/Segmentation"
    (lists / "train.txt").write_text("c\n")
    (lists / "trainval.txt").write_text("a\nb\nc\n\n")
    spec = f"voc:{tmp_path / 'voc'}"
    lengths = {split: len(open_set(spec, split)) for split in ("validation", "val", "trainval")}
    assert lengths == {"validation": 3, "val": 3, "trainval": 3}
    train = open_set(spec, "train")
    assert len(train) == 1
    assert abs(_grey(train[0]) - 80) <= 2
    assert train.name == f"{spec}, train"
    _save_image(tmp_path / "ade20k/images/training/z.jpg", grey=200)
    _save_map(tmp_path / "ade20k/annotations/training/z.png", np.ones((HEIGHT, WIDTH)))
    (train,) = open_set(f"ade20k:{tmp_path / 'ade20k'}", "train")
    assert (_grey(train), train.mask.tolist()) == (200, [[0] * WIDTH] * HEIGHT)
    assert len(open_set(f"ade20k:{tmp_path / 'ade20k'}", "training")) == 1


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_another_layout_is_answered_with_the_expected_one(tmp_path: Path, kind: str) -> None:
    images, masks, listing = FOLDERS[kind]
    spec = f"{kind}:{tmp_path}"
    with pytest.raises(FileNotFoundError, match=rf"{kind}:.*expected .*ID\.jpg.*but .* not there") as error:
        open_set(spec)
    assert "\n" not in str(error.value)
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / masks).mkdir(parents=True)
    if listing:
        with pytest.raises(
            FileNotFoundError, match=f"{masks}/ID.png, {listing}.*train, val.*but {listing} is not there"
        ):
            open_set(spec)
        (tmp_path / listing).parent.mkdir(parents=True)
        (tmp_path / listing).write_text("\n")
    with pytest.raises(ValueError, match=f"expected images in split .*got none; expected files: {images}/ID.jpg"):
        open_set(spec)


def test_unfit_specs_and_folders_are_refused(tmp_path: Path) -> None:
    for spec in ("voc", "scenes:here", "cityscapes:DIR", "", "voc:"):
        with pytest.raises(ValueError, match=r"data: expected one of scenes, .*digits.*voc:DIR, .*hub:NAME, got"):
            open_set(spec)
    with pytest.raises(FileNotFoundError, match=r"expected a folder, but .*nowhere is none"):
        open_set(f"voc:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="split: expected one of"):
        open_set("scenes", "val")


def _spoil_missing(image: Path, mask: Path) -> str:
    mask.unlink()
    return "expected a file, got none"


def _spoil_size(image: Path, mask: Path) -> str:
    _save_map(mask, np.zeros((HEIGHT + 1, WIDTH)))
    return "expected the image's 6x4 pixels, got 6x5"


def _spoil_colours(image: Path, mask: Path) -> str:
    _save_image(mask)
    return "expected pixels of kind L or P, got RGB"


def _spoil_mask(image: Path, mask: Path) -> str:
    mask.write_bytes(mask.read_bytes()[:50])
    return "expected a readable"


def _spoil_image(image: Path, mask: Path) -> str:
    image.write_bytes(b"not an image")
    return "expected a readable"


@pytest.mark.parametrize("spoil", [_spoil_missing, _spoil_size, _spoil_colours, _spoil_mask, _spoil_image])
def test_an_image_that_does_not_fit_its_mask_is_counted_and_left_out(
    tmp_path: Path, spoil: Callable[[Path, Path], str]
) -> None:
    _make(tmp_path, "voc", "abc")
    reason = spoil(tmp_path / "JPEGImages/b.jpg", tmp_path / "SegmentationClass/b.png")
    found = open_set(f"voc:{tmp_path}")
    assert [index for index, _ in found.readable(range(3))] == [0, 2]
    (where,) = found.corrupt.reasons
    assert where == f"{tmp_path}/JPEGImages/b.jpg"
    assert reason in found.corrupt.reasons[where]
    assert found.corrupt.read == 2
    # Training takes the next one instead.
    again = open_set(f"voc:{tmp_path}")
    assert [sample.mask[0].tolist() for sample in again] == [again[n].mask[0].tolist() for n in (0, 2, 2)]


def test_too_many_unreadable_images_stop_an_evaluation(tmp_path: Path) -> None:
    _make(tmp_path, "lip", "abcdefghijkl")
    for mask in sorted((tmp_path / "val_segmentations").iterdir())[1:]:
        mask.unlink()
    with pytest.raises(ValueError, match=r"corrupt images: expected at most 5%, got 10 of 11"):
        list(open_set(f"lip:{tmp_path}").readable(range(12)))


def _save_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _coco_images(root: Path, numbers: tuple[int, ...], folder: str = "val2017", prefix: str = "") -> list[dict]:
    entries = []
    for number in numbers:
        name = f"{prefix}{number:012d}.jpg"
        _save_image(root / folder / name, grey=10 * number)
        entries.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    return entries


def _box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def test_coco_objects_are_drawn_from_instances_small_ones_in_front(tmp_path: Path) -> None:
    images = _coco_images(tmp_path, (7, 3, 9))
    crowd = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 2, 2]}  # the last two pixels of the last column
    annotations = [
        {"image_id": 3, "category_id": 90, "segmentation": _box(1, 1, 2, 2), "iscrowd": 0},
        {"image_id": 3, "category_id": 1, "segmentation": _box(0, 0, 3, 2) + _box(4, 0, 5, 1), "iscrowd": 0},
        {"image_id": 7, "category_id": 13, "segmentation": crowd, "iscrowd": 1},
    ]
    _save_json(tmp_path / "annotations/instances_val2017.json", {"images": images, "annotations": annotations})
    found = open_set(f"coco-object:{tmp_path}")
    assert found.name.endswith("val2017, instances annotations")
    assert [round(_grey(sample), -1) for sample in found] == [30, 70, 90]
    person, toothbrush, stop_sign = (found.class_names.index(name) for name in ("person", "toothbrush", "stop sign"))
    assert found[0].mask.tolist() == [
        [person, person, person, 0, person, 0],
        [person, toothbrush, person, 0, 0, 0],
        [0] * 6,
        [0] * 6,
    ]
    assert found[1].mask.tolist() == [[0] * 6, [0] * 6, [0] * 5 + [stop_sign], [0] * 5 + [stop_sign]]
    assert not found[2].mask.any()
    loader = DataLoader(found, batch_size=None, num_workers=1)
    assert [int(sample.mask.sum()) for sample in loader] == [int(found[index].mask.sum()) for index in range(3)]


def test_coco_objects_are_drawn_from_panoptic_segments(tmp_path: Path) -> None:
    images = _coco_images(tmp_path, (3, 4))
    segments = np.zeros((HEIGHT, WIDTH), dtype=np.int64)  # the first row lies in no segment
    segments[1], segments[2], segments[3] = 70000, 259, 2
    info = [{"id": 70000, "category_id": 1}, {"id": 259, "category_id": 187}, {"id": 2, "category_id": 90}]
    _save_json(
        tmp_path / "annotations/panoptic_val2017.json",
        {
            "images": images,
            "annotations": [
                {"image_id": number, "file_name": f"{number}.png", "segments_info": known}
                for number, known in ((3, info), (4, info[:2]))
            ],
        },
    )
    colors = np.stack([segments % 256, segments // 256 % 256, segments // 256**2], axis=-1).astype(np.uint8)
    for number in (3, 4):
        _save_map(tmp_path / f"annotations/panoptic_val2017/{number}.png", colors)
    found = open_set(f"coco-object:{tmp_path}")
    assert found.name.endswith("panoptic annotations")
    assert found[0].mask[:, 0].tolist() == [255, 1, 0, 80]
    assert (found[0].mask == found[0].mask[:, :1]).all()
    assert [index for index, _ in found.readable(range(2))] == [0]
    assert "expected segments of its annotation, got 2" in next(iter(found.corrupt.reasons.values()))
    # Label maps count first, where there are any.
    _make(tmp_path, "coco-object", "a")
    assert open_set(f"coco-object:{tmp_path}").name.endswith("val2017")


IMAGE = {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1", "expected JSON, got text that fails with Expecting"),
        ("{}", "no list of images"),
        (json.dumps({"images": [{"id": 1}], "annotations": []}), "images without file_name"),
        (
            json.dumps({"images": [IMAGE], "annotations": [{"image_id": 1, "caption": "a cat"}]}),
            "annotations without category_id",
        ),
        (
            json.dumps(
                {"images": [IMAGE], "annotations": [{"image_id": 1, "category_id": 12, "segmentation": []}]},
            ),
            "80 things, got 12",
        ),
        ('{"images": [], "annotations": []}', "at least one annotated image, got none"),
    ],
)
def test_annotation_files_of_another_kind_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "val2017").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"instances_val2017.json \(usual splits: train2017, val2017\), but they"
    ):
        open_set(f"coco-object:{tmp_path}")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        open_set(f"coco-object:{tmp_path}")


def test_a_polygon_covers_the_pixels_whose_centre_is_inside() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :30] + 0.5
    for _ in range(20):
        polygons = [rng.uniform(-3, 33, (corners, 2)) for corners in (3, 4)]
        expected = np.zeros((20, 30), dtype=bool)
        for corners in polygons:
            # A simple outline: the corners in order of their angle around their mean.
            angles = np.arctan2(*(corners - corners.mean(axis=0)).T)
            corners[:] = corners[np.argsort(angles)]
            expected |= Outline(corners).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(20, 30)
        assert (region_mask([corners.ravel().tolist() for corners in polygons], 20, 30) == expected).all()
    with pytest.raises(ValueError, match="at least 3 pairs of x and y, got 4 numbers"):
        region_mask([[0, 0, 1, 1]], 20, 30)


def _compress(lengths: list[int]) -> str:
    """As COCO's annotations do: differences to the last but one from the fourth on, five bits a character."""
    text = ""
    for position, length in enumerate(lengths):
        value = length - lengths[position - 2] if position > 2 else length
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
            if not more:
                break
    return text


def test_run_lengths_are_decoded_plain_and_compressed() -> None:
    assert decode_run_lengths({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [
        [False, True, False],
        [True, False, False],
    ]
    assert decode_run_lengths({"size": [2, 3], "counts": "123"}).tolist() == [
        [False, True, False],
        [True, False, False],
    ]
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((50, 70)) < rng.choice([0.001, 0.5, 0.999])
        values = np.concatenate([[False], mask.T.ravel()])
        edges = np.flatnonzero(np.diff(values)).tolist()
        lengths = np.diff([0, *edges, mask.size]).tolist()
        assert (decode_run_lengths({"size": [50, 70], "counts": lengths}) == mask).all()
        assert (decode_run_lengths({"size": [50, 70], "counts": _compress(lengths)}) == mask).all()
    with pytest.raises(ValueError, match="sum of 2x3 pixels, got 5"):
        decode_run_lengths({"size": [2, 3], "counts": [1, 4]})
    with pytest.raises(ValueError, match=r"expected run lengths of size \[4, 6\], got \[2, 3\]"):
        region_mask({"size": [2, 3], "counts": [6]}, 4, 6)


def test_densepose_parts_fill_their_box_and_unannotated_persons_are_ignored(tmp_path: Path) -> None:
    images = _coco_images(tmp_path, (1, 2), "val2014", "COCO_val2014_")
    left_half = {"size": [256, 256], "counts": _compress([0, 128 * 256, 128 * 256])}
    right_half = {"size": [256, 256], "counts": _compress([128 * 256, 128 * 256])}
    parts = [[] for _ in range(14)]
    parts[0], parts[13] = left_half, right_half
    annotations = [
        {"image_id": 2, "bbox": [0.6, 1.0, 4.2, 2.0], "segmentation": _box(0, 1, 4, 3), "dp_masks": parts},
        {"image_id": 2, "bbox": [3, 0, 3, 2], "segmentation": _box(3, 0, 6, 2)},
        {"image_id": 1, "bbox": [3, 0, 3, 2], "segmentation": _box(3, 0, 6, 2)},
    ]
    file = tmp_path / "annotations/densepose_coco_2014_minival.json"
    _save_json(file, {"images": images, "annotations": annotations})
    found = open_set(f"densepose:{tmp_path}")
    assert len(found) == 1
    torso, head = found.class_names.index("torso"), found.class_names.index("head")
    assert found[0].mask.tolist() == [
        [0, 0, 0, 255, 255, 255],
        [torso, torso, head, head, 255, 255],
        [torso, torso, head, head, 0, 0],
        [0] * 6,
    ]
    _save_json(file, {"images": [{**images[1], "file_name": "2.jpg"}], "annotations": annotations})
    with pytest.raises(ValueError, match=r"expected images called like COCO_val2014_000000000139.jpg, got 2.jpg"):
        open_set(f"densepose:{tmp_path}")
    _save_json(file, {"images": images, "annotations": annotations[2:]})
    with pytest.raises(ValueError, match="expected persons with dp_masks, got none"):
        open_set(f"densepose:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"expected annotations/densepose_coco_2014_train.json, train2014"):
        open_set(f"densepose:{tmp_path}", "train")


def test_scenes_name_their_background() -> None:
    found = open_set("scenes", length=3, image_size=(32, 48), seed=5)
    assert (found.class_names, found.object_names) == (("background", *CLASSES), CLASSES)
    assert (len(found), found.background, found.ignore_index, found.corrupt) == (3, 0, None, None)
    scenes = Scenes("validation", 3, (32, 48), 5)
    for key in (0, SampleKey(2, 1)):
        assert (found[key].mask == scenes[key].mask).all()
    assert [index for index, _ in found.readable([2, 0])] == [2, 0]
    single = open_set("digits", "train", length=2, image_size=32, max_objects=1)
    assert single.class_names[:2] == ("background", "zero")
    assert set(np.unique(single[0].mask)) == {0, single.class_names.index(single.object_names[single[0].label])}


def test_labelled_folders_and_tables_open_alike(tmp_path: Path) -> None:
    for name, grey in (("train/cat/a.png", 10), ("val/cat/b.png", 20), ("val/dog/c.png", 30)):
        _save_image(tmp_path / "images" / name, grey)
    found = open_set(f"folder:{tmp_path / 'images'}")
    assert (found.class_names, found.background, found.ignore_index) == (("cat", "dog"), None, None)
    assert [(_grey(sample), sample.label, sample.mask) for sample in found] == [(20, 0, None), (30, 1, None)]
    assert len(open_set(f"folder:{tmp_path / 'images'}", "train")) == 1
    (tmp_path / "images/val/cat/b.png").write_bytes(b"not an image")
    assert [index for index, _ in found.readable(range(2))] == [1]
    with pytest.raises(FileNotFoundError, match="test is none"):
        open_set(f"folder:{tmp_path / 'images'}", "test")


def test_a_table_has_labels(tmp_path: Path) -> None:
    import datasets

    _save_image(tmp_path / "table/a.png", 50)
    rows = {"image": [str(tmp_path / "table/a.png")], "label": [1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "table/validation.parquet")
    found = open_set(f"hub:{tmp_path / 'table'}")
    assert (found.class_names, found[0].label, _grey(found[0])) == (("cat", "dog"), 1, 50)


def _turn(path: Path, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Save an image that is dark but for its upper left quarter, with an EXIF tag, and return its mask as stored."""
    width, height = size
    stored = np.zeros((height, width), dtype=np.uint8)
    stored[: height // 2, : width // 2] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.repeat(255 * stored[..., None], 3, axis=2)).save(path, exif=exif, quality=100)
    return stored


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(32, 16), (16, 16)])
def test_masks_turn_with_images_that_exif_turns(
    tmp_path: Path, orientation: int, size: tuple[int, int], caplog
) -> None:
    _make(tmp_path, "voc", "a")
    stored = _turn(tmp_path / "JPEGImages/a.jpg", orientation, size)
    _save_map(tmp_path / "SegmentationClass/a.png", stored)
    sample = open_set(f"voc:{tmp_path}")[0]
    assert sample.mask.shape == (sample.image.height, sample.image.width)
    assert ((np.asarray(sample.image)[..., 0] > 127) == (sample.mask == 1)).all()
    warned = [record.getMessage() for record in caplog.records]
    decided = orientation == 1 or (orientation >= 5 and size[0] != size[1])
    assert len(warned) == (0 if decided else 1)
    assert all(f"EXIF orientation is {orientation}" in text and "a.jpg" in text for text in warned)


def test_a_mask_of_the_image_as_it_is_seen_stays(tmp_path: Path) -> None:
    _make(tmp_path, "voc", "a")
    stored = _turn(tmp_path / "JPEGImages/a.jpg", 6, (32, 16))
    _save_map(tmp_path / "SegmentationClass/a.png", np.rot90(stored, -1))
    sample = open_set(f"voc:{tmp_path}")[0]
    assert ((np.asarray(sample.image)[..., 0] > 127) == (sample.mask == 1)).all()


@pytest.mark.parametrize("kind", ["lip", "ade20k", "coco-stuff"])
def test_images_of_folders_without_lists_may_end_otherwise(tmp_path: Path, kind: str) -> None:
    _make(tmp_path, kind, "ab")
    images, masks, _ = FOLDERS[kind]
    for number, ending in (("c", "png"), ("d", "JPG"), ("e", "jpeg")):
        path = tmp_path / images / f"{number}.{ending}"
        Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(path, "png" if ending == "png" else "jpeg")
        _save_map(tmp_path / masks / f"{number}.png", _value_map(kind))
    assert len(list(open_set(f"{kind}:{tmp_path}").readable(range(5)))) == 5


def test_a_mask_that_was_compressed_with_loss_is_refused(tmp_path: Path) -> None:
    _make(tmp_path, "voc", "ab")
    Image.new("L", (WIDTH, HEIGHT), 3).save(tmp_path / "SegmentationClass/a.png", "jpeg")
    found = open_set(f"voc:{tmp_path}")
    assert [index for index, _ in found.readable(range(2))] == [1]
    assert "expected a readable image of BMP or GIF or PNG" in found.corrupt.reasons[f"{tmp_path}/JPEGImages/a.jpg"]


def test_a_list_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    _make(tmp_path, "voc", "a")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("../../../etc/x\n")
    with pytest.raises(ValueError, match="which leads out of it"):
        open_set(f"voc:{tmp_path}")


def _instances(root: Path, **changes: object) -> None:
    images = _coco_images(root, (1,))
    content = {
        "images": images,
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": _box(0, 0, 3, 2)}],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
    }
    _save_json(root / "annotations/instances_val2017.json", content | changes)


def test_cocos_own_categories_are_taken_and_others_are_refused(tmp_path: Path) -> None:
    _instances(tmp_path)
    assert open_set(f"coco-object:{tmp_path}")[0].mask.max() == 1
    for categories in (
        [{"id": 1, "name": "crack"}, {"id": 2, "name": "rust"}],
        [{"id": 1, "name": "person"}, {"id": 2, "name": "rust"}],
        [{"id": 1000, "name": "person"}],
        [{"id": 12, "name": "street sign"}],
    ):
        _instances(tmp_path, categories=categories)
        with pytest.raises(ValueError, match=r"instances_val2017\.json: expected COCO's own categories, got"):
            open_set(f"coco-object:{tmp_path}")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None},
        {"images": [5]},
        {"images": [{"id": [], "file_name": "a.jpg", "height": 4, "width": 6}]},
        {"images": [{"id": 1, "file_name": "a.jpg", "height": "4", "width": 6}]},
        {"images": [{"id": 1, "file_name": 7, "height": 4, "width": 6}]},
        {"images": [{"id": 1, "file_name": "../a.jpg", "height": 4, "width": 6}]},
        {"images": [{"id": 1, "file_name": "/etc/hostname", "height": 4, "width": 6}]},
        {"images": [{"id": 1, "file_name": "a.jpg", "height": 10**5, "width": 10**5}]},
        {"images": [{"id": "1", "file_name": "a.jpg", "height": 4, "width": 6}]},
        {"annotations": {"a": 1}},
        {"annotations": [{"image_id": [], "category_id": 1, "segmentation": []}]},
        {"annotations": [{"image_id": 1, "category_id": [], "segmentation": []}]},
        {"annotations": [{"image_id": 1, "category_id": None, "segmentation": []}]},
        {"annotations": [{"image_id": "1", "category_id": 1, "segmentation": []}]},
        {"categories": 5},
        {"categories": [{"id": [], "name": "person"}]},
    ],
)
def test_annotations_of_other_types_are_refused_in_one_line(tmp_path: Path, changes: dict) -> None:
    _instances(tmp_path, **changes)
    with pytest.raises(ValueError, match="expected") as error:
        open_set(f"coco-object:{tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        5,
        "text",
        [5],
        [[1, 2, 3]],
        [[0, 0, 1, 1, "a", 2]],
        [[0, 0, 1e300, 1, 2, 2]],
        {},
        {"size": [HEIGHT, WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [1.5]},
        {"size": [HEIGHT, WIDTH], "counts": "\x7f"},
        {"size": [HEIGHT, WIDTH], "counts": "o" * 100},
        {"size": [10**5, 10**5], "counts": [10**10]},
        {"size": 5, "counts": [1]},
    ],
)
def test_regions_of_other_types_cost_their_image(tmp_path: Path, segmentation: object) -> None:
    _instances(tmp_path, annotations=[{"image_id": 1, "category_id": 1, "segmentation": segmentation}])
    found = open_set(f"coco-object:{tmp_path}")
    assert list(found.readable([0])) == []
    assert "expected" in next(iter(found.corrupt.reasons.values()))
    if isinstance(segmentation, dict):
        with pytest.raises(ValueError, match="expected"):
            decode_run_lengths(segmentation)


@pytest.mark.parametrize(
    "person",
    [
        {"bbox": None, "segmentation": [], "dp_masks": [{"size": [4, 4], "counts": [0, 16]}]},
        {"bbox": [0, 0, "a", 1], "segmentation": [], "dp_masks": [{"size": [4, 4], "counts": [0, 16]}]},
        {"bbox": [0, 0, 4, 4], "segmentation": [], "dp_masks": 7},
        {"bbox": [0, 0, 4, 4], "segmentation": [], "dp_masks": [{"size": [4], "counts": [0, 16]}]},
        {"bbox": [0, 0, 4, 4], "segmentation": [], "dp_masks": [{"size": [4, 4]}]},
    ],
)
def test_persons_of_other_types_cost_their_image(tmp_path: Path, person: dict) -> None:
    images = _coco_images(tmp_path, (1, 2), folder="val2014", prefix="COCO_val2014_")
    good = {"bbox": [0, 0, 4, 4], "segmentation": [], "dp_masks": [{"size": [4, 4], "counts": [0, 16]}]}
    content = {"images": images, "annotations": [{"image_id": 1, **person}, {"image_id": 2, **good}]}
    _save_json(tmp_path / "annotations/densepose_coco_2014_minival.json", content)
    found = open_set(f"densepose:{tmp_path}")
    assert [index for index, _ in found.readable([0, 1])] == [1]
    assert "expected" in next(iter(found.corrupt.reasons.values()))
