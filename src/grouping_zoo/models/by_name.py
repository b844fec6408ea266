"""Builds networks that a checkpoint's configuration names, which may come from a stranger."""

from typing import Any

import timm

# Arguments of timm that fetch weights: a configuration shall reach nothing but the network.
WEIGHT_SOURCES = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_backbone", "checkpoint_path", "cache_dir"}
)


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
    if sources := sorted(WEIGHT_SOURCES & set(model_args)):
        raise ValueError(f"model_args: {', '.join(sources)} would load weights while the network is built; remove it")
    arguments = {**model_args, "num_classes": num_classes}
    try:
        return timm.create_model(architecture, pretrained_cfg_overlay=description, **arguments)
    except TypeError as error:
        raise ValueError(f"model_args: {architecture} does not take them: {error}") from None
