"""One or three grouping blocks from a checkpoint with two: which parameters go where.

Sharma (2023), section 5.13: transformer blocks keep their order over all stages; a grouping block that is missing
in the checkpoint starts from its last one; of more group tokens the first ones are taken.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn


def adapt_stages(state_dict: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Rearranges a checkpoint's stages for a model with other stages.

    Args:
        state_dict: of an `ImageTextModel` with as many transformer blocks in all.
        model: the `ImageTextModel` to load into.

    Returns:
        tensors for `model.load_state_dict`, and the names of those for which the checkpoint has nothing that fits,
        which stay as `model` has them.

    Raises:
        ValueError: if the number of transformer blocks differs.
    """
    source_blocks = _block_names(state_dict)
    own = model.state_dict()
    target_blocks = _block_names(own)
    if len(source_blocks) != len(target_blocks):
        raise ValueError(
            f"model.model_args.depths: expected {len(source_blocks)} transformer blocks in all, as the checkpoint has, "
            f"got {len(target_blocks)}"
        )
    block_source = dict(zip(target_blocks, source_blocks, strict=True))
    last_grouping = max(int(match[1]) for key in state_dict if (match := re.match(_GROUPING_STAGE, key)))
    adapted, kept = {}, []
    for key, tensor in own.items():
        source = state_dict.get(_source_name(key, block_source, last_grouping))
        if source is None or any(a < b for a, b in zip(source.shape, tensor.shape, strict=True)):
            kept.append(key)
            adapted[key] = tensor
        else:
            adapted[key] = source[tuple(slice(size) for size in tensor.shape)]
    return adapted, kept


_BLOCK = r"vision\.stages\.(\d+)\.blocks\.(\d+)"
_GROUPING_STAGE = r"vision\.stages\.(\d+)\.grouping\."


def _block_names(keys: Mapping[str, Tensor]) -> list[str]:
    found = {(int(match[1]), int(match[2])) for key in keys if (match := re.match(_BLOCK, key))}
    return [f"vision.stages.{stage}.blocks.{block}" for stage, block in sorted(found)]


def _source_name(key: str, block_source: Mapping[str, str], last_grouping: int) -> str:
    match = re.match(_BLOCK, key)
    if match:
        return block_source[match[0]] + key[match.end() :]
    match = re.match(r"vision\.stages\.(\d+)\.(.+)", key)
    if match:
        return f"vision.stages.{min(int(match[1]), last_grouping)}.{match[2]}"
    return key
