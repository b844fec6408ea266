"""Losses with labels against their formulas, mixing, and what a teacher may be."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from grouping_zoo.objectives.supervised import (
    ClassificationConfig,
    ClassificationObjective,
    FrozenTeacher,
    SegmentationObjective,
)

CLASSES = 4


class Linear(nn.Module):
    """The smallest timm-like classifier."""

    def __init__(self, num_classes: int = CLASSES, **pretrained_cfg: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg = pretrained_cfg
        self.fc = nn.Linear(3, num_classes)
        self.seen: Tensor = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.fc(x.mean(dim=(2, 3)))


def network(seed: int = 0, num_classes: int = CLASSES, **pretrained_cfg: Any) -> Linear:
    torch.manual_seed(seed)
    return Linear(num_classes, **{"input_size": (3, 8, 8), **pretrained_cfg})


def objective_of(model: nn.Module, teacher: nn.Module | None = None, **settings: Any) -> ClassificationObjective:
    config = ClassificationConfig(teacher=None if teacher is None else "its name", **settings)
    return ClassificationObjective(model, config, teacher)


def batch(size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return {"pixel_values": images, "label": torch.arange(size) % CLASSES}


def log_softmax(row: Tensor) -> list[float]:
    values = row.tolist()
    total = sum(math.exp(v) for v in values)
    return [v - math.log(total) for v in values]


# --- classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothing_is_the_formula(smoothing: float) -> None:
    model, samples = network(), batch()
    found = objective_of(model, label_smoothing=smoothing)(samples)
    losses, right = [], 0
    for logits, label in zip(model(samples["pixel_values"]), samples["label"].tolist(), strict=True):
        target = [smoothing / CLASSES + (1 - smoothing) * (k == label) for k in range(CLASSES)]
        losses.append(-sum(t * p for t, p in zip(target, log_softmax(logits), strict=True)))
        right += int(logits.argmax()) == label
    assert found["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["accuracy"].item() == pytest.approx(100 * right / len(losses))


@pytest.mark.parametrize(("weight", "temperature"), [(0.8, 1.0), (0.8, 3.0), (1.0, 2.0)])
def test_distillation_is_the_formula(weight: float, temperature: float) -> None:
    model, teacher, samples = network(), network(1), batch()
    found = objective_of(model, teacher=teacher, distillation_weight=weight, temperature=temperature)(samples)
    hard, soft = [], []
    for z, y, label in zip(
        model(samples["pixel_values"]), teacher(samples["pixel_values"]), samples["label"].tolist(), strict=True
    ):
        hard.append(-log_softmax(z)[label])
        target = [math.exp(v) for v in log_softmax(y / temperature)]
        soft.append(-sum(t * p for t, p in zip(target, log_softmax(z / temperature), strict=True)))
    hard_mean, soft_mean = sum(hard) / len(hard), temperature**2 * sum(soft) / len(soft)
    assert found["cross_entropy"].item() == pytest.approx(hard_mean, rel=1e-5)
    assert found["distillation"].item() == pytest.approx(soft_mean, rel=1e-5)
    assert found["loss"].item() == pytest.approx((1 - weight) * hard_mean + weight * soft_mean, rel=1e-5)


def test_mixed_images_have_the_targets_of_their_parts() -> None:
    model = network()
    objective = objective_of(model, mixup_alpha=0.8, label_smoothing=0.1)
    # Constant images that show their label: a mixed image tells how much of which label is in it.
    labels = torch.arange(CLASSES)
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    torch.manual_seed(0)
    found = objective({"pixel_values": images, "label": labels})
    assert torch.equal(images[:, 0, 0, 0], labels.float()), "the batch itself stays as it was"
    mixed = model.seen[:, 0, 0, 0]
    fraction = float((mixed[0] - labels[3]) / (labels[0] - labels[3]))
    assert 0 < fraction < 1
    losses = []
    for i, logits in enumerate(model(model.seen)):
        target = [0.1 / CLASSES] * CLASSES
        target[i] += 0.9 * fraction
        target[CLASSES - 1 - i] += 0.9 * (1 - fraction)
        losses.append(-sum(t * p for t, p in zip(target, log_softmax(logits), strict=True)))
    assert found["loss"].item() == pytest.approx(sum(losses) / CLASSES, rel=1e-4)
    assert "accuracy" not in found


def test_cutmix_pastes_a_box_of_the_other_image() -> None:
    model = network()
    images = torch.zeros(2, 3, 8, 8)
    images[1] = 1.0
    torch.manual_seed(1)
    objective_of(model, cutmix_alpha=1.0)({"pixel_values": images, "label": torch.tensor([0, 1])})
    pasted = model.seen[0, 0] == 1
    rows, columns = pasted.any(dim=1).nonzero()[:, 0], pasted.any(dim=0).nonzero()[:, 0]
    assert 0 < pasted.sum() < 64
    assert pasted.sum() == len(rows) * len(columns)
    assert torch.equal(model.seen[1, 0] == 0, pasted)


def test_mixing_follows_torchs_random_state_and_leaves_numpys_alone() -> None:
    model = network()
    objective = objective_of(model, mixup_alpha=0.8, cutmix_alpha=1.0)
    seen = []
    np.random.seed(5)
    expected = np.random.rand()
    for seed in (0, 0, 1):
        np.random.seed(5)
        torch.manual_seed(seed)
        objective(batch())
        assert np.random.rand() == expected
        seen.append(model.seen)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_nothing_is_mixed_in_evaluation() -> None:
    model, samples = network(), batch(5)
    objective = objective_of(model, mixup_alpha=0.8).eval()
    assert "accuracy" in objective(samples)
    assert torch.equal(model.seen, samples["pixel_values"])
    with pytest.raises(
        ValueError, match=r"mixup_alpha, objective.cutmix_alpha: expected an even number of images .*got 5"
    ):
        objective.train()(samples)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(label_smoothing=1.5), "label_smoothing: expected a fraction from 0 to 1, got 1.5"),
        (dict(distillation_weight=-0.1), "distillation_weight: expected a fraction from 0 to 1, got -0.1"),
        (dict(distillation_weight=0.5), "objective.teacher: expected null where .* only there, got None"),
        (dict(teacher=Linear(CLASSES)), "objective.teacher: expected null where objective.distillation_weight is 0"),
        (dict(mixup_alpha=-1.0), "mixup_alpha: expected at least 0"),
        (dict(cutmix_alpha=-1.0), "cutmix_alpha: expected at least 0"),
        (dict(temperature=0.0), "temperature: expected a number above 0, got 0"),
        (
            dict(distillation_weight=0.5, teacher=Linear(7)),
            "teacher: expected the 4 classes of the network, got 7; choose a teacher",
        ),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective_of(network(), **kwargs)


def test_a_named_teacher_must_be_given() -> None:
    config = ClassificationConfig(teacher="resnet18", distillation_weight=0.5)
    with pytest.raises(ValueError, match=r"config.teacher: expected .* null without, got resnet18"):
        ClassificationObjective(network(), config)


# --- the teacher ----------------------------------------------------------------------------------------------------


def test_teacher_sees_its_own_size_and_normalisation() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    given = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    for side in (8, 12, 5):
        teacher = network(1, input_size=(3, side, side), **own)
        wrapped = FrozenTeacher(teacher, network(**given))
        mean, std = (torch.tensor(given[key]).view(3, 1, 1) for key in ("mean", "std"))
        wrapped((pixels - mean) / std)
        mean, std = (torch.tensor(own[key]).view(3, 1, 1) for key in ("mean", "std"))
        expected = (pixels - mean) / std
        assert teacher.seen.shape == (2, 3, side, side)
        if side == 8:
            assert torch.allclose(teacher.seen, expected, atol=1e-5)
        assert torch.allclose(teacher.seen.mean(dim=(2, 3)), expected.mean(dim=(2, 3)), atol=0.15)


def test_teacher_stays_frozen_and_any_timm_model_can_teach() -> None:
    arguments = dict(num_classes=CLASSES, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    teacher, model = (timm.create_model("resnet18", **arguments) for _ in range(2))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = objective_of(model, teacher=teacher, distillation_weight=0.8).train()
    assert model.training
    assert not teacher.training
    objective({"pixel_values": torch.randn(2, 3, 64, 64), "label": torch.tensor([1, 3])})["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_distillation_alone_makes_the_student_agree_with_the_teacher() -> None:
    model, teacher = network(), network(1)
    objective = objective_of(model, teacher=teacher, distillation_weight=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    samples = batch()
    for _ in range(200):
        optimizer.zero_grad()
        objective(samples)["loss"].backward()
        optimizer.step()
    student, taught = (m(samples["pixel_values"]).softmax(dim=1) for m in (model, teacher))
    assert torch.allclose(student, taught, atol=0.02)


# --- segmentation ---------------------------------------------------------------------------------------------------


def test_dense_cross_entropy_is_the_formula_and_leaves_out_what_is_ignored() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, CLASSES, 1)
    images = torch.randn(2, 3, 6, 4)
    mask = torch.randint(0, CLASSES, (2, 6, 4))
    mask[0, :3] = 255
    found = SegmentationObjective(model)({"pixel_values": images, "mask": mask})
    losses, right = [], 0
    logits = model(images)
    for i in range(2):
        for r in range(6):
            for c in range(4):
                label = int(mask[i, r, c])
                if label != 255:
                    losses.append(-log_softmax(logits[i, :, r, c])[label])
                    right += int(logits[i, :, r, c].argmax()) == label
    assert found["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["pixel_accuracy"].item() == pytest.approx(100 * right / len(losses))


def test_prediction_is_interpolated_to_the_mask() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, CLASSES, 2, stride=2)
    images, mask = torch.randn(1, 3, 8, 6), torch.randint(0, CLASSES, (1, 8, 6))
    found = SegmentationObjective(model)({"pixel_values": images, "mask": mask})
    logits = nn.functional.interpolate(model(images), size=(8, 6), mode="bilinear")
    assert torch.allclose(found["loss"], nn.functional.cross_entropy(logits, mask))


def test_mask_without_any_counted_pixel_gives_zero_and_zero_gradients() -> None:
    model = nn.Conv2d(3, CLASSES, 1)
    batch = {"pixel_values": torch.randn(1, 3, 4, 4), "mask": torch.full((1, 4, 4), 9)}
    found = SegmentationObjective(model, ignore_index=9)(batch)
    found["loss"].backward()
    assert found["loss"].item() == found["pixel_accuracy"].item() == 0
    assert not model.weight.grad.any()
