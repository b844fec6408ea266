"""Builds networks from a checkpoint's configuration, which may be untrusted."""

from collections.abc import Mapping
from typing import Any

import timm

# Arguments that fetch weights. An untrusted configuration must not set them, for a network or for its backbone.
WEIGHT_SOURCES = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_backbone", "checkpoint_path", "cache_dir"}
)


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


def create_by_name(
    architecture: str, module: str, model_args: dict[str, Any], num_classes: int, description: dict[str, Any]
) -> Any:
    """A timm network of one family of this package.

    Args:
        architecture: its timm name.
        module: the last part of the name of the module that registers the family.
        model_args: its arguments.
        num_classes: classes of its head, 0 for none.
        description: takes the place of entries of its `pretrained_cfg`.

    Raises:
        ValueError: for an architecture of another family, arguments that it does not take, or such that fetch weights.
    """
    known = timm.list_models(module=module)
    if architecture not in known:
        raise ValueError(f"architecture: expected one of {', '.join(known)}, got {architecture!r}")
    refuse_weight_sources(model_args, "model_args")
    arguments = {**model_args, "num_classes": num_classes}
    try:
        return timm.create_model(architecture, pretrained_cfg_overlay=description, **arguments)
    except TypeError as error:
        raise ValueError(f"model_args: {architecture} does not take them: {error}") from None
