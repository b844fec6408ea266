import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from grouping_zoo.evaluation.distributed import Processes
from grouping_zoo.evaluation.tasks import dissection, fitting_tasks
from grouping_zoo.evaluation.tasks.context import Context
from grouping_zoo.evaluation.tasks.data import EvaluationSet
from grouping_zoo.evaluation.tasks.dissection import (
    AlignmentOnly,
    DrawnSegments,
    GroupingOnly,
    final_segments,
    mean_affinities,
)
from grouping_zoo.evaluation.tasks.labelling import text_segmenter
from grouping_zoo.evaluation.tasks.subject import Subject, transformers_subject
from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings
from grouping_zoo.viz.feature_space import feature_space_plot, neighbour_map
from grouping_zoo.viz.palette import palette
from judged import Together

VOID = 255
NAMES = ["background", "cat", "cup", "dog"]
Batch = dict[str, Any]


class MadeContext:
    """Hands batches to a task as they are."""

    def __init__(self, test: list[Batch], train: list[Batch], subject: Any, **data: Any) -> None:
        self.batches = {"test": test, "train": train}
        self.subject = subject
        self.data = SimpleNamespace(**dict(mask_names=NAMES, background=0, ignore_index=VOID, seed=0) | data)
        self.pictures: dict[str, Callable[[], Image.Image]] = {}

    def results(
        self, function: Callable[[Batch], Any], description: str, part: str = "test", view: str = "centre"
    ) -> Iterator[Any]:
        for batch in self.batches[part]:
            yield function(batch)

    def shown(self, batch: Batch) -> Tensor:
        return torch.zeros(1, 3, *batch["mask"].shape[1:], dtype=torch.uint8)


def mean_iou(prediction: np.ndarray, truth: np.ndarray, void: tuple[int, ...], classes: list[int]) -> float:
    """From the definition, over the classes that occur."""
    counted = ~np.isin(truth, void)
    prediction, truth = prediction[counted], truth[counted]
    ious = []
    for label in classes:
        union = ((prediction == label) | (truth == label)).sum()
        if union:
            ious.append(100 * ((prediction == label) & (truth == label)).sum() / union)
    return float(np.mean(ious))


def random_masks(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([0, 0, 1, 2, 3, VOID])[torch.randint(6, shape, generator=generator)]


# --- visual grouping alone ------------------------------------------------------------------------------------------


def grouping_subject() -> Any:
    return SimpleNamespace(heads=1, groupings=lambda batch: [batch["grouping"]])


def random_grouping_batch(seed: int, images: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def assignment(tokens: int, groups: int) -> Tensor:
        return (3 * torch.randn(images, 1, tokens, groups, generator=generator)).softmax(dim=-1)

    tokens = [torch.randn(images, count, 6, generator=generator) for count in (7, 5)]
    grouping = Grouping(assignments=[assignment(12, 7), assignment(7, 5)], tokens=tokens, grid=(3, 4))
    return {
        "grouping": grouping,
        "mask": random_masks(seed, images, 9, 12),
        "pixel_values": torch.zeros(images, 3, 9, 12),
    }


def final_owner(grouping: Grouping, image: int) -> np.ndarray:
    """Eq. 34, 49."""
    first, second = (one[image, 0] for one in grouping.assignments)
    maps = (first @ second).T.view(1, 5, 3, 4)
    return F.interpolate(maps, size=(9, 12), mode="bilinear", align_corners=False)[0].argmax(dim=0).numpy()


def test_grouping_alone_is_that_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dissection, "MAX_PER_CLASS", 20)
    train, test = [random_grouping_batch(n, 9) for n in range(4)], [random_grouping_batch(n, 2) for n in (8, 9)]
    bank, shares, kept = [], [], [0] * 4
    for batch in train:
        for image, mask in enumerate(batch["mask"].numpy()):
            owner = final_owner(batch["grouping"], image)
            for segment in range(5):
                pixels = [label for label in mask[owner == segment].tolist() if label != VOID]
                if not pixels:
                    continue
                share = [pixels.count(label) / len(pixels) for label in range(4)]
                majority = int(np.argmax(share))
                kept[majority] += 1
                if kept[majority] <= 20:
                    bank.append(batch["grouping"].tokens[-1][image, segment].numpy())
                    shares.append(share)
    assert max(kept) > 20 > min(kept)
    expected = {}
    truth = torch.cat([batch["mask"] for batch in test]).numpy()
    for k in (5, 10, 15, 25):
        nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(np.stack(bank))
        found = []
        for batch in test:
            for image in range(2):
                owner = final_owner(batch["grouping"], image)
                rows = nearest.kneighbors(batch["grouping"].tokens[-1][image].numpy())[1]
                labels = [int(np.argmax(np.mean([shares[row] for row in own], axis=0))) for own in rows]
                found.append(np.array(labels)[owner])
        prediction = np.stack(found)
        expected[f"miou/{k} neighbours"] = mean_iou(prediction, truth, (VOID,), [0, 1, 2, 3])
        if k == 10:
            expected["miou"] = expected["miou/10 neighbours"]
            expected["miou_without_background"] = mean_iou(prediction, truth, (VOID, 0), [1, 2, 3])
    figures = GroupingOnly().run(MadeContext(test, train, grouping_subject()))  # type: ignore[arg-type]
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.values())) > 3


