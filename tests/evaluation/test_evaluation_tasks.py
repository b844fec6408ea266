import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.utils.data import default_collate

from grouping_zoo.data.scenes import CLASSES, Scenes
from grouping_zoo.evaluation.boundaries import evaluate_boundaries
from grouping_zoo.evaluation.distributed import Processes, Unreadable
from grouping_zoo.evaluation.hierarchy import evaluate_hierarchy
from grouping_zoo.evaluation.recognition import knn_accuracy
from grouping_zoo.evaluation.scenes import evaluate_checkpoint_on_scenes
from grouping_zoo.evaluation.tasks import TASKS, fitting_tasks
from grouping_zoo.evaluation.tasks.data import EvaluationImages, EvaluationSet
from grouping_zoo.evaluation.tasks.grouping import Hierarchy
from grouping_zoo.evaluation.tasks.labelling import _BoundaryMeans, all_background, at_size
from grouping_zoo.evaluation.tasks.recognition import NearestNeighbours, TopAccuracy, matched_classes, present_classes
from grouping_zoo.evaluation.tasks.subject import (
    Subject,
    plain_timm_source,
    timm_subject,
    transformers_subject,
    untrained,
)
from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.hf.vision import publish
from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings
from judged import CPU, SCENES, ClassInCorner, Together, context_of, subject_of
from zoo import with_random_weights

TASK = {task.name: task for task in TASKS}


@pytest.fixture(scope="module")
def groupvit(checkpoint_folder: Path) -> Subject:
    return transformers_subject("tiny", *open_checkpoint(checkpoint_folder), CPU)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    settings = dict(embed_dim=32, depths=(1, 1, 1, 1), superpixel_method="grid")
    network = with_random_weights(timm.create_model("cast_nano", **settings).eval())
    folder = tmp_path_factory.mktemp("cast") / "cast"
    publish(network, folder, "# cast\n")
    return transformers_subject("cast", *open_checkpoint(folder), CPU)


def grey_folder(folder: Path, names: tuple[str, ...], each: int = 3) -> Path:
    """DIR/train and DIR/val, where the images of class number n have the grey 20 n."""
    for split in ("train", "val"):
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for copy in range(each):
                Image.new("RGB", (40, 36), (20 * number,) * 3).save(folder / split / name / f"{copy}.png")
    return folder


# --- which task fits ------------------------------------------------------------------------------------------------


def test_tasks_fit_by_what_a_model_can_do(groupvit: Subject, cast: Subject) -> None:
    everyone = ["knn", "linear", "dense-transfer", "retrieval", "grouping-only", "clustering"]
    found = {one.name: {task.name for task in fitting_tasks(one, SCENES)} for one in (groupvit, cast)}
    assert found["tiny"] == {*everyone, "zero-shot-cls", "zero-shot-seg", "alignment-only", "hierarchy"}
    assert found["cast"] == {*everyone, "hierarchy", "superpixels", "figure-ground"}
    plain = subject_of(timm.create_model("test_vit", num_classes=5, img_size=64).eval())
    assert {task.name for task in fitting_tasks(plain, SCENES)} == {*everyone, "top1"}
    fpn = subject_of(timm.create_model("semantic_fpn_nano", num_classes=9).eval())
    segments = ["dense-transfer", "retrieval", "grouping-only", "clustering"]
    assert {task.name for task in fitting_tasks(fpn, SCENES)} == {"segmentation", *segments}


def test_a_task_that_does_not_fit_names_those_that_do(cast: Subject, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"zero-shot-seg does not fit: cast is no model for it; choose from knn, linear"
    ):
        fitting_tasks(cast, SCENES, ["knn", "zero-shot-seg"])
    with pytest.raises(ValueError, match=r"expected some of top1, knn, .*, got 'nearest'"):
        fitting_tasks(cast, SCENES, ["nearest"])
    folder = grey_folder(tmp_path, ("a", "b"))
    with pytest.raises(ValueError, match=r"retrieval does not fit: the images of folder:.* have no mask"):
        fitting_tasks(cast, EvaluationSet(spec=f"folder:{folder}"), ["retrieval"])


# --- figures against those taken another way ------------------------------------------------------------------------


