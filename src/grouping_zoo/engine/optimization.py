"""Optimizer and learning rate schedule, both timm's."""

from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any, Protocol, runtime_checkable

import timm.optim
import timm.scheduler
import torch
from timm.models import group_parameters
from timm.scheduler.scheduler import Scheduler
from torch import nn

from grouping_zoo.engine.recipe import OptimizerConfig, ScheduleConfig


@runtime_checkable
class ExemptsFromWeightDecay(Protocol):
    """Network that names parameters without weight decay, as timm's do."""

    def no_weight_decay(self) -> Collection[str]:
        """Names, or patterns of names, within the network."""
        ...


@runtime_checkable
class HasLayers(Protocol):
    """Network that tells its parameters' layers, as timm's do."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of names, see `timm.models.group_with_matcher`."""
        ...


def build_optimizer(objective: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make an optimizer over everything in the objective that is to be trained.

    Raises:
        ValueError: if nothing is to be trained, or layer decay finds no layers.
    """
    groups = parameter_groups(objective, config.weight_decay, config.layer_decay)
    if not groups:
        raise ValueError("optimizer: expected parameters to train, got none; every parameter of the task is frozen")
    extra: dict[str, Any] = {} if config.betas is None else {"betas": tuple(config.betas)}
    return timm.optim.create_optimizer_v2(
        groups, opt=config.name, lr=config.learning_rate, weight_decay=config.weight_decay, **extra
    )


def parameter_groups(objective: nn.Module, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate factor and weight decay.

    Biases, one-dimensional parameters and those that `no_weight_decay()` of one of the objective's networks names do
    not decay. Layer decay counts for the networks that are built like `objective.model`: the trained one may be another
    than the published one, as in self-distillation.

    Returns:
        groups with `params`, `weight_decay` and `lr_scale`, in the order of the parameters.
    """
    network: Any = objective.model
    parts: list[tuple[str, Any]] = list(objective.named_children())
    exempt = [
        f"{part}.{name}"
        for part, module in parts
        if isinstance(module, ExemptsFromWeightDecay)
        for name in module.no_weight_decay()
    ]
    scales: dict[str, float] = {}
    if layer_decay is not None:
        of_network = layer_scales(network, layer_decay)
        alike = [part for part, module in parts if type(module) is type(network)]
        scales = {f"{part}.{name}": scale for part in alike for name, scale in of_network.items()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in exempt)
        decay = 0.0 if spared else weight_decay
        scale = scales.get(name, 1.0)
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def layer_scales(network: nn.Module, layer_decay: float) -> dict[str, float]:
    """Learning rate factor of each parameter: `layer_decay` to the power of its layer's distance from the top.

    The layers are those of the network's `group_matcher`, or of each of its towers that has one; what belongs to no
    tower keeps the full rate.
    """
    children = dict(network.named_children())
    towers = {"": network} if isinstance(network, HasLayers) else children
    scales: dict[str, float] = {}
    for prefix, tower in towers.items():
        if not isinstance(tower, HasLayers):
            continue
        layers = group_parameters(tower, tower.group_matcher(coarse=False), reverse=True)
        top = max(layers.values())
        scales |= {f"{prefix}.{name}".lstrip("."): layer_decay ** (top - layer) for name, layer in layers.items()}
    if not scales:
        raise ValueError(
            f"optimizer.layer_decay: expected null, as {type(network).__name__} has no group_matcher, got {layer_decay}"
        )
    return scales


def build_scheduler(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps: int) -> Scheduler:
    """Make a schedule that `scheduler.step_update(step)` sets before the update of that number, counted from 0."""
    decay_steps, decay_rate = config.decay_steps or 1, config.decay_rate
    if config.name == "exponential":
        decay_steps, decay_rate = 1, decay_rate ** (1 / decay_steps)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched="step" if config.name == "exponential" else config.name,
        num_epochs=steps,
        decay_epochs=decay_steps,
        decay_rate=decay_rate,
        min_lr=config.min_learning_rate,
        warmup_lr=config.warmup_learning_rate,
        warmup_epochs=config.warmup_steps,
        step_on_epochs=False,
        # timm counts in epochs; an epoch of one update makes that updates.
        updates_per_epoch=1,
    )
    assert scheduler is not None
    return scheduler
