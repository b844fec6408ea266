"""The task "supervised" from recipe to checkpoint: classes of images and of pixels, views, teachers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

from grouping_zoo.data.augmented import AugmentationConfig, AugmentedDataset
from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets import open_set
from grouping_zoo.data.sets.scenes import CLASSES
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.optimization import build_scheduler
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.engine.supervised import SupervisedRecipe, SupervisedTask, open_teacher
from short_runs import TINY_RESNET, short
from toy_task import log_lines

RECIPES = {"class": "vt_resnet_nano_scenes", "mask": "vt_fpn_nano_scenes"}
PUBLISHED = [
    "vt_resnet18_in1k",
    "vt_resnet50_in1k",
    "vt_resnet50_in1k_advanced",
    "vt_fpn_r50_coco_stuff",
    "vt_fpn_r50_lip",
]
ONE = InputTransform(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
Trained = Callable[[str], Path]
every_target = pytest.mark.parametrize("target", ["class", "mask"])


def task_of(recipe: SupervisedRecipe) -> SupervisedTask:
    torch.manual_seed(0)
    return recipe.build()


# --- views ----------------------------------------------------------------------------------------------------------


class Gradients(ImageSource):
    """Images whose red says the mask's value of each pixel, times 10."""

    class_names = ("a", "b")

    def __init__(self, with_mask: bool = True) -> None:
        self.with_mask = with_mask

    def __len__(self) -> int:
        return 3

    def _read(self, epoch: int, index: int) -> LabelledImage:
        mask = np.add.outer(np.arange(40) // 10, np.arange(60) // 10).astype(np.uint8) + 1 + index
        image = np.stack([mask * 10, mask * 0, mask * 0], axis=2)
        return LabelledImage(Image.fromarray(image), None, mask if self.with_mask else None)


def views(config: AugmentationConfig, target: Any = "mask", source: ImageSource | None = None, seed: int = 0) -> Any:
    return AugmentedDataset(source or Gradients(), 32, ONE, config, target, seed)


def test_a_mask_moves_with_its_image() -> None:
    found = views(AugmentationConfig(crop_scale=(0.1, 0.6)))
    mirrored = 0
    for epoch in range(20):
        sample = found[SampleKey(epoch, 1)]
        assert sample["mask"].dtype == torch.int64
        assert sample["mask"].shape == (32, 32)
        shown = sample["pixel_values"][0] * 25.5
        # Interpolation blurs the image's edges, and the edges alone; at a corner two steps meet.
        assert ((shown - sample["mask"]).abs() < 0.2).float().mean() > 0.7
        assert ((shown - sample["mask"]).abs() < 2).all()
        mirrored += bool(sample["mask"][:, 0].float().mean() > sample["mask"][:, -1].float().mean())
    assert 3 <= mirrored <= 17


@every_target
def test_a_view_depends_on_seed_epoch_and_index_alone(target: Any) -> None:
    config = AugmentationConfig(color_jitter=(0.4, 0.4, 0.4, 0.1), policy="rand_augment" if target == "class" else None)
    source = open_set("scenes", "train", length=6, image_size=40, max_objects=1)
    found = views(config, target, source)
    torch.manual_seed(3)
    first = found[SampleKey(1, 2)]
    state = torch.get_rng_state()
    again = views(config, target, source)[SampleKey(1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert first.keys() == {"pixel_values", "label" if target == "class" else "mask"}
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    for other in (found[SampleKey(2, 2)], views(config, target, source, seed=1)[SampleKey(1, 2)]):
        assert not torch.equal(other["pixel_values"], first["pixel_values"])


@pytest.mark.parametrize("policy", ["auto_augment", "rand_augment"])
def test_policies_change_views_of_classes_and_are_refused_for_masks(policy: Any) -> None:
    source = open_set("scenes", "train", length=6, image_size=40, max_objects=1)
    plain, changed = (
        views(AugmentationConfig(crop_scale=(1.0, 1.0), flip=0.0, policy=name), "class", source)
        for name in (None, policy)
    )
    keys = [SampleKey(epoch, 0) for epoch in range(6)]
    different = [not torch.equal(plain[key]["pixel_values"], changed[key]["pixel_values"]) for key in keys]
    assert any(different)
    assert all(plain[key]["label"] == changed[key]["label"] for key in keys)
    with pytest.raises(ValueError, match=r"augmentation\.policy: expected null with target=mask"):
        views(AugmentationConfig(policy=policy))


def test_images_without_the_target_are_an_error() -> None:
    with pytest.raises(ValueError, match="target: expected images with a mask, but image 2 of the source has none"):
        views(AugmentationConfig(), "mask", Gradients(with_mask=False))[SampleKey(0, 2)]
    with pytest.raises(ValueError, match="target: expected images with a class, but image 0 of the source has none"):
        views(AugmentationConfig(), "class")[SampleKey(0, 0)]


# --- whole runs -----------------------------------------------------------------------------------------------------


@every_target
def test_a_checkpoint_names_its_classes_and_its_class_of_transformers(target: str, trained: Trained) -> None:
    folder = trained(target) / "checkpoint"
    auto = AutoModelForImageClassification if target == "class" else AutoModelForSemanticSegmentation
    names = list(auto.from_pretrained(folder).config.id2label.values())
    assert names == (list(CLASSES) if target == "class" else ["background", *CLASSES])
    assert f"{auto.__name__}.from_pretrained" in (folder / "README.md").read_text()


@every_target
def test_losses_and_metrics_are_logged(target: str, trained: Trained) -> None:
    first, *_, last = log_lines(trained(target))
    names = ("top1/top1", "top1/top5") if target == "class" else ("segmentation/miou", "segmentation/pixel_accuracy")
    assert {"loss", "accuracy" if target == "class" else "pixel_accuracy", "grad_norm"} <= first.keys()
    assert all(0 <= last[f"validation/{name}"] <= 100 for name in names)
    card = (trained(target) / "checkpoint" / "README.md").read_text()
    assert f"| {names[0].replace('/', ' ')} | {last[f'validation/{names[0]}']:.4g} |" in card


@every_target
def test_metrics_are_those_of_the_held_out_images_one_by_one(target: str, tmp_path: Path) -> None:
    task = task_of(short(target, tmp_path))
    model = task.network.eval()
    source = open_set("scenes", length=12, image_size=64, max_objects=task.recipe.data.max_objects)
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    hits = total = 0
    with torch.no_grad():
        for index in range(12):
            found = source[index]
            x = (torch.from_numpy(np.array(found.image)).permute(2, 0, 1) / 255 - mean) / std
            logits = model(x[None])
            truth: Tensor = torch.tensor(found.label or 0)
            if target == "mask":
                logits = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
                truth = torch.from_numpy(found.mask).long()
            hits += int((logits.argmax(1)[0] == truth).sum())
            total += truth.numel()
        metrics = task.evaluate(model)
    name = "top1/top1" if target == "class" else "segmentation/pixel_accuracy"
    assert metrics[name] == pytest.approx(100 * hits / total, abs=0.5)
    assert task_of(short(target, tmp_path, "evaluation.tasks=[]")).evaluate(model) == {}


def test_training_learns_what_the_images_show(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, color in enumerate(("red", "blue", "green")):
            for index in range(4):
                file = tmp_path / "images" / split / color / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30 + number), color).save(file)
    recipe = short(
        "class",
        tmp_path / "run",
        "model.architecture=resnet18",
        f"model.model_args={json.dumps(TINY_RESNET)}",
        "data.source=folder",
        f"data.path={tmp_path / 'images'}",
        "data.image_size=32",
        "evaluation.split=val",
        "augmentation.color_jitter=[0,0,0,0]",
        "optimizer.learning_rate=0.02",
        "run.steps=25",
    )
    assert train(recipe, progress_bar=False) == {"top1/top1": 100}
    network = timm.create_model(f"local-dir:{tmp_path / 'run' / 'checkpoint'}", pretrained=True)
    assert network.pretrained_cfg["label_names"] == ["blue", "green", "red"]
    (tmp_path / "images" / "val" / "extra").mkdir()
    with pytest.raises(ValueError, match=r"data: expected classes that resnet18 knows .*, got also extra"):
        task_of(recipe).evaluate(network)


def test_masks_of_a_data_set_on_disk_train_and_evaluate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder, suffix in ((f"{split}_images", "jpg"), (f"{split}_segmentations", "png")):
            (tmp_path / folder).mkdir()
            for index in range(4):
                shape = (40, 50, 3) if suffix == "jpg" else (40, 50)
                array = rng.integers(0, 20, shape).astype(np.uint8)
                Image.fromarray(array).save(tmp_path / folder / f"{index}.{suffix}")
    recipe = short("mask", tmp_path / "run", "data.source=lip", f"data.path={tmp_path}")
    assert 0 <= train(recipe, progress_bar=False)["segmentation/miou"] <= 100
    network = timm.create_model(f"local-dir:{tmp_path / 'run' / 'checkpoint'}", pretrained=True)
    assert network.num_classes == 20


# --- teachers -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_folder_teaches(trained: Trained, tmp_path: Path) -> None:
    teacher = trained("class") / "checkpoint"
    settings = [f"objective.teacher={teacher}", "objective.distillation_weight=0.8"]
    train(short("class", tmp_path, *settings), progress_bar=False)
    assert {"cross_entropy", "distillation"} <= log_lines(tmp_path)[0].keys()
    with pytest.raises(ValueError, match="teacher: expected the 10 classes of the network, got 8"):
        task_of(short("class", tmp_path, *settings, "data.objects=digits"))


def test_teachers_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"objective.teacher: expected a model with weights, got test_vit\.nothing"):
        open_teacher("test_vit.nothing")
    with pytest.raises(ValueError, match="'nobody' is no folder"):
        open_teacher("nobody")


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RECIPES.values(), *PUBLISHED])
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, SupervisedRecipe)
    assert recipe.run.output_dir == f"runs/{name}"
    assert recipe.evaluation.tasks == ["segmentation" if recipe.target == "mask" else "top1"]


