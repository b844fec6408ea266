"""Every data set goes to loader workers that are spawned, as on macOS and Windows."""

import io
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import grouping_zoo.data
from grouping_zoo.data.augmented import AugmentationConfig, AugmentedDataset
from grouping_zoo.data.captioned import captioned_folder, hub_images, shard_stream
from grouping_zoo.data.captions import VocabularyNounExtractor
from grouping_zoo.data.evaluation_dataset import EvaluationDataset
from grouping_zoo.data.image_source import ImageSource
from grouping_zoo.data.image_text import ImageTextDataset, ImageTextStream, SampleMaker, collate
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.multi_view import MultiCropConfig, TwoViewConfig, multi_crop, two_views
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import open_captions, open_set
from grouping_zoo.data.tokenization import make_tokenize, train_tokenizer
from grouping_zoo.data.views import train_transform
from grouping_zoo.layers.superpixels import superpixels_by_size

POLICY = AugmentationConfig(policy="rand_augment")
MAKERS = {"superpixels": partial(superpixels_by_size, size=8, method="grid")}
INPUTS = InputTransform(image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, input_makers=MAKERS)


def encoded() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (9, 9, 9)).save(file, "png")
    return file.getvalue()


def sample_maker() -> SampleMaker:
    return SampleMaker(
        transform=train_transform(16, (0.5,) * 3, (0.5,) * 3, color_jitter=0.4, rand_augment=True, erasing=0.25),
        tokenize=make_tokenize(train_tokenizer(["a ball"], 300, 16)),
        noun_extractor=VocabularyNounExtractor(["ball"]),
    )


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "a.png").write_bytes(encoded())
    (path / "metadata.csv").write_text("file_name,caption\na.png,a ball\n")
    return path


def table(path: Path) -> str:
    path.mkdir()
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": encoded(), "path": None}], "text": ["a ball"]}
    datasets.Dataset.from_dict(rows, features).to_parquet(path / "train.parquet")
    return str(path)


def shards(path: Path) -> str:
    path.mkdir()
    with tarfile.open(path / "0.tar", "w") as tar:
        for name, content in (("0.png", encoded()), ("0.txt", b"a ball")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def voc(path: Path) -> str:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (path / name).mkdir(parents=True)
    (path / "JPEGImages/a.jpg").write_bytes(encoded())
    Image.new("L", (20, 20), 1).save(path / "SegmentationClass/a.png")
    (path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    return str(path)


def scenes(**options: Any) -> Any:
    return open_set("scenes", "train", length=4, image_size=24, max_objects=1, **options)


MADE: dict[str, Callable[[Path], Any]] = {
    "scenes": lambda path: scenes(),
    "digits": lambda path: open_set("digits", length=4, image_size=24),
    "objects": lambda path: open_set("objects", length=4, image_size=24),
    "photos": lambda path: open_set("photos", length=4, image_size=24),
    "folder": lambda path: open_set(f"folder:{folder(path)}", None),
    "hub": lambda path: open_set(f"hub:{table(path)}", "train"),
    "voc": lambda path: open_set(f"voc:{voc(path)}"),
    "two views": lambda path: two_views(scenes(), 16, INPUTS, TwoViewConfig(), 0),
    "multi-crop": lambda path: multi_crop(scenes(), 16, INPUTS, MultiCropConfig(num_local=1, local_size=8), 0),
    "augmented": lambda path: AugmentedDataset(
        scenes(), 16, INPUTS, AugmentationConfig(policy="rand_augment"), "class", 0
    ),
    "masks": lambda path: AugmentedDataset(scenes(), 16, INPUTS, AugmentationConfig(), "mask", 0),
    "evaluation": lambda path: EvaluationDataset(scenes(), [1, 2], INPUTS),
    "captioned scenes": lambda path: ImageTextDataset(open_captions("scenes", length=4, image_size=24), sample_maker()),
    "captioned folder": lambda path: ImageTextDataset(captioned_folder(folder(path)), sample_maker()),
    "captioned table": lambda path: ImageTextDataset(hub_images(table(path)), sample_maker()),
    "stream": lambda path: ImageTextStream(hub_images(table(path), streaming=True), sample_maker()),
    "shards": lambda path: ImageTextStream(shard_stream(shards(path)), sample_maker()),
}


def first(images: Any) -> list[Any]:
    """Everything that a data set gives first, as arrays."""
    if isinstance(images, IterableDataset):
        sample = next(iter(images))
    else:
        sample = images[0] if isinstance(images, EvaluationDataset) else images[SampleKey(1, 0)]
    values = list(sample.values()) if isinstance(sample, dict) else list(sample)
    return [[np.asarray(part) for part in value] if isinstance(value, list) else np.asarray(value) for value in values]


@pytest.mark.parametrize("name", list(MADE))
def test_a_pickled_data_set_gives_the_same(name: str, tmp_path: Path) -> None:
    images = MADE[name](tmp_path / "data")
    again = pickle.loads(pickle.dumps(images))
    for one, other in zip(first(images), first(again), strict=True):
        np.testing.assert_equal(one, other)


def test_no_data_set_of_the_package_is_left_out(tmp_path: Path) -> None:
    def classes(parent: type) -> set[type]:
        return {parent} | {found for child in parent.__subclasses__() for found in classes(child)}

    root = grouping_zoo.data.__name__ + "."
    named = {found.__name__ for found in classes(Dataset) if found.__module__.startswith(root)}
    covered = {
        "CocoInstances",
        "CocoPanoptic",
        "DensePoseParts",
    }  # as LabelMapImages: records of bytes beside the names
    covered |= {"ImageSource", "StoredImages", "MaskedImages", "AnnotatedImages"}  # bases
    for number, make in enumerate(MADE.values()):
        images = make(tmp_path / str(number))
        while images is not None:
            covered.add(type(images).__name__)
            inner = getattr(images, "source", None)
            covered |= {type(vars(images).get(part)).__name__ for part in ("scenes", "crops")}
            images = inner if isinstance(inner, ImageSource | Dataset) else None
    assert named <= covered, named - covered


@pytest.mark.slow
def test_a_spawned_worker_reads_captioned_scenes() -> None:
    images = MADE["captioned scenes"](Path())
    loader = DataLoader(
        images, batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context="spawn", timeout=120
    )
    batch = next(iter(loader))
    assert torch.equal(batch["pixel_values"][1], images[1]["pixel_values"])