def test_zero_shot_figures_are_those_of_the_evaluator_on_scenes(groupvit: Subject) -> None:
    config = groupvit.model.config
    settings = segmenter_settings(config, background_threshold=0.01) | {"templates": prompt_templates(config)}
    context = context_of(groupvit, settings=settings)
    figures = TASK["zero-shot-seg"].run(context) | TASK["zero-shot-cls"].run(context)
    rand = TASK["hierarchy"].run(context)["rand_index"]
    expected = evaluate_checkpoint_on_scenes(groupvit.model, groupvit.processor, images=7, threshold=0.01)["figures"]
    assert expected.pop("rand_index") == pytest.approx(rand / 100, abs=1e-6)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_knn_and_hierarchy_equal_direct_computation(cast: Subject) -> None:
    def inputs(split: str, count: int, objects: int) -> tuple[list[Any], dict[str, Tensor]]:
        scenes = [Scenes(split, count, 64, 0, max_objects=objects)[index] for index in range(count)]  # type: ignore[arg-type]
        views = [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]
        tensors = [dict(x=cast.tensors.pixels(v), superpixels=cast.tensors.superpixels(v)) for v in views]
        return scenes, default_collate(tensors)

    @torch.no_grad()
    def features(split: str, count: int) -> tuple[Tensor, Tensor]:
        scenes, batch = inputs(split, count, 1)
        found = cast.network.forward_head(cast.network.forward_features(**batch), pre_logits=True)
        return found, torch.tensor([scene.classes[0] for scene in scenes])

    context = context_of(cast)
    expected = knn_accuracy(*features("train", 20), *features("validation", 7), num_classes=8)
    assert TASK["knn"].run(context)["accuracy"] == pytest.approx(expected)
    scenes, batch = inputs("validation", 7, 3)
    with torch.no_grad():
        grouping = cast.network.forward_grouping(**batch)
    levels = [grouping.labels(level, (64, 64)) for level in range(grouping.num_levels)]
    truth = torch.from_numpy(np.stack([scene.instances for scene in scenes])).long()
    hierarchy = evaluate_hierarchy(lambda maps: maps, [(levels, truth)], background=0)  # type: ignore[arg-type]
    found = TASK["hierarchy"].run(context)
    assert {name: found[name] for name in hierarchy if name != "images"} == pytest.approx(
        {name: value for name, value in hierarchy.items() if name != "images"}
    )


def test_heads_that_group_apart_count_one_by_one() -> None:
    class TwoHeads(nn.Module):
        num_classes = 0
        pretrained_cfg = ClassInCorner.pretrained_cfg

        def __init__(self, heads: list[int]) -> None:
            super().__init__()
            self.heads = heads

        def forward_grouping(self, x: Tensor) -> Grouping:
            halves = torch.stack([torch.arange(4) % 2, torch.arange(4) // 2])[self.heads]  # left and right, up and down
            assignment = nn.functional.one_hot(halves, 2).float().expand(len(x), -1, -1, -1)
            return Grouping(assignments=[assignment], tokens=[torch.zeros(len(x), 2, 1)], grid=(2, 2))

    def figures(*heads: int) -> dict[str, float]:
        return Hierarchy().run(context_of(subject_of(TwoHeads(list(heads)))))

    one, other, both = figures(0), figures(1), figures(0, 1)
    assert one["covering"] != other["covering"]
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in one})


def test_boundaries_image_by_image_are_those_of_the_set() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(3, (5, 12, 12), generator=generator)
    truths = torch.randint(3, (5, 12, 12), generator=generator)
    truths[1], truths[2, :6] = 255, 255
    names = ["a", "b", "c", "nowhere"]
    means = _BoundaryMeans(names, 255)
    means.update(predictions[:2], truths[:2])
    means.update(predictions[2:], truths[2:])
    expected = evaluate_boundaries(lambda x: x, [(predictions, truths)], names, ignore_index=255)
    assert means.means()["boundary_f"] == pytest.approx(expected["boundary_f"])


def test_everything_background_has_its_share_of_the_pixels(groupvit: Subject) -> None:
    scenes = Scenes("validation", 7, 32)
    share = 100 * np.mean([scenes[index].mask == 0 for index in range(7)])
    figures = all_background(context_of(groupvit), "centre")
    assert figures["pixel_accuracy"] == pytest.approx(share)
    assert figures["iou/background"] == pytest.approx(share, abs=1e-4)


