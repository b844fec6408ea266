"""Key names of CAST checkpoints: the original `.pth` and `.pth.tar`, and this package's own.

The tables map every foreign key to one of `CAST`; a key that no line maps is an error, never dropped.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from grouping_zoo.models.checkpoint import NETWORK_PREFIX, VISION_PREFIX, fitted, network_state_dict

MoCoEncoder = Literal["base", "momentum"]
MOCO_ENCODERS = ("base", "momentum")

# Names inside a graph pooling.
_POOLING = {
    "centroid_fc.bias": "bias",
    "centroid_fc.norm": "norm",
    "centroid_fc.attn": "attn",
    "fc1.0": "norm1",
    "fc1.1": "fc1",
    "fc2.0": "norm2",
    "fc2.1": "fc2",
}
_POOLING_NAMES = "|".join(re.escape(name) for name in _POOLING)
# What MoCo-v3 puts in place of the head: three linear layers, each followed by a BatchNorm.
_MOCO_PROJECTOR = re.compile(r"head\.\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)")
_MOCO_KEY = re.compile(r"(?:module\.)?(?:(base|momentum)_encoder|predictor)\.(.+)")
# The blocks of each stage are also registered as one list; loading the original code, the stage's entries win.
_BLOCK_ALIAS = re.compile(r"blocks\.\d+\..+")
_STAGE_BLOCK = re.compile(r"blocks(\d)\.(\d+)\.(.+)")
_STAGE_POOLING = re.compile(rf"pool(\d)\.pool_block\.({_POOLING_NAMES})((?:\..+)?)")
_UNCHANGED = re.compile(r"cls_token|pos_embed|patch_embed\.proj\..+|(norm|head)\.(weight|bias)")
_FUSION = {"block_fusion.proj_blocks.0.norm.": "fusion.norm.", "block_fusion.proj_blocks.2.": "fusion.fc."}


def detect_format(keys: Iterable[str]) -> str:
    """Tells a checkpoint's format by its keys.

    Returns:
        "moco" (an original snapshot of MoCo training), "original" (the network alone, as DeiT-style training and
        conversions save it), "folder" (a checkpoint folder of this package, with or without a text tower) or "timm"
        (its network alone).

    Raises:
        ValueError: if the keys fit none.
    """
    keys = list(keys)
    if any(_MOCO_KEY.fullmatch(key) for key in keys):
        return "moco"
    if any(key.removeprefix("module.").startswith("pool1.pool_block.") for key in keys):
        return "original"
    for name, prefix in (("folder", NETWORK_PREFIX + VISION_PREFIX), ("folder", NETWORK_PREFIX), ("timm", "")):
        if any(key.startswith(f"{prefix}stages.0.pooling.") for key in keys):
            return name
    raise ValueError(f"checkpoint: no key of a CAST checkpoint among {sorted(keys)[:5]}; is it another model's?")


def moco_encoder(state_dict: Mapping[str, Any], encoder: MoCoEncoder = "base") -> dict[str, Tensor]:
    """One encoder of a MoCo-v3 snapshot, without its projector; the predictor and the other encoder are left.

    Args:
        state_dict: tensors under `module.base_encoder.`, `module.momentum_encoder.` and `module.predictor.`.
        encoder: "base", which the official evaluations use, or "momentum".

    Raises:
        ValueError: on an encoder that is not there, or keys that belong to no part of MoCo-v3.
    """
    if encoder not in MOCO_ENCODERS:
        raise ValueError(f"encoder: expected one of {MOCO_ENCODERS}, got {encoder!r}")
    matches = {key: _MOCO_KEY.fullmatch(key) for key in state_dict}
    leftover = sorted(key for key, match in matches.items() if match is None)
    if leftover:
        raise ValueError(f"checkpoint: leftover keys that fit no part of a MoCo snapshot: {', '.join(leftover)}")
    picked = {match[2]: state_dict[key] for key, match in matches.items() if match is not None and match[1] == encoder}
    if not picked:
        raise ValueError(f"checkpoint: a MoCo snapshot without {encoder}_encoder; choose another of {MOCO_ENCODERS}")
    return {key: value for key, value in picked.items() if not _MOCO_PROJECTOR.fullmatch(key)}


def convert_state_dict(state_dict: Mapping[str, Any], encoder: MoCoEncoder = "base") -> dict[str, Tensor]:
    """Any CAST checkpoint to the keys of `CAST`.

    Args:
        state_dict: the tensors of an original file (its "state_dict" or "model" entry) or of this package.
        encoder: which network of a MoCo snapshot; see `moco_encoder`.

    Returns:
        the same tensors under this package's names.

    Raises:
        ValueError: listing the keys that no rule maps.
    """
    name = detect_format(state_dict)
    if name in ("folder", "timm"):
        return network_state_dict(state_dict)
    if name == "moco":
        state_dict = moco_encoder(state_dict, encoder)
    original = {key.removeprefix("module."): value for key, value in state_dict.items()}
    first_block = _first_blocks(original)
    converted: dict[str, Tensor] = {}
    leftover = []
    for key, value in original.items():
        if key == "pe_token" or (_BLOCK_ALIAS.fullmatch(key) and first_block):
            continue
        new_key = _rename(key, first_block)
        if new_key is None:
            leftover.append(key)
        else:
            converted[new_key] = value
    if leftover:
        raise ValueError(f"checkpoint: leftover keys that fit no part of the original CAST: {', '.join(leftover)}")
    if "pe_token" in original and "cls_token" in converted:
        # The class token's position, zero as published, is added to it once and for all.
        converted["cls_token"] = converted["cls_token"] + original["pe_token"]
    return converted


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any], model: nn.Module, encoder: MoCoEncoder = "base"
) -> dict[str, Tensor]:
    """timm's hook: the tensors of any CAST checkpoint under the timm model's names.

    Args:
        state_dict: see `convert_state_dict`.
        model: the timm CAST to load into; its position code may be for another image size.
        encoder: which network of a MoCo snapshot; see `moco_encoder`.

    Raises:
        ValueError: listing missing and leftover keys; only the head may differ.
    """
    return fitted(convert_state_dict(state_dict, encoder), model)


def _first_blocks(keys: Iterable[str]) -> dict[str, int]:
    """The lowest block number of each stage: some variants number the blocks through, some within the stage."""
    first: dict[str, int] = {}
    for match in filter(None, map(_STAGE_BLOCK.fullmatch, keys)):
        first[match[1]] = min(int(match[2]), first.get(match[1], int(match[2])))
    return first


def _rename(key: str, first_block: Mapping[str, int]) -> str | None:
    if _UNCHANGED.fullmatch(key):
        return key
    if match := _STAGE_BLOCK.fullmatch(key):
        return f"stages.{int(match[1]) - 1}.blocks.{int(match[2]) - first_block[match[1]]}.{match[3]}"
    if match := _STAGE_POOLING.fullmatch(key):
        return f"stages.{int(match[1]) - 1}.pooling.{_POOLING[match[2]]}{match[3]}"
    for prefix, new_prefix in _FUSION.items():
        if key.startswith(prefix):
            return new_prefix + key.removeprefix(prefix)
    return None
