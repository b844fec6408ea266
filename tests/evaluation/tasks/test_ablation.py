import math
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

from evaluated import CPU, context_of, in_processes, model_of, voc_folder
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel, transformers_model
from grouping_zoo.evaluation.tasks import ablation, fitting_tasks
from grouping_zoo.evaluation.tasks.ablation import AlignmentOnly, GroupingOnly, SegmentSample, mean_affinities
from grouping_zoo.evaluation.tasks.segments import coarsest_segments
from grouping_zoo.evaluation.tasks.semantic_segmentation import text_segmenter
from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.checkpoint_folder import open_checkpoint

VOID = 255
NAMES = ["background", "cat", "cup", "dog"]
Batch = dict[str, Any]


class MadeContext:
    """Hands batches to a task as they are."""

    def __init__(self, test: list[Batch], train: list[Batch], model: Any, **data: Any) -> None:
        self.batches = {"test": test, "train": train}
        self.model = model
        self.data = SimpleNamespace(**dict(mask_names=NAMES, background=0, ignore_index=VOID, seed=0) | data)
        self.plots: dict[str, Callable[[], Image.Image]] = {}

    def results(
        self, function: Callable[[Batch], Any], description: str, split: str = "test", crop: str = "center"
    ) -> Iterator[Any]:
        for batch in self.batches[split]:
            yield function(batch)

    def example_images(self, batch: Batch) -> Tensor:
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


def grouping_model() -> Any:
    return SimpleNamespace(grouping_heads=1, groupings=lambda batch: [batch["grouping"]])


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
    monkeypatch.setattr(ablation, "MAX_PER_CLASS", 20)
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
    found = GroupingOnly().run(MadeContext(test, train, grouping_model()))  # type: ignore[arg-type]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)
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
        context: Any = MadeContext([class_groups(masks, shift)], train, grouping_model())
        found = GroupingOnly().run(context)
        assert {value for name, value in found.items() if "miou" in name} == {score}
        assert found["pixel_accuracy"] == score
        assert len([name for name in found if name.startswith("miou/")]) == 4
        assert set(context.plots) == {"grouping-only_examples", "grouping-only_feature_space"}


def test_an_absent_class_and_an_absent_background_do_not_count() -> None:
    masks = random_masks(1, 30, 6, 6)
    masks[masks == 3] = VOID
    train = [class_groups(masks)]
    found = GroupingOnly().run(MadeContext(train, train, grouping_model()))  # type: ignore[arg-type]
    assert found["miou"] == found["miou/25 neighbours"] == 100
    assert math.isnan(found["iou/dog"])
    all_count: Any = MadeContext(train, train, grouping_model(), background=None)
    assert "miou_without_background" not in GroupingOnly().run(all_count)
    only_background = class_groups(torch.zeros(2, 6, 6, dtype=torch.int64))
    found = GroupingOnly().run(MadeContext([only_background], train, grouping_model()))  # type: ignore[arg-type]
    assert found["miou"] == 100
    assert math.isnan(found["miou_without_background"])


