import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from command import Run, mistake
from grouping_zoo.data.sampling import EndlessSampler
from grouping_zoo.evaluation.dense_transfer import (
    DENSE_TRANSFERS,
    DenseHead,
    TransferSettings,
    level_features,
    pixel_cross_entropy,
    train_head,
)
from grouping_zoo.evaluation.tasks import fitting_tasks
from grouping_zoo.evaluation.tasks.data import EvaluationSet
from grouping_zoo.evaluation.tasks.transfer import DenseTransfer
from grouping_zoo.hf.pgt import PGTForSemanticSegmentation
from judged import SCENES, ClassInCorner, Together, context_of, subject_of
from zoo import with_random_weights

TINY_CAST = dict(embed_dim=32, depths=(1, 1, 1, 1), superpixel_method="grid", num_classes=0)
TINY_PGT = dict(embed_dim=24, depths=(1, 1), group_dims=(8, 8), num_heads=2, num_groups=6, feature_dim=16)
VOID, GREY = 255, 60
SEPARABLE = TransferSettings(head="linear", steps=60, batch_size=4, optimizer="adamw", learning_rate=0.1)


class GreyOfPixels(nn.Module):
    """A frozen network whose dense features tell which of four greys a pixel has."""

    pretrained_cfg = ClassInCorner.pretrained_cfg

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 0
        self.feature_info = [dict(num_chs=4)]

    def forward_intermediates(self, x: Tensor, **_: Any) -> list[Tensor]:
        number = (x.mean(dim=1) * 255 / GREY).round().long()  # (B, H, W)
        return [nn.functional.one_hot(number.clamp(0, 3), 4).movedim(3, 1).float()]


def grey_masks(folder: Path, train_shift: int = 0) -> EvaluationSet:
    """A tree in VOC's layout: squares whose grey tells their class, some of them void; in training by another rule."""
    generator = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split, numbers in (("train", range(6)), ("val", range(6, 11))):
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in numbers))
        for number in numbers:
            classes = np.kron(generator.permutation(np.arange(16) % 4).reshape(4, 4), np.ones((8, 8))).astype(np.uint8)
            image = Image.fromarray(classes * GREY).convert("RGB")
            image.save(folder / "JPEGImages" / f"{number}.jpg", quality=100)
            mask = (classes + (train_shift if split == "train" else 0)) % 4
            mask[:8, :8] = VOID
            Image.fromarray(mask).save(folder / "SegmentationClass" / f"{number}.png")
    return EvaluationSet(spec=f"voc:{folder}")


def tiny_cast() -> Any:
    torch.manual_seed(0)
    return with_random_weights(timm.create_model("cast_nano", **TINY_CAST).eval())


# --- training on masks ----------------------------------------------------------------------------------------------


