"""CAST's transformers classes: superpixels beside the images, clusters per call, the segmentation head."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from grouping_zoo import CASTForImageClassification, CASTForSemanticSegmentation, CASTImageProcessor
from grouping_zoo import CASTModel as Model
from grouping_zoo.hf.vision import ZooVisionConfig, publish
from zoo import SMALL, with_random_weights

CASES = {"plain": "cast_small", "dense": "cast_seg_small"}
CLASSES = [CASTForImageClassification, CASTForSemanticSegmentation, Model]
every_case = pytest.mark.parametrize("case", CASES)
every_class = pytest.mark.parametrize("model_class", CLASSES)


images = SMALL["cast_small"].images


def network(case: str = "plain", **kwargs: Any) -> Any:
    return SMALL[CASES[case]].create(**kwargs)


def model_of(model_class: Any, case: str = "plain") -> Any:
    """A small model in evaluation mode, none of its weights zero."""
    return with_random_weights(model_class(ZooVisionConfig.of_network(network(case))).eval())


def squares(side: int, size: int = 64) -> Tensor:
    """(H, W) squares of `side` pixels, numbered row by row."""
    line = torch.arange(size) // side
    return line[:, None] * (size // side) + line


def astronaut(size: int = 96) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize((size, size))


# --- superpixels ----------------------------------------------------------------------------------------------------


@every_class
@torch.no_grad()
def test_superpixels_of_the_processor_are_those_of_the_network(model_class: Any, tmp_path: Path) -> None:
    publish(network(), tmp_path, "")
    processor, model = CASTImageProcessor.from_pretrained(tmp_path), model_of(model_class)
    inputs = processor([astronaut(), astronaut(80)], return_tensors="pt")
    assert inputs["superpixels"].shape == (2, 64, 64)
    assert inputs["superpixels"].dtype == torch.int64
    assert torch.equal(inputs["superpixels"], model.model.make_superpixels(inputs["pixel_values"]))
    assert torch.equal(model(**inputs)[0], model(inputs["pixel_values"])[0])
    other = model(inputs["pixel_values"], superpixels=squares(8).expand(2, -1, -1))
    assert not torch.allclose(other[0], model(**inputs)[0])


@pytest.mark.parametrize("method", ["seeds", "slic", "grid"])
def test_processor_makes_the_superpixels_that_are_asked_for(method: str) -> None:
    processor = CASTImageProcessor(superpixel_size=32)
    inputs = processor(astronaut(300), superpixel_method=method, return_tensors="pt")
    counts = []
    for size in (16, 56):
        found = processor(astronaut(300), superpixel_size=size, superpixel_method=method)["superpixels"]
        counts.append(len(found[0].unique()))
    assert inputs["superpixels"].shape == (1, 224, 224)
    assert 30 <= len(inputs["superpixels"].unique()) <= 60
    assert counts[0] > 120
    assert 8 <= counts[1] <= 25
    assert CASTImageProcessor.from_dict(processor.to_dict()).superpixel_size == 32


def test_processor_takes_arrays_and_shares_of_one_alike() -> None:
    processor = CASTImageProcessor(do_resize=False, do_center_crop=False)
    levels = np.array(astronaut(64))
    expected = processor(levels, return_tensors="pt")
    shares = torch.tensor(levels).permute(2, 0, 1).float() / 255
    for found in (
        processor(torch.tensor(levels).permute(2, 0, 1), return_tensors="pt"),
        processor(shares, do_rescale=False, return_tensors="pt"),
        processor(shares * 255, return_tensors="pt"),
    ):
        assert torch.equal(found["superpixels"], expected["superpixels"])
        assert torch.allclose(found["pixel_values"], expected["pixel_values"], atol=1e-5)


def test_images_of_different_sizes_stay_apart() -> None:
    processor = CASTImageProcessor(do_resize=False, do_center_crop=False)
    inputs = processor([astronaut(64), astronaut(80)])
    assert [tuple(x.shape) for x in inputs["superpixels"]] == [(64, 64), (80, 80)]
    assert [tuple(x.shape) for x in inputs["pixel_values"]] == [(3, 64, 64), (3, 80, 80)]


def test_superpixels_that_do_not_go_with_the_images_are_an_error() -> None:
    model = model_of(Model)
    with pytest.raises(ValueError, match="superpixels: expected shape"):
        model(images(), superpixels=squares(8)[None])
    with pytest.raises(ValueError, match=r"superpixels: expected an integer tensor.*convert with \.long\(\)"):
        model(images(), superpixels=squares(8).expand(2, -1, -1).float())


@every_class
@every_case
@torch.no_grad()
def test_batch_of_different_label_counts_gives_what_its_images_give_one_by_one(case: str, model_class: Any) -> None:
    model = model_of(model_class, case)
    superpixels = torch.stack([squares(16), squares(4), squares(64), squares(8) // 2])
    x = images(4)
    joint = model(x, superpixels=superpixels, output_attentions=True)
    for i in range(4):
        alone = model(x[i : i + 1], superpixels=superpixels[i : i + 1])
        for field in ("pooler_output", "logits"):
            if field in alone:
                assert torch.allclose(joint[field][i], alone[field][0], atol=1e-4), field
        for level in range(alone.grouping.num_levels):
            assert torch.equal(joint.grouping[i].labels(level), alone.grouping.labels(level))


# --- heads ----------------------------------------------------------------------------------------------------------


def test_a_fresh_classifier_starts_without_bias(tmp_path: Path) -> None:
    publish(network(num_classes=0), tmp_path, "")
    model = CASTForImageClassification.from_pretrained(tmp_path, num_labels=10)
    assert not model.model.head.bias.any()
    bound = (6 / (10 + 32)) ** 0.5
    assert 0.9 * bound < model.model.head.weight.abs().max() <= bound


@every_case
@torch.no_grad()
def test_segmentation_equals_convolutions_over_the_unpooled_levels(case: str) -> None:
    model = model_of(CASTForSemanticSegmentation, case)
    superpixels = torch.stack([squares(8), squares(4)])
    output = model(images(), superpixels=superpixels, output_hidden_states=True)
    head, grouping = model.segmentation_head, output.grouping
    pixels = []
    for level in range(4):
        labels = grouping.labels(level).flatten(1)[:, :, None].expand(-1, -1, 32)
        pixels.append(output.hidden_states[level].gather(1, labels).transpose(1, 2).unflatten(2, (64, 64)))
    fusion = model.model.fusion if case == "dense" else head.fusion
    features = torch.cat(pixels, dim=1)  # (B, 4 C, H, W)
    norm = fusion.norm
    features = F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    features = F.conv2d(features, fusion.fc.weight[:, :, None, None], fusion.fc.bias)
    hidden = F.conv2d(features, head.conv1.weight[..., None], head.conv1.bias).relu()
    expected = F.conv2d(hidden, head.conv2.weight[..., None], head.conv2.bias)
    assert torch.allclose(output.logits, expected, atol=1e-4)


@every_case
def test_segmentation_trains_every_parameter_that_matters(case: str) -> None:
    model = model_of(CASTForSemanticSegmentation, case).train()
    superpixels = torch.stack([squares(8), squares(4)])
    labels = (squares(16) % 5).expand(2, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss = model(images(), superpixels=superpixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # The class token's way ends with the blocks of the last stage: segmentation does not use it.
    assert all(name.startswith(("model.norm.", "model.head.")) for name in without), without


@every_case
def test_ragged_batches_train(case: str) -> None:
    model = model_of(CASTForSemanticSegmentation, case).train()
    labels = torch.full((2, 64, 64), 255)
    labels[:, :32] = 1
    output = model(images(), superpixels=torch.stack([squares(32), squares(2)]), labels=labels)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
