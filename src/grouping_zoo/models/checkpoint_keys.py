"""Key names of an image network's checkpoint folder: its tensors under `model.`, a segmentation head beside it."""

from collections.abc import Mapping

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
