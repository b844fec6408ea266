"""Construction of networks: from a variant's name and arguments, or from a checkpoint's configuration."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg
from torch import nn

from grouping_zoo.models.checkpoint import checkpoint_filter_fn
from grouping_zoo.models.family import FAMILIES

# timm's `pretrained_cfg` of every network of this package, unless it says otherwise.
COMMON_CFG: dict[str, Any] = dict(
    num_classes=0,
    input_size=(3, 224, 224),
    pool_size=None,
    crop_pct=0.875,
    interpolation="bicubic",
    fixed_input_size=False,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    first_conv="patch_embed.proj",
    classifier="head",
    license="apache-2.0",
)

# Arguments that fetch weights. An untrusted configuration must not set them, for a network or for its backbone.
WEIGHT_SOURCES = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_backbone", "checkpoint_path", "cache_dir"}
)

PACKAGED = Path(__file__).resolve().parent.parent / "checkpoints"


def packaged_weights(name: str) -> dict[str, str]:
    """The `file` entry of a timm `default_cfg`: the weights of a packaged checkpoint, empty where there is none."""
    path = PACKAGED / name / "model.safetensors"
    return {"file": str(path)} if path.is_file() else {}


def build_network(
    network_class: type[nn.Module],
    variant: str,
    pretrained: bool,
    stages: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    filter_fn: Callable[..., Any] = checkpoint_filter_fn,
    **kwargs: Any,
) -> Any:
    """Builds a registered variant as timm's own entry points do.

    Args:
        network_class: of the family.
        variant: timm name.
        pretrained: load the weights that its `pretrained_cfg` names.
        stages: indices of the maps that `features_only` returns where `out_indices` is not given.
        device: on which the parameters are made; the default device if omitted.
        dtype: of the parameters; the default one if omitted.
        filter_fn: from a checkpoint's state dict to the network's.
        kwargs: of timm's builder and of the network.
    """
    with torch.device(torch.get_default_device() if device is None else device):
        network = build_model_with_cfg(
            network_class,
            variant,
            pretrained,
            pretrained_filter_fn=filter_fn,
            feature_cfg=dict(out_indices=kwargs.pop("out_indices", tuple(stages)), feature_cls="getter"),
            **kwargs,
        )
    return network if dtype is None else network.to(dtype)


def refuse_weight_sources(arguments: Mapping[str, Any], setting: str) -> None:
    """Checks that arguments from a checkpoint's configuration do not fetch weights.

    Args:
        arguments: of a network; mappings among their values, such as `backbone_args`, are checked too.
        setting: what the message calls them.

    Raises:
        ValueError: naming those that do.
    """
    if sources := sorted(WEIGHT_SOURCES & set(arguments)):
        raise ValueError(f"{setting}: {', '.join(sources)} would load weights while the network is built; remove it")
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            refuse_weight_sources(value, name)


def create_from_config(
    architecture: str,
    model_args: Mapping[str, Any],
    num_classes: int = 0,
    pretrained_cfg: Mapping[str, Any] | None = None,
    family: type[nn.Module] | None = None,
) -> Any:
    """Creates a network from a checkpoint's configuration, which may be untrusted.

    Args:
        architecture: timm name of a network of this package.
        model_args: its arguments.
        num_classes: classes of its head, 0 for none.
        pretrained_cfg: takes the place of entries of its own.
        family: class that the network must have; any family of this package if omitted.

    Raises:
        ValueError: for another architecture, arguments that it does not take, or arguments that fetch weights.
    """
    known = zoo_models(family)
    if architecture not in known:
        raise ValueError(f"architecture: expected one of {', '.join(known)}, got {architecture!r}")
    refuse_weight_sources(model_args, "model_args")
    arguments = {**model_args, "num_classes": num_classes}
    try:
        return timm.create_model(architecture, pretrained_cfg_overlay=dict(pretrained_cfg or {}), **arguments)
    except TypeError as error:
        raise ValueError(f"model_args: {architecture} does not take them: {error}") from None


def zoo_models(family: type[nn.Module] | None = None) -> list[str]:
    """timm names of the architectures of this package's families and of those registered by users, or of one family."""
    modules = set(FAMILIES) if family is None else {family.__module__}
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__ in modules]