def learning_rate(recipe: Any, step: int) -> float:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.learning_rate)
    build_scheduler(optimizer, recipe.schedule, recipe.run.steps).step_update(step)
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", ["vt_resnet18_in1k", "vt_resnet50_in1k"])
def test_default_recipe_is_the_published_one(name: str) -> None:
    recipe, epoch = load_recipe(name), 1_281_167 / 256
    assert recipe.optimizer.name == "sgd"
    assert recipe.optimizer.weight_decay == 4e-5
    assert recipe.run.steps == pytest.approx(90 * epoch, abs=1)
    for number, expected in ((0, 0.1), (29, 0.1), (31, 0.01), (59, 0.01), (61, 0.001), (89, 0.001)):
        assert learning_rate(recipe, round(number * epoch)) == pytest.approx(expected)


def test_advanced_recipe_is_the_published_one() -> None:
    recipe, epoch = load_recipe("vt_resnet50_in1k_advanced"), 1_281_167 / 2048
    assert recipe.run.steps == pytest.approx(400 * epoch, abs=1)
    assert recipe.run.ema_decay == 0.99985
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, round(2.5 * epoch)) == pytest.approx(0.085, rel=0.01)
    first, second = (learning_rate(recipe, round(number * epoch)) for number in (100, 101))
    assert second / first == pytest.approx(0.9875, rel=1e-4)
    assert learning_rate(recipe, recipe.schedule.warmup_steps) == pytest.approx(0.16, rel=0.07)
    assert recipe.objective.distillation_weight == 0.8
    assert recipe.model.model_args == {"drop_path_rate": 0.1, "drop_rate": 0.2}


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        ("class", ["data.max_objects=3"], "data.max_objects: expected 1 with target=class"),
        ("mask", ["data.source=photos"], "data.source: expected images with masks with target=mask, got photos"),
        ("mask", ["objective.label_smoothing=0.1"], "objective: expected nothing with target=mask"),
        ("class", ["augmentation.crop_scale=[0.5,0.1]"], "augmentation.crop_scale"),
        ("class", ["augmentation.color_jitter=[0,0,0,0.9]"], "augmentation.color_jitter"),
        ("class", ["evaluation.images=0"], "evaluation.images: expected null or at least 1, got 0"),
        ("class", ["evaluation.tasks=[top2]"], "evaluation.tasks: expected some of top1, knn, .* got 'top2'"),
        ("mask", ["evaluation.metrics=[miou]"], "evaluation.metrics: expected some of boundary, got 'miou'"),
        (
            "class",
            ["objective.distillation_weight=0.5"],
            "objective.teacher: expected null where .* only there, got None",
        ),
        ("class", ["augmentation.policy=trivial"], "augmentation.policy"),
    ],
)
def test_wrong_settings_are_named(target: str, overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        short(target, tmp_path, *overrides)


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        ("class", ["model.architecture=vt_fpn_nano", "model.model_args={}"], "expected a classifier with target=class"),
        ("mask", ["model.architecture=resnet18", "model.model_args={}"], "expected one that predicts pixels, such as"),
        ("mask", ["augmentation.policy=auto_augment"], "augmentation.policy: expected null with target=mask"),
        ("class", ["evaluation.split=test"], "split: expected one of .*got 'test'"),
        ("mask", ["evaluation.tasks=[top1]"], "task: top1 does not fit: vt_fpn_nano is no model for it; choose from"),
    ],
)
def test_settings_that_only_building_can_check_are_named_too(
    target: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        short(target, tmp_path, *overrides).build()