def test_nothing_labelled_is_a_clear_error() -> None:
    void = [class_groups(torch.full((2, 6, 6), VOID))]
    some = [class_groups(random_masks(1, 9, 6, 6))]
    with pytest.raises(ValueError, match="training set: expected at least one labelled segment"):
        GroupingOnly().run(MadeContext(some, void, grouping_model()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluation set: expected at least one labelled pixel"):
        GroupingOnly().run(MadeContext(void, some, grouping_model()))  # type: ignore[arg-type]


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


def alignment(
    monkeypatch: pytest.MonkeyPatch, scores: Tensor, masks: Tensor, threshold: float = 0.5, **data: Any
) -> dict[str, float]:
    """Of a model whose affinities are the images' values."""
    segmenter = SimpleNamespace(scores=lambda pixels: pixels, background_threshold=threshold)
    monkeypatch.setattr(ablation, "text_segmenter", lambda context: segmenter)
    model = SimpleNamespace(call=lambda function, batch: function(batch["pixel_values"]))
    batches = [{"pixel_values": scores, "mask": masks}]
    return AlignmentOnly().run(MadeContext(batches, [], model, **data))  # type: ignore[arg-type]


def class_scores(masks: Tensor, shift: int = 0) -> Tensor:
    """0.9 for the true class, or another one by a shift, 0.1 for all others and on the background: (B, 3, H, W)."""
    own = (masks.clamp(1, 3) - 1 + shift) % 3
    scores = 0.1 + 0.8 * F.one_hot(own, 3).permute(0, 3, 1, 2)
    return scores.masked_fill((masks == 0)[:, None], 0.1)


def test_perfect_alignment_gives_100_and_the_wrong_classes_0(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks(0, 6, 8, 8)
    masks[0], masks[0, 2, 3] = 1, 2
    masks[1] = VOID
    found = alignment(monkeypatch, class_scores(masks), masks)
    assert {found[name] for name in ("miou", "miou_without_background", "segment_accuracy", "pixel_accuracy")} == {
        100.0
    }
    found = alignment(monkeypatch, class_scores(masks, 1), masks)
    assert found["miou_without_background"] == found["segment_accuracy"] == 0
    assert found["iou/background"] == 100
    assert found["miou"] == 25
    without = masks.where(masks != 0, 1) - (masks != VOID).long()  # three classes, no background
    context = dict(mask_names=NAMES[1:], background=None)
    for shift, score in ((0, 100.0), (2, 0.0)):
        found = alignment(monkeypatch, class_scores(without + 1, shift), without, 0.0, **context)
        assert found["miou"] == found["segment_accuracy"] == score
        assert "miou_without_background" not in found


def test_the_class_of_a_segment_is_that_of_its_mean_and_background_below_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = torch.tensor([[[0, 0, 1, 1, 1, 2]]])
    cat, cup = [0.2, 0.0, 0.1, 0.7, 0.1, 0.4], [0.0, 0.3, 0.25, 0.25, 0.25, 0.1]
    scores = torch.tensor([[[cat], [cup], [[0.0] * 6]]])
    # Means of cat and cup: background 0.1, 0.15; cat 0.3, 0.25, though two of three pixels like the cup; cup 0.4, 0.1.
    found = alignment(monkeypatch, scores, masks, threshold=0.25)
    assert found["segment_accuracy"] == 50
    assert found["iou/background"] == 100
    assert found["iou/cat"] == pytest.approx(75)
    assert found["iou/cup"] == 0
    assert math.isnan(found["iou/dog"])
    assert found["miou_without_background"] == pytest.approx((75 + 0) / 2)
    low = alignment(monkeypatch, scores, masks, threshold=0.05)
    assert low["iou/background"] == 0, "called a cup"
    assert low["miou_without_background"] == found["miou_without_background"]
    high = alignment(monkeypatch, scores, masks, threshold=0.9)
    assert high["iou/background"] == pytest.approx(40), "all but the image's best segment, which is never background"
    assert high["segment_accuracy"] == 50


def test_images_of_background_alone_have_no_segment_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.zeros(1, 2, 2, dtype=torch.int64)
    found = alignment(monkeypatch, torch.rand(1, 3, 2, 2), masks)
    assert math.isnan(found["segment_accuracy"])
    assert math.isnan(found["miou_without_background"])


# --- with a model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groupvit(checkpoint_folder: Path) -> EvaluatedModel:
    return transformers_model("tiny", *open_checkpoint(checkpoint_folder), CPU)


@pytest.mark.parametrize("kind", ["scenes", "voc"])
@torch.no_grad()
def test_alignment_of_a_model_is_by_its_own_affinities(kind: str, groupvit: EvaluatedModel, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).choice([0, 3, 8, VOID], size=(3, 70, 70)).astype(np.uint8)
    sizes = ((40, 50), (64, 33), (70, 70))
    folder = voc_folder(tmp_path, [mask[:h, :w] for mask, (h, w) in zip(masks, sizes, strict=True)])
    spec = "scenes" if kind == "scenes" else f"voc:{folder}"
    context = context_of(groupvit, EvaluationSet(spec=spec, images=3))
    found = AlignmentOnly().run(context)
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
    assert found["segment_accuracy"] == pytest.approx(100 * np.mean(hits))
    assert min(context.plots["alignment-only_examples"]().size) > 100


@torch.no_grad()
def test_final_segments_are_the_last_stages(groupvit: EvaluatedModel) -> None:
    batch = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    segments = coarsest_segments(groupvit, batch)
    tokens, _, grouping = groupvit.network.forward_grouped(batch["pixel_values"])
    torch.testing.assert_close(segments.features, tokens)
    assert torch.equal(segments.labels, grouping.probabilities(-1, (32, 32)).argmax(dim=1))


def test_a_model_without_groups_is_evaluated_by_clusters() -> None:
    network: Any = timm.create_model("test_vit", num_classes=5, img_size=64).eval()
    model = model_of(network, "vit")
    data = EvaluationSet(images=4, train_images=8)
    (task,) = fitting_tasks(model, data, ["grouping-only"])
    context = context_of(model, data)
    assert 0 <= task.run(context)["miou"] <= 100
    assert min(context.plots["grouping-only_feature_space"]().size) > 400
    with pytest.raises(ValueError, match=r"alignment-only does not fit: vit is no model for it; choose from"):
        fitting_tasks(model, data, ["alignment-only"])


def test_two_processes_give_the_metrics_of_one(groupvit: EvaluatedModel) -> None:
    def run(ranks: Ranks) -> list[dict[str, float]]:
        # Two full batches and an odd rest.
        context = context_of(groupvit, EvaluationSet(images=71, train_images=20), ranks=ranks)
        return [{n: v for n, v in task.run(context).items() if v == v} for task in (GroupingOnly(), AlignmentOnly())]

    assert in_processes(2, run) == [run(Ranks())] * 2


def test_sampled_segments_are_so_many_each_with_its_class_and_the_same_chance() -> None:
    sample = SegmentSample(300, seed=1)
    for start in range(0, 3000, 100):
        numbers = torch.arange(start, start + 100)
        sample.update(numbers[:, None].float(), numbers)
    assert torch.equal(sample.features[:, 0].long(), sample.classes)
    assert len(set(sample.classes.tolist())) == 300
    thirds = torch.bincount(sample.classes // 1000, minlength=3)
    assert thirds.min() > 70
    few = SegmentSample(300, seed=1)
    few.update(torch.ones(2, 3), torch.tensor([1, 2]))
    few.update(torch.ones(0, 3), torch.tensor([], dtype=torch.int64))
    assert sorted(few.classes.tolist()) == [1, 2]
