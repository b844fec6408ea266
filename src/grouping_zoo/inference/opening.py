"""Checkpoints by name to opened models."""

from typing import Any

import torch
from safetensors import SafetensorError

from grouping_zoo.hf import checkpoint_folder
from grouping_zoo.hf.base import ZooPreTrainedModel
from grouping_zoo.models.family import GroupingNetwork, as_grouping_network
from grouping_zoo.models.image_text import ImageTextModel


def open_model(name: str, device: str) -> tuple[Any, Any]:
    """Open a checkpoint on a device.

    Args:
        name: see `grouping_zoo.hf.checkpoint_folder.find_checkpoint`.
        device: as torch calls it.

    Returns:
        The transformers model, in evaluation mode, and its processor.

    Raises:
        ValueError: for another name, weights that are damaged or out of reach, or a device that this machine does not
            have.
    """
    check_device(device)
    try:
        model, processor = checkpoint_folder.open_checkpoint(name)
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights are damaged ({error}); fetch or train them again") from None
    except OSError as error:  # of the hub; not all say which checkpoint
        raise ValueError(
            f"{name}: expected a checkpoint that can be read or fetched, got: {error}; check name and connection"
        ) from None
    network: Any = model  # transformers' `to` is a wrapper that type checkers cannot call
    return network.to(device), processor


def check_device(device: str) -> None:
    """Try a device.

    Raises:
        ValueError: for one that this machine does not have.
    """
    try:
        torch.zeros(1, device=device).item()  # the device "meta" makes tensors, but computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected a device of this machine, got {device!r} ({reason}); try cpu") from None


def has_text(model: Any, processor: Any) -> bool:
    """True of a model that names what it groups: it has a text encoder, and its processor a tokenizer."""
    return (
        isinstance(model, ZooPreTrainedModel)
        and isinstance(model.model, ImageTextModel)
        and getattr(processor, "tokenizer", None) is not None
    )


def grouping_network(model: Any) -> GroupingNetwork | None:
    """The network of a transformers model, None of one that makes no groups."""
    network = as_grouping_network(model.model) if isinstance(model, ZooPreTrainedModel) else None
    return network if network is not None and network.grouping_heads else None
