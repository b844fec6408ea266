"""The network whose features self-supervised objectives compare, and its inputs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from grouping_zoo.models.family import extra_inputs


def feature_width(network: Any) -> int:
    """Width C of the features (B, C) of a timm model without head.

    timm names it `head_hidden_size` where further layers follow the pooling.
    """
    return getattr(network, "head_hidden_size", None) or network.num_features


def view_inputs(network: nn.Module, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Keyword arguments of a network for each view, beside the images.

    Args:
        network: a timm model.
        batch: "views", tensors (B, 3, H, W), and under the name of an extra input of the network as many of its own.
            The network makes the extra inputs that are not given.
    """
    names = [name for name in extra_inputs(network) if name in batch]
    return [{name: batch[name][view] for name in names} for view in range(len(batch["views"]))]