def test_a_linear_head_takes_the_steps_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    features = 3 + 2 * torch.randn(5, 3, 2, 2, generator=generator)
    masks = torch.randint(4, (5, 2, 2), generator=generator)
    masks[1, 0], masks[3] = VOID, VOID
    settings = TransferSettings(head="linear", steps=7, batch_size=2, learning_rate=0.5, weight_decay=0.01)
    head = train_head(features, masks, 4, settings, ignore_index=VOID, seed=3)

    pixels = features.double().movedim(1, 3)  # (5, 2, 2, 3)
    flat = pixels.flatten(0, 2)
    pixels = (pixels - flat.mean(dim=0)) / flat.std(dim=0, correction=0)
    start = DenseHead(torch.zeros(3), torch.ones(3), 4, seed=3).layers[0]
    weight, bias = (value.detach().double().view(4, -1) for value in (start.weight, start.bias))
    table = torch.cat([weight, bias], dim=1)
    velocity = torch.zeros_like(table)
    batches = iter(EndlessSampler(5, 2, 3))
    for step in range(7):
        gradient, count = torch.zeros_like(table), 0
        for _, index in next(batches):
            for row in range(2):
                for column in range(2):
                    if masks[index, row, column] == VOID:
                        continue
                    x = torch.cat([pixels[index, row, column], torch.ones(1).double()])
                    error = (table @ x).softmax(0) - torch.eye(4)[masks[index, row, column]]
                    gradient += error[:, None] * x
                    count += 1
        velocity = 0.9 * velocity + gradient / max(count, 1) + 0.01 * table
        table = table - 0.5 * (1 - step / 7) ** 0.9 * velocity
    torch.testing.assert_close(head.layers[0].weight.double().view(4, 3), table[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.layers[0].bias.double(), table[:, 3], rtol=1e-4, atol=1e-5)


def test_two_layers_are_two_convolutions_of_standardized_features() -> None:
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.0])
    head = DenseHead(mean, deviation, 3, hidden=True, seed=1)
    with_random_weights(head.layers)
    features = torch.tensor([[3.0, -2.0], [0.0, -2.0]])
    first, second = head.layers[0], head.layers[2]
    for feature in features:
        x = torch.stack([(feature[0] - 1) / 2, torch.zeros(())])
        hidden = (first.weight[:, :, 0, 0] @ x + first.bias).clamp(min=0)
        expected = second.weight[:, :, 0, 0] @ hidden + second.bias
        torch.testing.assert_close(head(feature[None, :, None, None]).flatten(), expected)


