"""Augmented views of masks: what is mirrored exchanges left and right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grouping_zoo.data.augmented import AugmentationConfig, AugmentedDataset
from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import ImageSet, data_sets, open_set
from grouping_zoo.data.sets.class_names import DENSEPOSE_PARTS, LOOK_INTO_PERSON, left_right_pairs
from grouping_zoo.data.sets.layouts import LAYOUTS

PLAIN = InputTransform(mean=(0.0,) * 3, std=(1.0,) * 3)


class OneMask(ImageSource):
    """An image whose mask has each value once, and 255."""

    def __len__(self) -> int:
        return 1

    def _read(self, epoch: int, index: int) -> LabelledImage:
        mask = np.full((8, 8), 255, dtype=np.uint8)
        mask.flat[:32] = np.arange(32)
        return LabelledImage(Image.fromarray(np.repeat(mask[..., None], 3, axis=2)), mask=mask)


def mask_of(pairs: tuple[tuple[int, int], ...], flip: float) -> torch.Tensor:
    source = ImageSet(OneMask(), "one", tuple("abc"), mirrored_classes=pairs)
    config = AugmentationConfig(crop_scale=(1.0, 1.0), flip=flip)
    return AugmentedDataset(source, 8, PLAIN, config, "mask", seed=0)[SampleKey(0, 0)]["mask"]


def test_mirrored_masks_exchange_pairs_and_nothing_else() -> None:
    plain, mirrored = mask_of((), 0.0), mask_of(((2, 5), (14, 15)), 1.0)
    exchange = {2: 5, 5: 2, 14: 15, 15: 14}
    expected = torch.tensor([[exchange.get(int(value), int(value)) for value in row] for row in plain.flip(1)])
    assert torch.equal(mirrored, expected)
    assert mirrored.dtype == torch.int64
    assert torch.equal(mask_of(((2, 5),), 0.0), plain)
    assert torch.equal(mask_of((), 1.0), plain.flip(1))


def test_every_class_that_names_a_side_has_its_partner() -> None:
    for names in (LOOK_INTO_PERSON, DENSEPOSE_PARTS):
        pairs = left_right_pairs(names)
        sided = {number for number, name in enumerate(names) if "left" in name or "right" in name}
        assert sorted(number for pair in pairs for number in pair) == sorted(sided)
        for left, right in pairs:
            assert names[left] == names[right].replace("right", "left")
    assert {LOOK_INTO_PERSON[number] for number in left_right_pairs(LOOK_INTO_PERSON)[0]} == {"left-arm", "right-arm"}
    assert left_right_pairs(("background", "leftover")) == ()


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layouts_declare_the_pairs_that_their_names_tell(name: str) -> None:
    assert LAYOUTS[name].mirrored_classes == left_right_pairs(LAYOUTS[name].class_names)
    assert bool(LAYOUTS[name].mirrored_classes) == (name in ("lip", "parts"))


def test_opened_sets_carry_the_pairs(tmp_path: Path) -> None:
    (tmp_path / "val_images").mkdir()
    (tmp_path / "val_segmentations").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val_images/a.jpg")
    Image.new("L", (8, 8), 14).save(tmp_path / "val_segmentations/a.png")
    source = open_set(f"lip:{tmp_path}")
    config = AugmentationConfig(crop_scale=(1.0, 1.0), flip=1.0)
    sample = AugmentedDataset(source, 8, PLAIN, config, "mask", seed=0)[SampleKey(0, 0)]
    assert set(sample["mask"].unique().tolist()) == {LOOK_INTO_PERSON.index("right-arm")}
    assert "lip" in {entry.name for entry in data_sets(("mask",))}