def test_whole_images_are_judged_at_the_size_of_their_masks(groupvit: Subject, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.choice([0, 0, 8, 255], size=size).astype(np.uint8) for size in ((40, 50), (64, 33), (70, 70))]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(generator.integers(255, size=(*mask.shape, 3), dtype=np.uint8)).save(
            tmp_path / "JPEGImages" / f"{number}.jpg"
        )
        Image.fromarray(mask).save(tmp_path / "SegmentationClass" / f"{number}.png")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("0\n1\n2\n")
    config = groupvit.model.config
    settings = segmenter_settings(config) | {"templates": prompt_templates(config)}
    context = context_of(groupvit, EvaluationSet(spec=f"voc:{tmp_path}"), settings=settings)
    known = np.concatenate([mask[mask != 255] for mask in masks])
    floor = all_background(context, "whole")
    assert floor["pixel_accuracy"] == pytest.approx(100 * (known == 0).mean())
    settings["background_threshold"] = 1.0
    found = TASK["zero-shot-seg"].run(context)
    assert found["pixel_accuracy"] < 100
    assert {name for name in found if name.startswith("iou/")} == {name for name in floor if name.startswith("iou/")}
    assert context.pictures["zero-shot-seg_examples"]().width > 300


def test_labels_at_another_size_are_the_nearest() -> None:
    labels = torch.tensor([[[1, 2], [3, 4]]])
    assert at_size(labels, (2, 2)) is labels
    assert at_size(labels, (2, 4)).tolist() == [[[1, 1, 2, 2], [3, 3, 4, 4]]]


def test_present_classes_by_mask_and_by_label() -> None:
    masks = torch.tensor([[[0, 2], [255, 3]], [[0, 0], [0, 0]]])
    by_mask = present_classes({"mask": masks}, 3, background=0, ignore_index=255)
    assert by_mask.tolist() == [[False, True, True], [False, False, False]]
    middle = present_classes({"mask": masks}, 3, background=2, ignore_index=255)
    assert middle.tolist() == [[True, False, True], [True, False, False]]
    assert present_classes({"label": torch.tensor([1])}, 2, None, None).tolist() == [[False, True]]


# --- classes by name ------------------------------------------------------------------------------------------------