def test_levels_lie_side_by_side_at_the_size_of_the_largest() -> None:
    network = timm.create_model("resnet10t", num_classes=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        third, last = network.forward_intermediates(images, indices=2, intermediates_only=True)  # 4 and 2 cells a side
    found = level_features(network, images, 2)
    torch.testing.assert_close(found[:, : third.shape[1]], third)
    # A corner has one coarse cell; the next cell lies a quarter of the way to the other one.
    torch.testing.assert_close(found[:, third.shape[1] :, 0, 0], last[:, :, 0, 0])
    torch.testing.assert_close(found[:, third.shape[1] :, 0, 1], 0.75 * last[:, :, 0, 0] + 0.25 * last[:, :, 0, 1])
    everything = level_features(network, images, 99)
    assert everything.shape[1] == sum(level["num_chs"] for level in network.feature_info)


def test_pixel_cross_entropy_is_the_mean_over_pixels_that_count() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[[0, VOID], [2, 1]], [[VOID, VOID], [VOID, 1]]])
    losses = []
    for image in range(2):
        for row in range(2):
            for column in range(2):
                if (label := int(masks[image, row, column])) != VOID:
                    scores = logits[image, :, row, column].tolist()
                    losses.append(math.log(sum(map(math.exp, scores))) - scores[label])
    assert float(pixel_cross_entropy(logits, masks, VOID)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(pixel_cross_entropy(logits, torch.full_like(masks, VOID), VOID)) == 0
    constant = torch.randn(1, 3, 1, 1).expand(1, 3, 2, 2)
    fine = pixel_cross_entropy(constant, torch.ones(1, 6, 4).long())
    torch.testing.assert_close(fine, pixel_cross_entropy(constant, torch.ones(1, 2, 2).long()))


def test_a_head_is_repeatable_and_leaves_the_global_random_state() -> None:
    features, masks = torch.randn(4, 3, 2, 2), torch.randint(2, (4, 4, 4))
    before = torch.get_rng_state()
    heads = [train_head(features, masks, 2, SEPARABLE, seed=seed).state_dict() for seed in (0, 0, 1)]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)
    assert not torch.equal(heads[0]["layers.0.weight"], heads[2]["layers.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, r"expected \(N, D, h, w\) and \(N, H, W\)"),
        ({"features": torch.zeros(0, 3, 4, 4), "masks": torch.zeros(0, 4, 4).long()}, "at least one image"),
        ({"masks": torch.full((2, 4, 4), VOID)}, "is the training split labelled"),
        ({"masks": torch.full((2, 4, 4), 2)}, "expected classes from 0 to 1, got 2 to 2"),
        ({"settings": DENSE_TRANSFERS["cast-voc"]}, "got 'own', which needs the network"),
    ],
)
def test_what_a_head_cannot_learn_from_is_an_error(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(features=torch.zeros(2, 3, 4, 4), masks=torch.zeros(2, 4, 4).long(), num_classes=2)
    with pytest.raises(ValueError, match=message):
        train_head(**(given | dict(settings=SEPARABLE, ignore_index=VOID) | change))


@pytest.mark.parametrize(
    "setting",
    [{"head": "deep"}, {"steps": 0}, {"optimizer": "adam"}, {"learning_rate": 0.0}, {"batch_size": 0}, {"levels": 0}],
)
def test_settings_out_of_range_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        TransferSettings(**(dict(head="linear", steps=1, learning_rate=0.1) | setting))


def test_training_that_diverges_is_told() -> None:
    settings = TransferSettings(head="two-layer", steps=8, learning_rate=1e38)
    with pytest.raises(FloatingPointError, match="diverged with 1e"):
        train_head(torch.randn(4, 3, 2, 2), torch.arange(4).view(4, 1, 1) % 2, 2, settings)


# --- the task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "two-layer"])
def test_features_that_tell_classes_apart_give_100_and_wrong_masks_0(
    head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TransferSettings(head=head, steps=60, batch_size=4, optimizer="adamw", learning_rate=0.1)
    monkeypatch.setitem(DENSE_TRANSFERS, "scenes", settings)
    subject = subject_of(GreyOfPixels())
    right = DenseTransfer().run(context_of(subject, grey_masks(tmp_path / "right")))
    assert right["miou"] == right["pixel_accuracy"] == right["boundary_f"] == 100
    wrong = DenseTransfer().run(context_of(subject, grey_masks(tmp_path / "wrong", train_shift=1)))
    assert wrong["miou"] == wrong["pixel_accuracy"] == 0


def test_several_processes_train_and_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TransferSettings(head="two-layer", steps=5, batch_size=4, learning_rate=0.1)
    monkeypatch.setitem(DENSE_TRANSFERS, "scenes", settings)
    monkeypatch.setattr("grouping_zoo.evaluation.tasks.context.BATCH_SIZE", 2)  # an odd number of batches
    data = grey_masks(tmp_path)
    alone = DenseTransfer().run(context_of(subject_of(GreyOfPixels()), data))
    assert 0 < alone["miou"] < 100
    barrier, board, found = threading.Barrier(2), [None] * 2, {}

    def work(rank: int) -> None:
        context = context_of(subject_of(GreyOfPixels()), data, processes=Together(rank, 2, barrier, board))
        found[rank] = DenseTransfer().run(context)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank in range(2):
        assert found[rank] == pytest.approx(alone, rel=0, abs=0, nan_ok=True)


def test_frozen_networks_of_all_kinds_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DENSE_TRANSFERS, "scenes", TransferSettings(head="linear", steps=10, learning_rate=0.3))
    for network in (timm.create_model("test_vit", num_classes=0, img_size=64), tiny_cast()):
        subject = subject_of(network.eval())
        assert "dense-transfer" in {task.name for task in fitting_tasks(subject, SCENES)}
        before = {key: value.clone() for key, value in network.state_dict().items()}
        context = context_of(subject)
        figures = DenseTransfer().run(context)
        assert figures["miou"] > 0
        assert context.pictures["dense-transfer_examples"]().width > 100
        torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_features_too_many_to_keep_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grouping_zoo.evaluation.tasks.transfer.MAX_FEATURES", 5 * 4 * 32 * 32)
    with pytest.raises(ValueError, match=r"--train-images: expected at most 5, .*, got 6"):
        DenseTransfer().run(context_of(subject_of(GreyOfPixels()), grey_masks(tmp_path)))


# --- the whole network ----------------------------------------------------------------------------------------------


def test_a_whole_network_learns_and_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = {"num_clusters": (32, 16, 8, 8)}
    settings = TransferSettings(
        head="own", steps=40, batch_size=6, optimizer="adamw", learning_rate=3e-3, image_size=64, train_args=clusters,
        test_args=clusters,
    )  # fmt: skip
    monkeypatch.setitem(DENSE_TRANSFERS, "own", settings)
    network = tiny_cast()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    context = context_of(subject_of(network), grey_masks(tmp_path), presets={"dense-transfer": "own"})
    figures = DenseTransfer().run(context)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert figures["pixel_accuracy"] > 60, "chance is 25"


def test_a_whole_network_trains_and_is_judged_with_the_arguments_of_its_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, int | None, tuple[int, ...]]] = []
    forward = PGTForSemanticSegmentation.forward

    def record(self: Any, pixel_values: Tensor, num_groups: Any = None, **kwargs: Any) -> Any:
        seen.append((self.training, num_groups, tuple(pixel_values.shape)))
        return forward(self, pixel_values, num_groups=num_groups, **kwargs)

    monkeypatch.setattr(PGTForSemanticSegmentation, "forward", record)
    settings = TransferSettings(head="own", steps=2, batch_size=3, learning_rate=0.01, test_args={"num_groups": 9})
    monkeypatch.setitem(DENSE_TRANSFERS, "pgt-ade20k", settings)
    network = timm.create_model("pgt_nano", num_classes=5, **TINY_PGT).eval()

    def run_once() -> dict[str, float]:
        return DenseTransfer().run(context_of(subject_of(network), presets={"dense-transfer": "pgt-ade20k"}))

    figures = run_once()
    assert seen == [(True, None, (3, 3, 64, 64))] * 2 + [(False, 9, (7, 3, 64, 64))]
    assert run_once() == pytest.approx(figures, nan_ok=True), "the same seed"


