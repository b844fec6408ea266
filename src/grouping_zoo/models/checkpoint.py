"""Weights of a checkpoint folder under a network's own names, checks that they fit, and weights of a backbone.

The folder of an image network holds its tensors under `model.`, and a segmentation head beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

NETWORK_PREFIX = "model."
SEGMENTATION_PREFIX = "segmentation_head."
VISION_PREFIX = "vision."  # of a network with a text tower beside it


def network_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the image network itself under its own names.

    Args:
        state_dict: of a checkpoint folder, of a vision tower with its text tower, or of the network alone, which comes
            back as it is.

    Returns:
        the same tensors without the prefix and without a segmentation head or text tower; any other key is left for
        the caller's check to list.
    """
    for tower in (NETWORK_PREFIX + VISION_PREFIX, VISION_PREFIX):
        if any(key.startswith(tower) for key in state_dict):
            return {key.removeprefix(tower): value for key, value in state_dict.items() if key.startswith(tower)}
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
        model: the timm network to load into; its position embedding may have another size.

    Returns:
        the network's tensors; those of a head that the checkpoint does not have are the model's own, freshly
        initialised.

    Raises:
        ValueError: listing missing and leftover keys; only the head may differ.
    """
    return fitted(network_state_dict(state_dict), model)


def fitted(found: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Tensors for a network's strict loading; see `checkpoint_filter_fn`.

    Args:
        found: tensors under the network's names.
        model: the timm network to load into.

    Raises:
        ValueError: listing missing and leftover keys, and keys of another shape; only the head may differ.
    """
    cfg, expected = model.pretrained_cfg, model.state_dict()
    head = f"{cfg['classifier']}."
    check_keys(*([key for key in keys if not key.startswith(head)] for keys in (found, expected)))
    own_head = {key: value for key, value in expected.items() if key.startswith(head)}
    taken = own_head | {key: value for key, value in found.items() if key in expected}
    if "pos_embed" in taken:
        resize_pos_embed(taken, "pos_embed", model)
    check_shapes(taken, expected, adapted_by_timm=(head, f"{cfg['first_conv']}."))
    return taken


def problems_of_keys(**keys: Iterable[str]) -> str:
    """Sorted keys by what is wrong with them, `problems_of_keys(missing=..., leftover=...)`; empty for none."""
    return "; ".join(f"{what} keys: {', '.join(sorted(names))}" for what, names in keys.items() if names)


def check_keys(found: Iterable[str], expected: Iterable[str]) -> None:
    """Checks that a checkpoint has the keys of a model.

    Raises:
        ValueError: listing every key that is missing or left over.
    """
    found, expected = set(found), set(expected)
    if problems := problems_of_keys(missing=expected - found, leftover=found - expected):
        raise ValueError(
            f"checkpoint: does not fit the model; {problems}. Check that the checkpoint and the model name belong "
            "together"
        )


def check_shapes(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], adapted_by_timm: tuple[str, ...] = ()
) -> None:
    """Checks that tensors have the shapes of a model's.

    Args:
        found: tensors by name.
        expected: the model's.
        adapted_by_timm: beginnings of the names that timm fits to another number of channels or classes.

    Raises:
        ValueError: listing those of another shape.
    """
    wrong = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(found.keys() & expected.keys())
        if found[key].shape != expected[key].shape and not key.startswith(adapted_by_timm)
    ]
    if wrong:
        raise ValueError(f"checkpoint: keys of another shape: {', '.join(wrong)}")


def resize_pos_embed(state_dict: dict[str, Tensor], key: str, model: Any) -> None:
    """Resizes a square position embedding (1, N, C) in place to the model's patch grid, bicubically.

    Raises:
        ValueError: of one that is not square.
    """
    pos_embed, grid = state_dict[key], list(model.patch_embed.grid_size)
    if pos_embed.shape[1] == grid[0] * grid[1]:
        return
    side = round(pos_embed.shape[1] ** 0.5)
    if side**2 != pos_embed.shape[1]:
        raise ValueError(
            f"checkpoint: pos_embed holds {pos_embed.shape[1]} positions, which are no square grid to resize; "
            "create the model with the img_size it was trained at"
        )
    state_dict[key] = resample_abs_pos_embed(pos_embed, grid, [side, side], num_prefix_tokens=0, antialias=False)


# --- a backbone's weights -------------------------------------------------------------------------------------------

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
    """Copies a timm model's weights into the parts of a network that have the same names; all of them must be there.

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
    # torchvision's older files have no counters, which play no part without a cumulative average.
    missing = [name for name in wanted if name not in source and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"pretrained_backbone: expected all {len(wanted)} weights of the stem and stages, got {described}, where "
            f"{len(missing)} are missing, first {missing[0]!r}; name a model with the same stem and blocks"
        )
    for name in wanted.keys() & source.keys():
        if source[name].shape != wanted[name].shape:
            raise ValueError(
                f"pretrained_backbone: {name}: expected shape {tuple(wanted[name].shape)}, got "
                f"{tuple(source[name].shape)} of {described}; name a model with the same stem and blocks"
            )
        wanted[name].copy_(source[name])
