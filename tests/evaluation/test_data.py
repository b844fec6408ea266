from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from evaluated import ClassInCorner, grey_folder, model_of
from grouping_zoo.data.multi_view import ImageTensors
from grouping_zoo.evaluation.data import EvaluationImages, EvaluationSet


def test_training_images_must_be_others_of_the_same_classes(tmp_path: Path) -> None:
    folder = grey_folder(tmp_path, ("ant", "bee"))
    same = EvaluationSet(spec=f"folder:{folder}", split="train")
    with pytest.raises(ValueError, match="train_split: expected another split than the evaluated one, got 'train'"):
        same.source("train", (32, 32), single=True)
    (folder / "train" / "ant").rename(folder / "train" / "cat")
    other = EvaluationSet(spec=f"folder:{folder}")
    for _ in range(2):
        with pytest.raises(ValueError, match="train_split: expected the 2 classes of validation, got 2 or others in"):
            other.source("train", (32, 32), single=True)


def test_settings_are_the_arguments() -> None:
    data = EvaluationSet(spec="digits", images=3)
    assert data.class_names[0] == "zero"
    assert EvaluationSet(**data.settings) == data
    assert (data.settings["spec"], data.settings["images"], len(data.settings)) == ("digits", 3, 6)


def test_views_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "val" / "a").mkdir(parents=True)
    ramp = np.tile(np.arange(80, dtype=np.uint8)[None, :, None], (40, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "val" / "a" / "ramp.png")
    source = EvaluationSet(spec=f"folder:{tmp_path}").source("test", (20, 20), single=True)
    tensors = model_of(ClassInCorner(("a",), ("a",))).tensors

    def view(**settings: Any) -> Tensor:
        sample = EvaluationImages(source, np.array([0]), (20, 20), tensors, **settings)[0]
        assert isinstance(sample, dict)
        return sample["pixel_values"][0, 0] * 255

    assert view(whole=True).shape == (40,)
    assert view().shape == (20,)
    torch.testing.assert_close(view(), view(whole=True)[10:30], atol=1.0, rtol=0)
    spread = view(crop_fraction=0.5)
    assert 18 < float(spread[-1] - spread[0]) < 21, "half the height of the image"


def test_a_sample_is_the_centre_with_its_masks() -> None:
    tensors = ImageTensors(mean=(0.0,) * 3, std=(1.0,) * 3, superpixel_method="grid", superpixel_size=8)
    source = EvaluationSet(images=2).source("test", (32, 32), single=True)
    sample, found = EvaluationImages(source, np.arange(2), (32, 32), tensors)[1], source[1]
    assert isinstance(sample, dict)
    assert torch.equal((sample["pixel_values"] * 255).round().byte(), pil_to_tensor(found.image))
    assert torch.equal(sample["mask"], torch.from_numpy(found.mask).long())
    assert torch.equal(sample["instances"], torch.from_numpy(found.instances).long())
    assert sample["label"] == found.label
    assert sample["superpixels"].unique().tolist() == list(range(16))
    larger = EvaluationSet(images=2).source("test", (64, 64), single=False)
    wide = EvaluationImages(larger, np.arange(2), (32, 32), tensors)[1]
    assert isinstance(wide, dict)
    assert wide["pixel_values"].shape == (3, 32, 32)
    assert wide["mask"].shape == (32, 32)
    assert "label" not in wide
