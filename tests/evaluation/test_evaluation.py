import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from grouping_zoo import ZooGroupViTConfig, ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from grouping_zoo.data.scenes import CLASSES, Scenes
from grouping_zoo.data.tokenization import make_tokenize, train_tokenizer
from grouping_zoo.evaluation import scenes as scenes_evaluation
from grouping_zoo.evaluation.scenes import (
    all_background_on_scenes,
    evaluate_checkpoint_on_scenes,
    evaluate_on_scenes,
    scene_batches,
)
from grouping_zoo.evaluation.segmentation import (
    evaluate_segmentation,
    evaluate_zero_shot_scenes,
    mean_adjusted_rand_index,
    present_class_accuracy,
)
from grouping_zoo.inference.zero_shot import ZeroShotSegmenter, prompt_templates, segmenter_settings

NAMES = ["background", "cat", "dog", "cow"]


def random_labels(seed: int, classes: int, shape: tuple[int, ...] = (2, 9, 7)) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def pairs(*labelled: tuple[Tensor, Tensor]) -> tuple[dict[float, Tensor], Iterator[tuple[Tensor, Tensor]]]:
    """Images that stand for their own prediction, so that `predict` is a look-up."""
    predictions = {float(number): prediction for number, (prediction, _) in enumerate(labelled)}
    batches = ((torch.full((1,), float(number)), truth) for number, (_, truth) in enumerate(labelled))
    return predictions, batches


@pytest.fixture(scope="module")
def model_and_processor() -> tuple[ZooGroupViTModel, ZooGroupViTProcessor]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"a photo of a {name}" for name in CLASSES], 300, 16)
    config = ZooGroupViTConfig(
        architecture="groupvit_nano_patch4_64",
        model_args=dict(embed_dim=16, depths=[1, 0], num_heads=2, num_group_tokens=[4, 0], num_output_groups=[4, 0]),
        text_args=dict(vocab_size=300, context_length=16, width=16, depth=1, num_heads=2, eos_token_id=2),
        projection_dim=8,
        projection_hidden_dim=16,
        class_names=list(CLASSES),
        background_threshold=0.02,
    )
    processor = ZooGroupViTProcessor(ZooGroupViTImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    return ZooGroupViTModel(config).eval(), processor


# --- segmentation ---------------------------------------------------------------------------------------------------


def test_miou_is_that_of_a_plain_loop_over_the_whole_set() -> None:
    first, second = (random_labels(0, 4), random_labels(1, 4)), (random_labels(2, 3), random_labels(3, 2))
    predictions, batches = pairs(first, second)
    figures = evaluate_segmentation(lambda image: predictions[float(image)], batches, NAMES)
    predicted, truth = (torch.cat([a.flatten(), b.flatten()]) for a, b in zip(first, second, strict=True))
    expected = []
    for label, name in enumerate(NAMES):
        both = sum(int(p == label and t == label) for p, t in zip(predicted, truth, strict=True))
        either = sum(int(p == label or t == label) for p, t in zip(predicted, truth, strict=True))
        expected.append(100 * both / either)
        assert figures[f"iou/{name}"] == pytest.approx(expected[-1])
    assert figures["miou"] == pytest.approx(sum(expected) / len(expected))
    assert figures["pixel_accuracy"] == pytest.approx(100 * float((predicted == truth).float().mean()))


def test_classes_that_never_occur_do_not_count() -> None:
    truth = random_labels(0, 2)
    predictions, batches = pairs((truth, truth))
    figures = evaluate_segmentation(lambda image: predictions[float(image)], batches, NAMES)
    assert figures["miou"] == 100
    assert math.isnan(figures["iou/cow"])


def test_ignored_pixels_do_not_count() -> None:
    truth = random_labels(0, 4)
    wrong = (truth + 1) % 4
    half = truth.clone()
    half[:, 4:] = 255
    prediction = torch.where(half == 255, wrong, truth)
    predictions, batches = pairs((prediction, half))
    figures = evaluate_segmentation(lambda image: predictions[float(image)], batches, NAMES, ignore_index=255)
    assert figures["miou"] == 100
    assert figures["pixel_accuracy"] == 100


def test_nothing_to_evaluate_and_shapes_that_differ_are_errors() -> None:
    with pytest.raises(ValueError, match="expected at least one labelled pixel, got none"):
        evaluate_segmentation(lambda image: image, [], NAMES)
    with pytest.raises(ValueError, match=r"predict: expected labels of the truth's shape \(2, 9, 7\)"):
        evaluate_segmentation(lambda image: torch.zeros(2, 9, 8), [(torch.zeros(1), random_labels(0, 2))], NAMES)


def test_mean_adjusted_rand_index_is_the_mean_of_scikit_learns() -> None:
    groups, truth = random_labels(0, 5), random_labels(1, 3)
    expected = [adjusted_rand_score(t.flatten(), g.flatten()) for g, t in zip(groups, truth, strict=True)]
    assert mean_adjusted_rand_index(groups, truth) == pytest.approx(np.mean(expected))


def test_mean_adjusted_rand_index_ignores_which_number_a_group_has() -> None:
    truth = random_labels(0, 3)
    assert mean_adjusted_rand_index((truth + 1) % 3 + 10, truth) == pytest.approx(1)
    assert mean_adjusted_rand_index(torch.zeros_like(truth), truth) == pytest.approx(0)


def test_present_class_accuracy_counts_any_object_that_is_there() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.5, 0.3, 0.2]])
    present = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]).bool()
    assert present_class_accuracy(probabilities, present) == 50


