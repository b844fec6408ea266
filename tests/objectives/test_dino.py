"""DINO's objective against the plain definition, its schedules and averages, on one process and two."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import grouping_zoo.models.pgt  # noqa: F401 - registers the models
from grouping_zoo.models.family import GroupingNetwork
from grouping_zoo.objectives.dino import DINOConfig, DINOHead, DINOObjective, dino_loss, sinkhorn
from zoo import with_random_weights

PROTOTYPES = 7


class Encoder(GroupingNetwork):
    """Mean color, through a linear layer and batch norm."""

    num_features = 6
    input_names = ("superpixels",)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, superpixels: Tensor | None = None) -> Tensor:
        self.seen.append((x, superpixels))
        return self.norm(self.linear(x.mean((2, 3)))).tanh()


def small(**settings: Any) -> DINOConfig:
    return DINOConfig(**(dict(num_prototypes=PROTOTYPES, hidden_dim=8, bottleneck_dim=4) | settings))


def objective_of(num_global_crops: int = 2, **settings: Any) -> DINOObjective:
    torch.manual_seed(0)
    config = small(**(dict(freeze_prototypes=0.0) | settings))
    objective = DINOObjective(with_random_weights(Encoder()), config, num_global_crops)
    with_random_weights(objective)  # a teacher that differs from the student, and a centre
    objective.progress.zero_()
    return objective


def batch_of(size: int = 4, sides: tuple[int, ...] = (8, 8, 4, 4, 4)) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {"views": [torch.randn(size, 3, side, side, generator=generator) for side in sides]}


def softmax(values: list[float]) -> list[float]:
    exponents = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponents) for e in exponents]


def naive(student: list[Tensor], teacher: list[Tensor], center: Tensor, t_s: float, t_t: float) -> dict[str, float]:
    """The loss and the metrics as double loops over crops, from logits (B, P) of each."""
    losses, entropies, divergences, targets = [], [], [], []
    for i, target_logits in enumerate(teacher):
        for image, row in enumerate(target_logits.double()):
            target = softmax(((row - center.double()) / t_t).tolist())
            targets.append(target)
            entropies.append(-sum(p * math.log(p) for p in target))
            for j, logits in enumerate(student):
                if j == i:
                    continue
                found = softmax((logits[image].double() / t_s).tolist())
                losses.append(-sum(p * math.log(q) for p, q in zip(target, found, strict=True)))
                divergences.append(sum(p * math.log(p / q) for p, q in zip(target, found, strict=True)))
    mean = [sum(column) / len(targets) for column in zip(*targets, strict=True)]
    entropy = sum(entropies) / len(entropies)
    return {
        "loss": sum(losses) / len(losses),
        "teacher_entropy": entropy,
        "teacher_kl": sum(divergences) / len(divergences),
        "teacher_information": -sum(p * math.log(p) for p in mean) - entropy,
    }


@pytest.mark.parametrize("num_global", [1, 2, 3])
@pytest.mark.parametrize("sides", [(8, 8, 4, 4, 4), (8, 8, 8), (8, 6, 4, 6)])
def test_loss_equals_a_double_loop(num_global: int, sides: tuple[int, ...]) -> None:
    objective = objective_of(num_global_crops=num_global, student_temperature=0.2, warmup_teacher_temperature=0.05)
    objective.student.eval()  # batch norm sees sizes apart
    parts, batch = copy.deepcopy(objective), batch_of(sides=sides)
    with torch.no_grad():
        student = [parts.student_head(parts.student(view)) for view in batch["views"]]
        teacher = [parts.teacher_head(parts.model(view)) for view in batch["views"][:num_global]]
    expected = naive(student, teacher, parts.center, 0.2, 0.05)
    found = objective(batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    center = 0.9 * parts.center + 0.1 * torch.cat(teacher).mean(0)
    assert torch.allclose(objective.center, center, atol=1e-6)


def test_crops_of_one_size_go_together_with_their_superpixels() -> None:
    objective, batch = objective_of(), batch_of()
    labels = [torch.full(view.shape[:1] + view.shape[2:], i) for i, view in enumerate(batch["views"])]
    objective({**batch, "superpixels": labels})
    for model, calls in ((objective.student, [[0, 1], [2, 3, 4]]), (objective.model, [[0, 1]])):
        assert len(model.seen) == len(calls)
        for (seen, superpixels), together in zip(model.seen, calls, strict=True):
            assert torch.equal(seen, torch.cat([batch["views"][i] for i in together]))
            assert torch.equal(superpixels, torch.cat([labels[i] for i in together]))


def test_gradient_reaches_the_student_alone() -> None:
    objective = objective_of().train()
    objective(batch_of())["loss"].backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == name.startswith("student"), name
    assert not objective.model.training, "the teacher stays in evaluation mode"


def test_prototypes_are_frozen_at_first() -> None:
    objective = objective_of(freeze_prototypes=0.5)
    for progress, moves in ((0.0, False), (0.49, False), (0.5, True)):
        objective.after_step(progress)
        objective.zero_grad()
        objective(batch_of())["loss"].backward()
        assert bool(objective.student_head.prototypes.grad.any()) == moves
        assert objective.student_head.mlp[0].weight.grad.any()


@torch.no_grad()
def test_head_gives_cosines() -> None:
    head = with_random_weights(DINOHead(6, PROTOTYPES, 8, 4))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    logits, bottleneck = head(x), head.mlp(x)
    for i in range(3):
        for p in range(PROTOTYPES):
            cosine = F.cosine_similarity(bottleneck[i], head.prototypes[p], dim=0)
            assert float(logits[i, p]) == pytest.approx(float(cosine), abs=1e-5)


# --- schedules and averages -----------------------------------------------------------------------------------------


def test_batch_norm_in_the_head_sets_nearly_equal_features_apart() -> None:
    torch.manual_seed(0)
    features = torch.ones(16, 6) + 1e-3 * torch.randn(16, 6)
    spread = {norm: DINOHead(6, 8, 32, 16, batch_norm=norm)(features).std(dim=0).mean() for norm in (False, True)}
    assert spread[True] > 50 * spread[False]


def test_teacher_temperature_rises_linearly_and_stays() -> None:
    objective = objective_of(warmup_teacher_temperature=0.04, teacher_temperature=0.08, teacher_temperature_warmup=0.5)
    for progress, expected in ((0.0, 0.04), (0.25, 0.06), (0.5, 0.08), (1.0, 0.08)):
        objective.after_step(progress)
        assert float(objective.teacher_temperature()) == pytest.approx(expected)
    without = objective_of(teacher_temperature=0.08, teacher_temperature_warmup=0.0)
    assert float(without.teacher_temperature()) == pytest.approx(0.08)


@pytest.mark.parametrize(("progress", "stay"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_teacher_follows_parameters_and_statistics(progress: float, stay: float) -> None:
    objective = objective_of(momentum=0.9)
    objective.student.norm.num_batches_tracked.fill_(5)
    before = copy.deepcopy(objective)
    objective.after_step(progress)
    for name, value in objective.model.state_dict().items():
        old, trained = before.model.state_dict()[name], before.student.state_dict()[name]
        expected = stay * old + (1 - stay) * trained if value.is_floating_point() else trained
        assert torch.allclose(value, expected, atol=1e-6), name
    prototypes = stay * before.teacher_head.prototypes + (1 - stay) * before.student_head.prototypes
    assert torch.allclose(objective.teacher_head.prototypes, prototypes, atol=1e-6)
    objective.restart_momentum()
    for name, value in objective.model.state_dict().items():
        assert torch.equal(value, objective.student.state_dict()[name])


def test_state_holds_all_that_changes() -> None:
    torch.manual_seed(0)
    objective, batch = objective_of(teacher_temperature_warmup=1.0), batch_of()
    objective(batch)["loss"].backward()
    objective.after_step(0.3)
    other = objective_of(teacher_temperature_warmup=1.0)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(objective(batch)["loss"], other(batch)["loss"])


# --- collapse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uniform", [False, True])
@torch.no_grad()
def test_collapse_shows_in_the_metrics(uniform: bool) -> None:
    objective = objective_of(center_momentum=1.0)
    objective.center.zero_()
    for model in (objective.student, objective.model):
        model.linear.weight.zero_()  # one output for all images
    if uniform:
        for head in (objective.student_head, objective.teacher_head):
            head.prototypes.copy_(head.prototypes[:1].expand_as(head.prototypes))
    found = {name: float(value) for name, value in objective(batch_of()).items()}
    assert found["teacher_information"] == pytest.approx(0, abs=1e-5)
    if uniform:
        assert found["teacher_entropy"] == pytest.approx(math.log(PROTOTYPES), abs=1e-4)
        assert found["teacher_kl"] == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_grouping_entropies_are_logged_where_the_model_has_them() -> None:
    torch.manual_seed(0)
    model = timm.create_model("pgt_nano", img_size=32)
    objective = DINOObjective(model, small(entropy_images=3))
    batch = batch_of(sides=(32, 32, 16))
    found = objective(batch)
    entropies = objective.model.assignment_entropies(batch["views"][0][:3])
    for layer in range(len(model.layers)):
        assert torch.equal(found[f"marginal_entropy_{layer}"], entropies.marginal[layer].mean())
        assert torch.equal(found[f"conditional_entropy_{layer}"], entropies.conditional[layer].mean())


# --- Sinkhorn-Knopp -------------------------------------------------------------------------------------------------


def test_sinkhorn_divides_by_the_sums_in_turn() -> None:
    logits = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for iterations in (1, 3, 200):
        expected = [[math.exp(value) for value in row] for row in logits.tolist()]
        for _ in range(iterations):
            sums = [sum(row[p] for row in expected) for p in range(4)]
            expected = [[value / total for value, total in zip(row, sums, strict=True)] for row in expected]
            expected = [[value / sum(row) for value in row] for row in expected]
        found = sinkhorn(logits, iterations)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.sum(dim=0), torch.full((4,), 6 / 4, dtype=torch.float64)), "all prototypes alike"


def test_sinkhorn_targets_take_the_place_of_the_centre() -> None:
    objective, batch = objective_of(centering="sinkhorn", teacher_temperature=0.05, freeze_prototypes=0.0), batch_of()
    objective.progress.fill_(0.9)  # past the temperature's warm-up
    center = objective.center.clone()
    objective.student.eval()  # batch statistics would be those of the crops of one size
    teacher = objective.teacher_head(torch.cat([objective.model(view) for view in batch["views"][:2]]))
    targets = sinkhorn(teacher / 0.05)
    log_student = torch.cat([objective.student_head(objective.student(view)) for view in batch["views"]]) / 0.1
    expected = dino_loss(targets.chunk(2), log_student.log_softmax(dim=1).chunk(5))
    torch.testing.assert_close(objective(batch)["loss"], expected)
    assert torch.equal(objective.center, center)


# --- two processes --------------------------------------------------------------------------------------------------


def run_steps(parts: list[dict[str, list[Tensor]]], centering: str) -> dict[str, Tensor]:
    """Loss, gradients and centre of each part in turn; with processes, their averages."""
    objective = objective_of(centering=centering)
    objective.student.eval()  # batch statistics are each process's own
    results = {}
    for step, part in enumerate(parts):
        objective.zero_grad()
        loss = objective(part)["loss"]
        loss.backward()
        results |= {f"{step}.loss": loss.detach().clone(), f"{step}.center": objective.center.clone()}
        results |= {f"{step}.grad.{n}": p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return results


def worker(rank: int, folder: str, centering: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    half = {"views": [view.chunk(2)[rank] for view in batch_of()["views"]]}
    results = run_steps([half, half], centering)
    own_center = results["1.center"].clone()
    for name, value in results.items():
        dist.all_reduce(value)
        results[name] = value / 2
    assert torch.allclose(results["1.center"], own_center, atol=1e-7), "all processes have the same centre"
    if rank == 0:
        save_file(results, f"{folder}/results.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_two_processes_equal_one_on_the_joint_batch(centering: str, tmp_path: Path) -> None:
    # Forked, since a fresh interpreter would spend seconds on imports.
    torch.multiprocessing.start_processes(worker, (str(tmp_path), centering), nprocs=2, start_method="fork")
    found, expected = load_file(tmp_path / "results.safetensors"), run_steps([batch_of(), batch_of()], centering)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(student_temperature=0.0), "student_temperature: expected more than 0, got 0.0"),
        (dict(teacher_temperature=-1.0), "teacher_temperature: expected more than 0, got -1.0"),
        (dict(num_global_crops=0), "num_global_crops: expected at least 1, got 0"),
        (dict(hidden_dim=0), "hidden_dim: expected more than 0, got 0"),
        (dict(bottleneck_dim=0), "bottleneck_dim: expected more than 0, got 0"),
        (dict(entropy_images=-1), "entropy_images: expected 0 or more, got -1"),
        (dict(momentum=1.5), "momentum: expected 0 to 1, got 1.5"),
        (dict(centering="batch"), "centering: expected mean or sinkhorn, got batch"),
        (dict(freeze_prototypes=-0.1), "freeze_prototypes: expected 0 to 1, got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective_of(**settings)


@pytest.mark.parametrize(("num_global", "number"), [(2, 1), (1, 1), (3, 2)])
def test_too_few_crops_are_refused(num_global: int, number: int) -> None:
    with pytest.raises(ValueError, match=f"views: expected at least {max(num_global, 2)} crops, got {number}"):
        objective_of(num_global_crops=num_global)(batch_of(sides=(8,) * number))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_any_timm_model_is_a_backbone(name: str) -> None:
    arguments = dict(dynamic_img_size=True, depth=1) if name.startswith("vit") else {}
    objective = DINOObjective(timm.create_model(name, num_classes=0, **arguments), small()).train()
    losses = objective(batch_of(2, (48, 48, 32)))
    losses["loss"].backward()
    objective.after_step(0.1)
    assert losses["loss"].isfinite()
    assert losses.keys() == {"loss", "teacher_entropy", "teacher_kl", "teacher_information"}