def class_groups(masks: Tensor, shift: int = 0) -> Batch:
    """Each true label is a group, whose feature tells it, or another label by a shift."""
    labels = masks.masked_fill(masks == VOID, 0)
    assignment = F.one_hot(labels.flatten(1), 4).float()[:, None]  # (B, 1, H * W, 4)
    tokens = torch.eye(4).roll(shift, dims=0).expand(len(masks), -1, -1)
    height, width = masks.shape[1:]
    grouping = Grouping(assignments=[assignment], tokens=[tokens], grid=(height, width))
    return {"grouping": grouping, "mask": masks, "pixel_values": torch.zeros(len(masks), 3, height, width)}


def test_perfect_groups_give_100_and_their_names_mixed_up_0() -> None:
    train = [class_groups(random_masks(number, 13, 6, 6)) for number in range(3)]
    masks = random_masks(7, 5, 6, 6)
    masks[0], masks[0, 2, 3] = 1, 2  # one class but for one pixel
    masks[1] = VOID
    for shift, score in ((0, 100.0), (1, 0.0)):
        context: Any = MadeContext([class_groups(masks, shift)], train, grouping_subject())
        figures = GroupingOnly().run(context)
        assert {value for name, value in figures.items() if "miou" in name} == {score}
        assert figures["pixel_accuracy"] == score
        assert len([name for name in figures if name.startswith("miou/")]) == 4
        assert set(context.pictures) == {"grouping-only_examples", "grouping-only_feature_space"}


def test_an_absent_class_and_an_absent_background_do_not_count() -> None:
    masks = random_masks(1, 30, 6, 6)
    masks[masks == 3] = VOID
    train = [class_groups(masks)]
    figures = GroupingOnly().run(MadeContext(train, train, grouping_subject()))  # type: ignore[arg-type]
    assert figures["miou"] == figures["miou/25 neighbours"] == 100
    assert math.isnan(figures["iou/dog"])
    all_count: Any = MadeContext(train, train, grouping_subject(), background=None)
    assert "miou_without_background" not in GroupingOnly().run(all_count)
    only_background = class_groups(torch.zeros(2, 6, 6, dtype=torch.int64))
    figures = GroupingOnly().run(MadeContext([only_background], train, grouping_subject()))  # type: ignore[arg-type]
    assert figures["miou"] == 100
    assert math.isnan(figures["miou_without_background"])


