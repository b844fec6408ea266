"""Opening what a user calls a model."""

from typing import Any

import torch
from safetensors import SafetensorError

from grouping_zoo.hf import checkpoint_folder
from grouping_zoo.models.image_text import ImageTextModel


def open_model(name: str, device: str) -> tuple[Any, Any]:
    """A checkpoint's transformers model, in evaluation mode on a device, and its processor.

    Raises:
        ValueError: for another name, weights that are damaged or out of reach, or a device that this machine lacks.
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
    """Tries a device.

    Raises:
        ValueError: for one that this machine lacks.
    """
    try:
        torch.zeros(1, device=device).item()  # the device "meta" makes tensors, but computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: expected a device of this machine, got {device!r} ({reason}); try cpu") from None


def has_text(model: Any, processor: Any) -> bool:
    """Whether a model names what it groups: it has a text tower, and its processor a tokenizer."""
    return (
        isinstance(getattr(model, "model", None), ImageTextModel) and getattr(processor, "tokenizer", None) is not None
    )
