"""MoCo-v3's objective against the plain definition, on one process and two."""

import copy
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.models.family import GroupingNetwork
from grouping_zoo.objectives.moco_v3 import MoCoV3Config, MoCoV3Objective, contrastive_loss


class Encoder(GroupingNetwork):
    """Means over the image, and a linear layer."""

    num_features = 6
    input_names = ("superpixels",)

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(3, 6)
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, superpixels: Tensor | None = None) -> Tensor:
        self.seen.append(superpixels)
        return self.patch_embed(x.mean((2, 3))).tanh()


def _objective(**settings: Any) -> MoCoV3Objective:
    torch.manual_seed(0)
    return MoCoV3Objective(Encoder(), MoCoV3Config(**(dict(hidden_dim=16, out_dim=8) | settings)))


def _batch(size: int = 8) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {"views": [torch.randn(size, 3, 4, 4, generator=generator) for _ in range(2)]}


def _naive(queries: Tensor, keys: Tensor, temperature: float) -> float:
    total = 0.0
    for i, query in enumerate(queries.double()):
        similarity = [float(query @ key / (query.norm() * key.norm())) / temperature for key in keys.double()]
        total += math.log(sum(math.exp(value) for value in similarity)) - similarity[i]
    return 2 * temperature * total / len(queries)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_equals_a_double_loop(temperature: float) -> None:
    objective, batch = _objective(temperature=temperature), _batch()
    parts = copy.deepcopy(objective)
    with torch.no_grad():
        parts.momentum_model.patch_embed.weight.mul_(0.5)
        objective.momentum_model.patch_embed.weight.mul_(0.5)
        queries = [parts.predictor(parts.projector(parts.model(view))) for view in batch["views"]]
        keys = [parts.momentum_projector(parts.momentum_model(view)) for view in batch["views"]]
    expected = _naive(queries[0], keys[1], temperature) + _naive(queries[1], keys[0], temperature)
    assert float(objective(batch)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_accuracy_counts_queries_that_find_their_own_key() -> None:
    keys = torch.eye(4)
    loss, accuracy = contrastive_loss(keys[[0, 1, 3, 3]], keys, 0.2)
    assert float(accuracy) == 75.0
    perfect, accuracy = contrastive_loss(keys, keys, 0.2)
    assert float(accuracy) == 100.0
    assert float(perfect) == pytest.approx(0.4 * math.log(1 + 3 * math.exp(-5)), rel=1e-5)
    assert loss > perfect


def test_standard_deviation_of_keys_is_0_when_collapsed_and_else_about_1() -> None:
    objective = _objective()
    assert 0.7 < float(objective(_batch(64))["key_std"]) < 1.3
    collapsed = {"views": [torch.ones(8, 3, 4, 4)] * 2}
    assert float(objective(collapsed)["key_std"]) < 1e-3


def test_only_encoder_projector_and_predictor_are_trained() -> None:
    objective = _objective()
    objective(_batch())["loss"].backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("momentum_"), name
        assert parameter.requires_grad != name.startswith("momentum_"), name


@pytest.mark.parametrize(("progress", "stay"), [(0.0, 0.9), (0.25, 0.91464466), (0.5, 0.95), (1.0, 1.0)])
def test_momentum_update_equals_its_formula(progress: float, stay: float) -> None:
    objective = _objective(momentum=0.9)
    with torch.no_grad():
        for parameter in [*objective.model.parameters(), *objective.projector.parameters()]:
            parameter.add_(torch.randn_like(parameter))
    before = copy.deepcopy(objective)
    objective.after_step(progress)
    for slow, trained in (("momentum_model", "model"), ("momentum_projector", "projector")):
        old, new, target = (
            list(getattr(part, name).parameters())
            for part, name in ((before, slow), (objective, slow), (objective, trained))
        )
        assert old
        for a, b, c in zip(old, new, target, strict=True):
            torch.testing.assert_close(b, stay * a + (1 - stay) * c, rtol=1e-6, atol=1e-7)


def test_projector_and_predictor_are_those_of_the_paper() -> None:
    objective = MoCoV3Objective(Encoder(), MoCoV3Config())
    shapes = [tuple(x.weight.shape) for x in objective.projector if isinstance(x, nn.Linear)]
    assert shapes == [(4096, 6), (4096, 4096), (256, 4096)]
    shapes = [tuple(x.weight.shape) for x in objective.predictor if isinstance(x, nn.Linear)]
    assert shapes == [(4096, 256), (256, 4096)]
    for network in (objective.projector, objective.predictor):
        norms = [x for x in network if isinstance(x, nn.BatchNorm1d)]
        assert [norm.affine for norm in norms] == [True] * (len(norms) - 1) + [False]
        assert isinstance(network[-1], nn.BatchNorm1d)


def test_the_momentum_encoder_starts_equal_and_can_be_made_so_again() -> None:
    objective = _objective()
    with torch.no_grad():
        objective.model.patch_embed.weight.add_(1)
    assert not torch.equal(objective.model.patch_embed.weight, objective.momentum_model.patch_embed.weight)
    objective.restart_momentum()
    assert torch.equal(objective.model.patch_embed.weight, objective.momentum_model.patch_embed.weight)
    assert objective.momentum_model.patch_embed.weight is not objective.model.patch_embed.weight


def test_each_view_gets_its_own_superpixels() -> None:
    objective, batch = _objective(), _batch(4)
    objective(batch)
    assert objective.model.seen == [None, None]
    labels = [torch.zeros(4, 4, 4, dtype=torch.int64), torch.ones(4, 4, 4, dtype=torch.int64)]
    objective(batch | {"superpixels": labels})
    for network in (objective.model, objective.momentum_model):
        assert all(seen is given for seen, given in zip(network.seen[-2:], labels, strict=True))


def test_a_frozen_patch_embedding_is_not_trained() -> None:
    objective = _objective(freeze_patch_embed=True)
    assert not any(parameter.requires_grad for parameter in objective.model.parameters())
    objective(_batch())["loss"].backward()
    with pytest.raises(ValueError, match="freeze_patch_embed: expected a model with a patch embedding, got ResNet"):
        MoCoV3Objective(timm.create_model("test_resnet", num_classes=0), MoCoV3Config(freeze_patch_embed=True))


@pytest.mark.parametrize(
    ("name", "arguments"), [("test_vit", {"img_size": 32}), ("test_resnet", {}), ("test_efficientnet", {})]
)
def test_the_loss_of_any_timm_model_falls(name: str, arguments: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments)
    objective = MoCoV3Objective(model, MoCoV3Config(hidden_dim=32, out_dim=16, momentum=0.9))
    images = torch.randn(12, 3, 32, 32)
    batch = {"views": [images, images + 0.1 * torch.randn_like(images)]}
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(8):
        values = objective(batch)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        objective.after_step(0.0)
        losses.append(float(values["loss"].detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "settings", [dict(temperature=0.0), dict(momentum=1.0), dict(momentum=-0.1), dict(hidden_dim=0)]
)
def test_wrong_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
        _objective(**settings)


def _trained_step(batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    # Batch norms by their running statistics: in training they differ between processes by design.
    # In double precision, so that the order of the sums does not matter.
    objective = _objective().eval().double()
    loss = objective({"views": [view.double() for view in batch["views"]]})["loss"]
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def _in_process(rank: int, port: int, folder: Path) -> None:
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    half = slice(4 * rank, 4 * rank + 4)
    loss, gradients = _trained_step({"views": [view[half] for view in _batch()["views"]]})
    torch.save({"loss": loss, **gradients}, folder / str(rank))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_in_process, (port, tmp_path), nprocs=2, start_method="fork")
    loss, gradients = _trained_step(_batch())
    halves = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    assert sum(half["loss"] for half in halves) / 2 == pytest.approx(loss, rel=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, gradient, rtol=1e-9, atol=1e-12)


def test_the_batch_norms_of_keys_have_statistics_of_their_own() -> None:
    objective = _objective()
    objective(_batch())
    norm, slow = objective.projector[1], objective.momentum_projector[1]
    assert norm.running_mean is not slow.running_mean
    assert int(slow.num_batches_tracked) == 2
    before = slow.running_mean.clone()
    norm.running_mean.add_(1)
    objective.after_step(0.0)
    assert torch.equal(slow.running_mean, before)


def test_features_are_compared_by_angle_alone() -> None:
    queries, keys = torch.randn(5, 4), torch.randn(5, 4)
    normalised = [F.normalize(x, dim=1) for x in (queries, keys)]
    assert float(contrastive_loss(*normalised, 0.2)[0]) == pytest.approx(_naive(3 * queries, 2 * keys, 0.2), rel=1e-5)