def test_nothing_labelled_is_a_clear_error() -> None:
    void = [class_groups(torch.full((2, 6, 6), VOID))]
    some = [class_groups(random_masks(1, 9, 6, 6))]
    with pytest.raises(ValueError, match="training set: expected at least one labelled segment"):
        GroupingOnly().run(MadeContext(some, void, grouping_subject()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluation set: expected at least one labelled pixel"):
        GroupingOnly().run(MadeContext(void, some, grouping_subject()))  # type: ignore[arg-type]


# --- alignment with text alone --------------------------------------------------------------------------------------


def test_mean_affinities_are_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.rand(3, 2, 3, 4, generator=generator), random_masks(3, 3, 6, 12)
    truth[1][truth[1] == 3] = 0
    truth[1, 5, 11] = 3  # a segment of one pixel
    truth[2] = VOID
    means, present = mean_affinities(scores, truth, 4, VOID)
    for image in range(3):
        for label in range(4):
            pixels = [
                scores[image, :, y // 2, x // 3] for y in range(6) for x in range(12) if truth[image, y, x] == label
            ]
            assert bool(present[image, label]) == bool(pixels)
            expected = torch.stack(pixels).mean(dim=0) if pixels else torch.zeros(2)
            torch.testing.assert_close(means[image, label], expected)
    torch.testing.assert_close(means[1, 3], scores[1, :, 2, 3], rtol=0, atol=0)
    known = truth[:, ::3, ::4].masked_fill(truth[:, ::3, ::4] == VOID, 0)
    means, present = mean_affinities(scores, known, 4, None)  # masks that are smaller than what the model sees
    assert present[2].tolist() == [True, False, False, False]
    torch.testing.assert_close(means[2, 0], scores[2][:, [[0], [2]], [0, 2, 3]].mean(dim=(1, 2)))


def alignment_figures(
    monkeypatch: pytest.MonkeyPatch, scores: Tensor, masks: Tensor, threshold: float = 0.5, **data: Any
) -> dict[str, float]:
    """Of a model whose affinities are the images' values."""
    segmenter = SimpleNamespace(scores=lambda pixels: pixels, background_threshold=threshold)
    monkeypatch.setattr(dissection, "text_segmenter", lambda context: segmenter)
    subject = SimpleNamespace(call=lambda function, batch: function(batch["pixel_values"]))
    batches = [{"pixel_values": scores, "mask": masks}]
    return AlignmentOnly().run(MadeContext(batches, [], subject, **data))  # type: ignore[arg-type]


def class_scores(masks: Tensor, shift: int = 0) -> Tensor:
    """0.9 for the true class, or another one by a shift, 0.1 for all others and on the background: (B, 3, H, W)."""
    own = (masks.clamp(1, 3) - 1 + shift) % 3
    scores = 0.1 + 0.8 * F.one_hot(own, 3).permute(0, 3, 1, 2)
    return scores.masked_fill((masks == 0)[:, None], 0.1)


def test_perfect_alignment_gives_100_and_the_wrong_classes_0(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks(0, 6, 8, 8)
    masks[0], masks[0, 2, 3] = 1, 2
    masks[1] = VOID
    figures = alignment_figures(monkeypatch, class_scores(masks), masks)
    assert {figures[name] for name in ("miou", "miou_without_background", "segment_accuracy", "pixel_accuracy")} == {
        100.0
    }
    figures = alignment_figures(monkeypatch, class_scores(masks, 1), masks)
    assert figures["miou_without_background"] == figures["segment_accuracy"] == 0
    assert figures["iou/background"] == 100
    assert figures["miou"] == 25
    without = masks.where(masks != 0, 1) - (masks != VOID).long()  # three classes, no background
    context = dict(mask_names=NAMES[1:], background=None)
    for shift, score in ((0, 100.0), (2, 0.0)):
        figures = alignment_figures(monkeypatch, class_scores(without + 1, shift), without, 0.0, **context)
        assert figures["miou"] == figures["segment_accuracy"] == score
        assert "miou_without_background" not in figures


def test_the_class_of_a_segment_is_that_of_its_mean_and_background_below_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = torch.tensor([[[0, 0, 1, 1, 1, 2]]])
    cat, cup = [0.2, 0.0, 0.1, 0.7, 0.1, 0.4], [0.0, 0.3, 0.25, 0.25, 0.25, 0.1]
    scores = torch.tensor([[[cat], [cup], [[0.0] * 6]]])
    # Means of cat and cup: background 0.1, 0.15; cat 0.3, 0.25, though two of three pixels like the cup; cup 0.4, 0.1.
    figures = alignment_figures(monkeypatch, scores, masks, threshold=0.25)
    assert figures["segment_accuracy"] == 50
    assert figures["iou/background"] == 100
    assert figures["iou/cat"] == pytest.approx(75)
    assert figures["iou/cup"] == 0
    assert math.isnan(figures["iou/dog"])
    assert figures["miou_without_background"] == pytest.approx((75 + 0) / 2)
    low = alignment_figures(monkeypatch, scores, masks, threshold=0.05)
    assert low["iou/background"] == 0, "called a cup"
    assert low["miou_without_background"] == figures["miou_without_background"]
    high = alignment_figures(monkeypatch, scores, masks, threshold=0.9)
    assert high["iou/background"] == pytest.approx(40), "all but the image's best segment, which is never background"
    assert high["segment_accuracy"] == 50


def test_images_of_background_alone_have_no_segment_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.zeros(1, 2, 2, dtype=torch.int64)
    figures = alignment_figures(monkeypatch, torch.rand(1, 3, 2, 2), masks)
    assert math.isnan(figures["segment_accuracy"])
    assert math.isnan(figures["miou_without_background"])


# --- with a model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groupvit(checkpoint_folder: Path) -> Subject:
    return transformers_subject("tiny", *open_checkpoint(checkpoint_folder), torch.device("cpu"))


def context_of(subject: Subject, data: EvaluationSet, processes: Processes | None = None) -> Context:
    config = subject.model.config
    return Context(
        subject=subject,
        data=data,
        processes=processes or Processes(),
        size=subject.image_size,
        settings=segmenter_settings(config, background_threshold=0.01) | {"templates": prompt_templates(config)},
    )


def voc_folder(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for number, size in enumerate(((40, 50), (64, 33), (70, 70))):
        image = generator.integers(255, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{number}.jpg")
        mask = generator.choice([0, 3, 8, 255], size=size).astype(np.uint8)
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{number}.png")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("0\n1\n2\n")
    return folder


@pytest.mark.parametrize("kind", ["scenes", "voc"])
@torch.no_grad()
def test_alignment_of_a_model_is_by_its_own_affinities(kind: str, groupvit: Subject, tmp_path: Path) -> None:
    spec = "scenes" if kind == "scenes" else f"voc:{voc_folder(tmp_path)}"
    context = context_of(groupvit, EvaluationSet(spec=spec, images=3))
    figures = AlignmentOnly().run(context)
    segmenter = text_segmenter(context)
    hits = []
    images = context.images("test", "whole")
    for sample in (images[index] for index in range(len(images))):
        assert isinstance(sample, dict)
        scores, mask = segmenter.scores(sample["pixel_values"][None]), sample["mask"]
        scores = F.interpolate(scores, size=mask.shape, mode="nearest-exact")[0]
        for label in set(mask.unique().tolist()) - {0, VOID}:
            hits.append(int(scores[:, mask == label].mean(dim=1).argmax()) == label - 1)
    assert len(hits) > 3
    assert figures["segment_accuracy"] == pytest.approx(100 * np.mean(hits))
    assert min(context.pictures["alignment-only_examples"]().size) > 100


@torch.no_grad()
def test_final_segments_are_the_last_stages(groupvit: Subject) -> None:
    batch = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    segments = final_segments(groupvit, batch)
    tokens, _, grouping = groupvit.network.forward_grouped(batch["pixel_values"])
    torch.testing.assert_close(segments.features, tokens)
    assert torch.equal(segments.labels, grouping.probabilities(-1, (32, 32)).argmax(dim=1))


def test_a_model_without_groups_is_judged_by_clusters() -> None:
    network: Any = timm.create_model("test_vit", num_classes=5, img_size=64).eval()
    subject = Subject(name="vit", model=network, network=network, processor=None, device=torch.device("cpu"))
    data = EvaluationSet(images=4, train_images=8)
    (task,) = fitting_tasks(subject, data, ["grouping-only"])
    context = Context(subject=subject, data=data, processes=Processes(), size=subject.image_size)
    assert 0 <= task.run(context)["miou"] <= 100
    assert min(context.pictures["grouping-only_feature_space"]().size) > 400
    with pytest.raises(ValueError, match=r"alignment-only does not fit: vit is no model for it; choose from"):
        fitting_tasks(subject, data, ["alignment-only"])


def test_two_processes_give_the_figures_of_one(groupvit: Subject) -> None:
    # Two full batches and an odd rest.
    def figures(processes: Processes) -> list[dict[str, float]]:
        context = context_of(groupvit, EvaluationSet(images=71, train_images=20), processes)
        return [{n: v for n, v in task.run(context).items() if v == v} for task in (GroupingOnly(), AlignmentOnly())]

    alone = figures(Processes())
    barrier, board = threading.Barrier(2), [None, None]
    found: dict[int, Any] = {}

    def work(rank: int) -> None:
        found[rank] = figures(Together(rank, 2, barrier, board))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: alone, 1: alone}


# --- the space of the features --------------------------------------------------------------------------------------


def clouds(each: int) -> tuple[np.ndarray, np.ndarray]:
    """Three directions, any length, and which of them."""
    generator = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), each)
    features = np.eye(8)[classes] + 0.05 * generator.standard_normal((len(classes), 8))
    return features * generator.uniform(0.1, 9, (len(classes), 1)), classes


def test_features_of_one_direction_lie_together() -> None:
    features, classes = clouds(20)
    places = neighbour_map(features)
    nearest = NearestNeighbors(n_neighbors=2).fit(places).kneighbors(places)[1][:, 1]
    assert (classes[nearest] == classes).mean() > 0.95
    np.testing.assert_array_equal(places, neighbour_map(features))


def test_the_picture_shows_each_class_in_its_colour() -> None:
    features, classes = clouds(12)
    picture = np.asarray(feature_space_plot(features, np.array([0, 2, 3])[classes], NAMES))
    shown = [bool((picture[:720] == color).all(axis=2).sum() > 100) for color in palette(4)]
    assert shown == [True, False, True, True]


def test_few_and_equal_features() -> None:
    assert np.isfinite(neighbour_map(np.ones((6, 3)))).all()
    assert np.isfinite(neighbour_map(np.zeros((5, 3)))).all()
    assert neighbour_map(np.arange(4.0)[:, None]).shape == (4, 2)
    assert min(feature_space_plot(np.ones((4, 2)), np.zeros(4, np.int64), ["a"]).size) > 400
    with pytest.raises(ValueError, match="features: expected at least 4 to place, got 3"):
        neighbour_map(np.ones((3, 2)))


def test_drawn_segments_are_so_many_each_with_its_class_and_the_same_chance() -> None:
    drawn = DrawnSegments(300, seed=1)
    for start in range(0, 3000, 100):
        numbers = torch.arange(start, start + 100)
        drawn.add(numbers[:, None].float(), numbers)
    assert torch.equal(drawn.features[:, 0].long(), drawn.classes)
    assert len(set(drawn.classes.tolist())) == 300
    thirds = torch.bincount(drawn.classes // 1000, minlength=3)
    assert thirds.min() > 70
    few = DrawnSegments(300, seed=1)
    few.add(torch.ones(2, 3), torch.tensor([1, 2]))
    few.add(torch.ones(0, 3), torch.tensor([], dtype=torch.int64))
    assert sorted(few.classes.tolist()) == [1, 2]