def test_published_settings_are_for_their_models_and_size() -> None:
    def attempt(network: Any, preset: str, size: int = 512) -> None:
        context = context_of(subject_of(network), size=(size, size), presets={"dense-transfer": preset})
        DenseTransfer().run(context)

    with pytest.raises(ValueError, match="expected 512, which cast-voc is for, got 64 x 64; give --size 512"):
        attempt(tiny_cast(), "cast-voc", 64)
    with pytest.raises(ValueError, match="for dense-transfer=pgt-ade20k a model that takes num_groups, got made"):
        attempt(tiny_cast(), "pgt-ade20k")
    with pytest.raises(ValueError, match=r"a model of CAST, PGT or VT, .* got made"):
        attempt(timm.create_model("test_vit", img_size=64), "cast-voc")
    with pytest.raises(ValueError, match=r"dense-transfer does not fit: made is no model for it"):
        fitting_tasks(subject_of(ClassInCorner(("a", "b"), ("a", "b"))), SCENES, ["dense-transfer"])


# --- the command ----------------------------------------------------------------------------------------------------


def test_presets_on_the_command_line(run: Run, tmp_path: Path) -> None:
    timm.models.save_for_hf(
        timm.create_model("test_vit", num_classes=3, img_size=64).eval(), str(tmp_path / "vit"), safe_serialization=True
    )
    words = ("eval", tmp_path / "vit", "--images", 5, "--train-images", 12)
    result = run(*words, "--task", "linear", "--preset", "linear=pgt-in1k")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1].endswith("linear preset pgt-in1k")
    assert ["learning", "rate", "0.004"] in [line.split() for line in result.out.splitlines()]
    mistake(run(*words, "--preset", "linear=cast"), "expected for linear one of sweep, cast-in1k, cast-in100, pgt-in1k")
    mistake(run(*words, "--preset", "dense-transfer=voc"), "expected for dense-transfer one of scenes, cast-voc, pgt-")
    mistake(run(*words, "--preset", "knn=5"), "expected one for linear or dense-transfer, got knn=5")
    mistake(run(*words, "--preset", "cast-voc"), "expected TASK=NAME such as linear=cast-in1k, got 'cast-voc'")
    mistake(run(*words, "--task", "knn", "--preset", "linear=sweep"), "got one for linear; add it to --task")