# --- scenes ---------------------------------------------------------------------------------------------------------


def test_batches_hold_every_scene_once_and_normalised() -> None:
    scenes = Scenes("validation", 70, 16)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    batches = list(scene_batches(scenes, mean, std))
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    assert {len(values) for values in joined.values()} == {70}
    for index in (0, 31, 32, 69):
        scene = scenes[index]
        expected = (scene.image / 255 - mean) / std
        np.testing.assert_allclose(joined["images"][index].permute(1, 2, 0).numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(joined["mask"][index], scene.mask)
        np.testing.assert_array_equal(joined["instances"][index], scene.instances)
        assert joined["present"][index].nonzero().flatten().tolist() == sorted(scene.classes)
        assert set(joined["mask"][index].unique().tolist()) - {0} <= {1 + c for c in scene.classes}


def test_an_oracle_reaches_the_top_of_every_figure() -> None:
    batches = list(scene_batches(Scenes("validation", 40, 32), (0, 0, 0), (1, 1, 1)))
    by_images = {id(batch["images"]): batch for batch in batches}
    figures = evaluate_zero_shot_scenes(
        lambda images: by_images[id(images)]["present"].float(),
        lambda images: by_images[id(images)]["mask"],
        lambda images: by_images[id(images)]["instances"] + 7,
        batches,
        CLASSES,
    )
    assert figures["classification"] == 100
    assert figures["miou"] == 100
    assert figures["rand_index"] == pytest.approx(1)


def test_all_background_scores_the_share_of_the_background() -> None:
    figures = all_background_on_scenes(50, 0, "shapes", 32)
    scenes = Scenes("validation", 50, 32)
    share = 100 * np.mean([(scenes[index].mask == 0).mean() for index in range(50)])
    assert figures["pixel_accuracy"] == pytest.approx(share)
    assert figures["iou/background"] == pytest.approx(share)
    assert figures["miou"] == pytest.approx(share / (1 + len(CLASSES)))
    assert figures["rand_index"] == 0


def test_figures_do_not_depend_on_how_scenes_are_batched(
    model_and_processor: tuple[ZooGroupViTModel, ZooGroupViTProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = model_and_processor
    tokenize = make_tokenize(processor.tokenizer)
    whole = evaluate_on_scenes(model.model, tokenize, images=20, background_threshold=0.02)
    monkeypatch.setattr(scenes_evaluation, "BATCH_SIZE", 7)
    parts = evaluate_on_scenes(model.model, tokenize, images=20, background_threshold=0.02)
    assert parts == pytest.approx(whole, abs=0.01, nan_ok=True)


def test_a_checkpoint_is_judged_by_its_own_settings_and_they_are_recorded(
    model_and_processor: tuple[ZooGroupViTModel, ZooGroupViTProcessor],
) -> None:
    model, processor = model_and_processor
    result = evaluate_checkpoint_on_scenes(model, processor, images=12, seed=3)
    switches = result["switches"]
    assert (
        switches.items()
        >= {
            "images": 12,
            "seed": 3,
            "objects": "shapes",
            "image_size": (64, 64),
            "background_threshold": 0.02,
            "masks": "hard",
            "top_classes": 5,
            "window": None,
        }.items()
    )
    assert switches["mean"] == [0.485, 0.456, 0.406]
    assert switches["std"] == [0.229, 0.224, 0.225]
    assert switches["templates"] == ["a photo of a {}."]
    plain = evaluate_on_scenes(
        model.model, make_tokenize(processor.tokenizer), images=12, seed=3, background_threshold=0.02
    )
    assert result["figures"] == pytest.approx(plain, nan_ok=True)
    never, always = (
        evaluate_checkpoint_on_scenes(model, processor, images=12, threshold=threshold, masks="soft")
        for threshold in (0, 1)
    )
    assert (never["switches"]["background_threshold"], never["switches"]["masks"]) == (0, "soft")
    assert never["figures"]["iou/background"] == 0
    assert always["figures"]["iou/background"] > 50


def test_settings_are_the_checkpoints_own_unless_overridden() -> None:
    config = ZooGroupViTConfig(background_threshold=0.3)
    config.top_classes = 2
    settings = segmenter_settings(config)
    assert (settings["background_threshold"], settings["top_classes"], settings["masks"]) == (0.3, 2, "hard")
    settings = segmenter_settings(config, background_threshold=0, masks="soft", window=None)
    assert (settings["background_threshold"], settings["masks"], settings["window"]) == (0, "soft", None)
    names = {entry.name for entry in dataclasses.fields(ZeroShotSegmenter)}
    assert set(settings) == names - {"model", "text"}
    assert prompt_templates(config) == ["a photo of a {}."]
    config.prompt_templates = ["{} here"]
    assert prompt_templates(config) == ["{} here"]


def test_wrong_settings_are_refused(model_and_processor: tuple[ZooGroupViTModel, ZooGroupViTProcessor]) -> None:
    model, processor = model_and_processor
    tokenize = make_tokenize(processor.tokenizer)
    with pytest.raises(ValueError, match=r"class_names: expected one for each of ball, .*, got 2: cat, dog"):
        evaluate_on_scenes(model.model, tokenize, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="length: expected at least 1 image, got 0"):
        evaluate_on_scenes(model.model, tokenize, images=0)
    with pytest.raises(ValueError, match="background_threshold: expected 0 to 1, got 2"):
        evaluate_on_scenes(model.model, tokenize, background_threshold=2)