def test_a_head_is_matched_to_the_data_by_name(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    data = EvaluationSet(spec=f"folder:{grey_folder(tmp_path, names)}")
    for order in (names, ("dog", "cat", "Bee", "ant")):
        shown = tuple(sorted((name for name in order if name.casefold() in names), key=str.casefold))
        assert TopAccuracy().run(context_of(subject_of(ClassInCorner(order, shown)), data)) == {"top1": 100.0}
    assert TopAccuracy().run(context_of(subject_of(ClassInCorner(names, names[::-1])), data))["top1"] < 50


def test_classes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected classes that made knows \(ant, bee\), got also box, star"):
        matched_classes(subject_of(ClassInCorner(("ant", "bee"), ("ant",))), 2, ["ant", "box", "star"])
    unnamed = subject_of(SimpleNamespace(pretrained_cfg={}))
    assert matched_classes(unnamed, 2, ["ant", "bee"]) == [0, 1]
    with pytest.raises(ValueError, match="expected the 2 classes of made, which does not name them, got 3"):
        matched_classes(unnamed, 2, ["ant", "bee", "cat"])


def test_training_images_must_be_others_of_the_same_classes(tmp_path: Path) -> None:
    names = ("ant", "bee")
    folder = grey_folder(tmp_path, names)
    same = EvaluationSet(spec=f"folder:{folder}", split="train")
    with pytest.raises(ValueError, match="--train-split: expected another part than --split, got 'train' for both"):
        NearestNeighbours().run(context_of(subject_of(ClassInCorner(names, names)), same))
    (folder / "train" / "ant").rename(folder / "train" / "cat")
    other = EvaluationSet(spec=f"folder:{folder}")
    with pytest.raises(
        ValueError, match="--train-split: expected the 2 classes of --split=validation, got 2 or others"
    ):
        NearestNeighbours().run(context_of(subject_of(ClassInCorner(names, names)), other))


# --- images that cannot be read, and the cache ----------------------------------------------------------------------


def test_an_image_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    folder = grey_folder(tmp_path, names)
    corrupt = folder / "val" / "bee" / "1.png"
    corrupt.write_bytes(corrupt.read_bytes()[:40])
    data = EvaluationSet(spec=f"folder:{folder}")
    context = context_of(subject_of(ClassInCorner(names, names)), data)
    assert NearestNeighbours().run(context)["accuracy"] == 100
    features, labels = context.features("test")
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert features.argmax(dim=1).tolist() == labels.tolist()
    ((name, reason),) = context.skipped.items()
    assert "image 4" in name
    assert str(corrupt) in reason


def test_features_in_the_cache_are_taken_until_something_changes(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    folder = grey_folder(tmp_path / "images", names)
    network = ClassInCorner(names, names)
    network.weight = nn.Parameter(torch.zeros(2))

    def calls(**changes: Any) -> int:
        before = network.calls
        data = EvaluationSet(spec=f"folder:{folder}", **{k: changes.pop(k) for k in ("images",) if k in changes})
        context = context_of(subject_of(network), data, cache=tmp_path / "cache", **changes)
        assert TASK["linear"].run(context)["top1"] == 100
        return network.calls - before

    assert calls() == 2
    assert calls() == 0, "the second probe does not run the network"
    assert calls(size=(24, 24)) == 2
    assert calls(images=8) == 1, "the training images are the same"
    network.weight.data += 1
    assert calls() == 2
    Image.new("RGB", (40, 36)).save(folder / "val" / "ant" / "new.png")
    assert calls() == 2
    assert calls() == 0


def test_views_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "val" / "a").mkdir(parents=True)
    ramp = np.tile(np.arange(80, dtype=np.uint8)[None, :, None], (40, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "val" / "a" / "ramp.png")
    source = EvaluationSet(spec=f"folder:{tmp_path}").source("test", (20, 20), single=True)
    tensors = subject_of(ClassInCorner(("a",), ("a",))).tensors

    def view(**settings: Any) -> Tensor:
        sample = EvaluationImages(source, np.array([0]), (20, 20), tensors, **settings)[0]
        assert isinstance(sample, dict)
        return sample["pixel_values"][0, 0] * 255

    assert view(whole=True).shape == (40,)
    assert view().shape == (20,)
    torch.testing.assert_close(view(), view(whole=True)[10:30], atol=1.0, rtol=0)
    spread = view(crop_share=0.5)
    assert 18 < float(spread[-1] - spread[0]) < 21, "half the height of the image"


# --- several processes ----------------------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any] | Unreadable:
        return Unreadable(f"image {index}", "torn") if index % 5 == 3 else {"number": index}


@pytest.mark.parametrize("count", [1, 4, 9, 17])
def test_several_processes_yield_what_one_does(count: int) -> None:
    def results(processes: Processes) -> list[Any]:
        return list(processes.shared(Numbers(count), lambda batch: batch["number"].tolist(), batch_size=2))

    alone = results(Processes())
    flat = [number for numbers, _ in alone if numbers for number in numbers]
    assert flat == [number for number in range(count) if number % 5 != 3]
    assert [one.name for _, torn in alone for one in torn] == [f"image {n}" for n in range(count) if n % 5 == 3]
    for number in (2, 3):
        barrier, board = threading.Barrier(number), [None] * number
        found: dict[int, Any] = {}

        def work(rank: int, number=number, barrier=barrier, board=board, found=found) -> None:
            found[rank] = results(Together(rank, number, barrier, board))

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == dict.fromkeys(range(number), alone)


# --- subjects -------------------------------------------------------------------------------------------------------


def test_any_timm_folder_is_a_subject(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    save_for_hf(network, str(tmp_path / "vit"), {"label_names": ["x", "y", "z"]}, safe_serialization=True)
    source = plain_timm_source(str(tmp_path / "vit"))
    assert source == f"local-dir:{tmp_path / 'vit'}"
    subject = timm_subject("vit", source, CPU)
    assert subject.class_names == ["x", "y", "z"]
    assert subject.output_shape == (1, 3)
    image = torch.rand(1, 3, *subject.image_size)
    torch.testing.assert_close(subject.call(subject.features, {"pixel_values": image}), _pooled(network, image))
    fresh = untrained(subject, seed=1)
    assert fresh.output_shape == (1, 3)
    assert not torch.equal(fresh.network.head.weight, subject.network.head.weight)


def test_timm_opens_its_own_models_by_name_and_no_others() -> None:
    assert plain_timm_source("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert plain_timm_source("cast_nano_scenes") is None
    assert plain_timm_source("cast_nano") is None
    with pytest.raises(ValueError, match="model: 'resnet_nothing' is no folder"):
        plain_timm_source("resnet_nothing")
    with pytest.raises(ValueError, match=r"^net: expected a model of timm's with weights: .*Invalid pretrained tag"):
        timm_subject("net", "resnet18.nothing", CPU)


def test_the_untrained_model_is_the_same_each_time(cast: Subject) -> None:
    one, again = (untrained(cast, seed=3).network.state_dict() for _ in range(2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert any(not torch.equal(value, one[name]) for name, value in cast.network.state_dict().items())
    assert CLASSES[0] not in (cast.class_names or [])


@torch.no_grad()
def _pooled(network: Any, image: Tensor) -> Tensor:
    return network.forward_head(network.forward_features(image), pre_logits=True)
