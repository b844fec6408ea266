"""Starts a network's convolution stages from a timm model's weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

BackboneSource = str | Path | Mapping[str, Tensor]


def asked_for(source: BackboneSource | None, pretrained: bool, arguments: Mapping[str, Any]) -> BackboneSource | None:
    """The backbone's weights that a caller of `timm.create_model` asks for.

    Args:
        source: the argument `pretrained_backbone`.
        pretrained: whether the whole network's weights are loaded, which include the backbone's.
        arguments: the others. Under `pretrained_model_args` timm passes those of a checkpoint's config.json, which
            tell how that network once started and may be untrusted: they load nothing.
    """
    of_checkpoint = arguments.get("pretrained_model_args") or {}
    return None if pretrained or "pretrained_backbone" in of_checkpoint else source


@torch.no_grad()
def load_backbone(network: nn.Module, source: BackboneSource, prefixes: Sequence[str], **kwargs: Any) -> None:
    """Copies a timm model's weights into the parts of a network that have the same names; nothing of them may lack.

    Args:
        network: changed in place.
        source: a timm name with pretrained weights ("resnet50", "hf_hub:..."), a local folder that timm can open, or
            weights by name.
        prefixes: beginnings of the names to copy.
        **kwargs: what the timm model must be created with, such as `in_chans`.

    Raises:
        ValueError: if the source has no weights for a part, or weights of another shape.
    """
    described = "the given weights" if isinstance(source, Mapping) else repr(str(source))
    if not isinstance(source, Mapping):
        name = f"local-dir:{source}" if Path(source).is_dir() else str(source)
        source = timm.create_model(name, pretrained=True, num_classes=0, **kwargs).state_dict()
    wanted = {name: value for name, value in network.state_dict().items() if name.startswith(tuple(prefixes))}
    # torchvision's older files lack the counters, which play no part without a cumulative average.
    missing = [name for name in wanted if name not in source and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"pretrained_backbone: expected all {len(wanted)} weights of the stem and stages, got {described}, where "
            f"{len(missing)} of them lack, first {missing[0]!r}; name a model with the same stem and blocks"
        )
    for name in wanted.keys() & source.keys():
        if source[name].shape != wanted[name].shape:
            raise ValueError(
                f"pretrained_backbone: {name}: expected shape {tuple(wanted[name].shape)}, got "
                f"{tuple(source[name].shape)} of {described}; name a model with the same stem and blocks"
            )
        wanted[name].copy_(source[name])
