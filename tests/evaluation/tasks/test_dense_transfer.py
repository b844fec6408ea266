from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from command import Run, mistake
from evaluated import SCENES, ClassInCorner, context_of, in_processes, model_of
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.dense_transfer import DENSE_TRANSFERS, TransferSettings
from grouping_zoo.evaluation.tasks import fitting_tasks
from grouping_zoo.evaluation.tasks.dense_transfer import DenseTransfer
from grouping_zoo.hf.pgt import PGTForSemanticSegmentation
from zoo import with_random_weights

TINY_CAST = dict(embed_dim=32, depths=(1, 1, 1, 1), superpixel_method="grid", num_classes=0)
TINY_PGT = dict(embed_dim=24, depths=(1, 1), group_dims=(8, 8), num_heads=2, num_groups=6, feature_dim=16)
VOID, GREY = 255, 60


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


@pytest.mark.parametrize("head", ["linear", "two-layer"])
def test_features_that_tell_classes_apart_give_100_and_wrong_masks_0(
    head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TransferSettings(head=head, steps=60, batch_size=4, optimizer="adamw", learning_rate=0.1)
    monkeypatch.setitem(DENSE_TRANSFERS, "scenes", settings)
    model = model_of(GreyOfPixels())
    right = DenseTransfer().run(context_of(model, grey_masks(tmp_path / "right")))
    assert right["miou"] == right["pixel_accuracy"] == 100
    wrong = DenseTransfer().run(context_of(model, grey_masks(tmp_path / "wrong", train_shift=1)))
    assert wrong["miou"] == wrong["pixel_accuracy"] == 0


def test_several_processes_train_and_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TransferSettings(head="two-layer", steps=5, batch_size=4, learning_rate=0.1)
    monkeypatch.setitem(DENSE_TRANSFERS, "scenes", settings)
    monkeypatch.setattr("grouping_zoo.evaluation.context.BATCH_SIZE", 2)  # an odd number of batches
    data = grey_masks(tmp_path)
    alone = DenseTransfer().run(context_of(model_of(GreyOfPixels()), data))
    assert 0 < alone["miou"] < 100
    found = in_processes(2, lambda ranks: DenseTransfer().run(context_of(model_of(GreyOfPixels()), data, ranks=ranks)))
    for one in found:
        assert one == pytest.approx(alone, rel=0, abs=0, nan_ok=True)


def test_frozen_networks_of_all_kinds_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DENSE_TRANSFERS, "scenes", TransferSettings(head="linear", steps=10, learning_rate=0.3))
    for network in (timm.create_model("test_vit", num_classes=0, img_size=64), tiny_cast()):
        model = model_of(network.eval())
        assert "dense-transfer" in {task.name for task in fitting_tasks(model, SCENES)}
        before = {key: value.clone() for key, value in network.state_dict().items()}
        context = context_of(model)
        found = DenseTransfer().run(context)
        assert found["miou"] > 0
        assert context.plots["dense-transfer_examples"]().width > 100
        torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_features_too_many_to_keep_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grouping_zoo.evaluation.tasks.dense_transfer.MAX_FEATURES", 5 * 4 * 32 * 32)
    with pytest.raises(ValueError, match=r"train_images: expected at most 5, .*, got 6"):
        DenseTransfer().run(context_of(model_of(GreyOfPixels()), grey_masks(tmp_path)))


def test_a_whole_network_learns_and_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = {"num_clusters": (32, 16, 8, 8)}
    settings = TransferSettings(
        head="own", steps=80, batch_size=6, optimizer="adamw", learning_rate=3e-3, image_size=64, train_args=clusters,
        test_args=clusters,
    )  # fmt: skip
    monkeypatch.setitem(DENSE_TRANSFERS, "own", settings)
    network = tiny_cast()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    context = context_of(model_of(network), grey_masks(tmp_path), presets={"dense-transfer": "own"})
    found = DenseTransfer().run(context)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert found["pixel_accuracy"] > 60, "chance is 25"


def test_a_whole_network_trains_and_is_evaluated_with_the_arguments_of_its_preset(
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
        return DenseTransfer().run(context_of(model_of(network), presets={"dense-transfer": "pgt-ade20k"}))

    found = run_once()
    assert seen == [(True, None, (3, 3, 64, 64))] * 2 + [(False, 9, (7, 3, 64, 64))]
    assert run_once() == pytest.approx(found, nan_ok=True), "the same seed"


def test_published_settings_are_for_their_models_and_size() -> None:
    def attempt(network: Any, preset: str, size: int = 512) -> None:
        context = context_of(model_of(network), size=(size, size), presets={"dense-transfer": preset})
        DenseTransfer().run(context)

    with pytest.raises(ValueError, match="expected 512, which cast-voc is for, got 64 x 64; give size 512"):
        attempt(tiny_cast(), "cast-voc", 64)
    with pytest.raises(ValueError, match="for dense-transfer=pgt-ade20k a model that takes num_groups, got made"):
        attempt(tiny_cast(), "pgt-ade20k")
    with pytest.raises(ValueError, match=r"a model of CAST, PGT or VT, .* got made"):
        attempt(timm.create_model("test_vit", img_size=64), "cast-voc")
    with pytest.raises(ValueError, match=r"dense-transfer does not fit: made is no model for it"):
        fitting_tasks(model_of(ClassInCorner(("a", "b"), ("a", "b"))), SCENES, ["dense-transfer"])


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
