"""Key names of an image network's checkpoint folder: its tensors under `model.`, a segmentation head beside it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

NETWORK_PREFIX = "model."
SEGMENTATION_PREFIX = "segmentation_head."


def network_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network itself under its own names.

    Args:
        state_dict: of a checkpoint folder, or of the network alone, which comes back as it is.

    Returns:
        the same tensors without the prefix and without a segmentation head; any other key is left for the caller's
        check to list.
    """
    if not any(key.startswith(NETWORK_PREFIX) for key in state_dict):
        return dict(state_dict)
    return {
        key.removeprefix(NETWORK_PREFIX): value
        for key, value in state_dict.items()
        if not key.startswith(SEGMENTATION_PREFIX)
    }


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """timm's hook, for a family that has no checkpoints in other formats.

    Args:
        state_dict: see `network_state_dict`.
        model: the timm network to load into.

    Returns:
        the network's tensors; those of a head that the checkpoint lacks are the model's own, freshly initialised.

    Raises:
        ValueError: listing missing and leftover keys; only the head may differ.
    """
    head = f"{model.pretrained_cfg['classifier']}."
    found, expected = network_state_dict(state_dict), model.state_dict()
    own_head = {key: value for key, value in expected.items() if key.startswith(head)}
    body, expected_body = ({key for key in keys if not key.startswith(head)} for keys in (found, expected))
    problems = [
        f"{what}: {', '.join(sorted(keys))}"
        for what, keys in (("missing keys", expected_body - body), ("leftover keys", body - expected_body))
        if keys
    ]
    if problems:
        raise ValueError(
            f"checkpoint: does not fit the model; {'; '.join(problems)}. "
            "Check that the checkpoint and the model name belong together"
        )
    return own_head | {key: value for key, value in found.items() if key in expected}
