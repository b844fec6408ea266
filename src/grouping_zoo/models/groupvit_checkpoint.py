"""Key names of GroupViT checkpoints: the original `.pth`, transformers' `GroupViTModel` and this package's own.

The tables map every foreign key to one of `ImageTextModel`; a key that no line maps is an error, never dropped.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grouping_zoo.models.checkpoint import fitted, network_state_dict

# Names inside a grouping block, the same in both foreign formats.
_GROUPING = {
    "norm_tokens": "norm_groups",
    "mlp_inter": "mixer",
    "norm_post_tokens": "norm_mixed",
    "norm_x": "norm_segments",
    "pre_assign_attn": "cross_attention",
    "assign": "assignment",
    "norm_new_x": "norm_output",
    "mlp_channels": "mlp",
}
_GROUPING_NAMES = "|".join(sorted(_GROUPING, key=len, reverse=True))
_WB = r"(weight|bias)"

# Patterns of the original checkpoints; a name in <> is looked up in `_GROUPING` or `_TOWERS`.
ORIGINAL_KEYS: list[tuple[str, str]] = [
    (r"(logit_scale|multi_label_logit_scale)", r"\1"),
    (r"img_encoder\.(pos_embed|(?:patch_embed\.(?:proj|norm)|norm)\.(?:weight|bias))", r"vision.\1"),
    (r"img_encoder\.layers\.(\d+)\.group_token", r"vision.stages.\1.group_tokens"),
    (
        r"img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.((?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias))",
        r"vision.stages.\1.blocks.\2.\3",
    ),
    (r"img_encoder\.layers\.(\d+)\.group_projector\.0\." + _WB, r"vision.stages.\1.group_projector.norm.\2"),
    (
        r"img_encoder\.layers\.(\d+)\.group_projector\.1\.(fc[12])\." + _WB,
        r"vision.stages.\1.group_projector.mixer.\2.\3",
    ),
    (rf"img_encoder\.layers\.(\d+)\.downsample\.({_GROUPING_NAMES})\.(.+)", r"vision.stages.\1.grouping.<\2>.\3"),
    (r"text_encoder\.positional_embedding", r"text.pos_embed"),
    (r"text_encoder\.token_embedding\.weight", r"text.token_embedding.weight"),
    (r"text_encoder\.ln_final\." + _WB, r"text.norm.\1"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.attn\.in_proj_" + _WB, r"text.blocks.\1.attn.qkv.\2"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.attn\.out_proj\." + _WB, r"text.blocks.\1.attn.proj.\2"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.ln_([12])\." + _WB, r"text.blocks.\1.norm\2.\3"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\." + _WB, r"text.blocks.\1.mlp.fc1.\2"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\." + _WB, r"text.blocks.\1.mlp.fc2.\2"),
    (r"(img|text)_projector\.linear_hidden\.0\." + _WB, r"<\1>_projector.fc1.\2"),
    (r"(img|text)_projector\.linear_hidden\.1\.(.+)", r"<\1>_projector.norm.\2"),
    (r"(img|text)_projector\.linear_out\." + _WB, r"<\1>_projector.fc2.\2"),
]

# Patterns of transformers' GroupViTModel; q, k and v are joined afterwards.
TRANSFORMERS_KEYS: list[tuple[str, str]] = [
    (r"logit_scale", r"logit_scale"),
    (r"vision_model\.embeddings\.position_embeddings", r"vision.pos_embed"),
    (r"vision_model\.embeddings\.patch_embeddings\.projection\." + _WB, r"vision.patch_embed.proj.\1"),
    (r"vision_model\.embeddings\.layernorm\." + _WB, r"vision.patch_embed.norm.\1"),
    (r"vision_model\.layernorm\." + _WB, r"vision.norm.\1"),
    (r"vision_model\.encoder\.stages\.(\d+)\.group_token", r"vision.stages.\1.group_tokens"),
    (r"vision_model\.encoder\.stages\.(\d+)\.group_projector\.0\." + _WB, r"vision.stages.\1.group_projector.norm.\2"),
    (
        r"vision_model\.encoder\.stages\.(\d+)\.group_projector\.1\.(fc[12])\." + _WB,
        r"vision.stages.\1.group_projector.mixer.\2.\3",
    ),
    (
        r"vision_model\.encoder\.stages\.(\d+)\.downsample\.pre_assign_attn\.attn\.out_proj\." + _WB,
        r"vision.stages.\1.grouping.<pre_assign_attn>.attn.proj.\2",
    ),
    (
        rf"vision_model\.encoder\.stages\.(\d+)\.downsample\.({_GROUPING_NAMES})\.(.+)",
        r"vision.stages.\1.grouping.<\2>.\3",
    ),
    (r"vision_model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", r"vision.stages.\1.blocks.\2.[\3]"),
    (r"text_model\.embeddings\.token_embedding\.weight", r"text.token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", r"text.pos_embed"),
    (r"text_model\.final_layer_norm\." + _WB, r"text.norm.\1"),
    (r"text_model\.encoder\.layers\.(\d+)\.(.+)", r"text.blocks.\1.[\2]"),
    (r"(visual|text)_projection\.0\." + _WB, r"<\1>_projector.fc1.\2"),
    (r"(visual|text)_projection\.1\.(.+)", r"<\1>_projector.norm.\2"),
    (r"(visual|text)_projection\.3\." + _WB, r"<\1>_projector.fc2.\2"),
]
# Position indices that older transformers releases saved as a buffer; they are no weights.
TRANSFORMERS_BUFFERS = {"text_model.embeddings.position_ids"}

_TOWERS = {"img": "image", "visual": "image", "text": "text"}
_LAYER = [
    (r"self_attn\.([qkv])_proj\.", r"attn.\1."),
    (r"self_attn\.out_proj\.", "attn.proj."),
    (r"layer_norm([12])\.", r"norm\1."),
    (r"mlp\.(fc[12])\.", r"mlp.\1."),
]


def detect_format(keys: Iterable[str]) -> str:
    """Tells a checkpoint's format by its keys.

    Returns:
        "original", "transformers", "zoo" (this package's two towers, possibly under a `model.` prefix) or "timm"
        (the vision tower alone, likewise).

    Raises:
        ValueError: if the keys fit none.
    """
    keys = list(keys)
    for prefix, name in (
        ("img_encoder.", "original"),
        ("vision_model.", "transformers"),
        ("model.vision.", "zoo"),
        ("vision.", "zoo"),
        ("stages.", "timm"),
        ("model.stages.", "timm"),
    ):
        if any(key.startswith(prefix) for key in keys):
            return name
    raise ValueError(f"checkpoint: no key of a GroupViT checkpoint among {sorted(keys)[:5]}; is it another model's?")


def convert_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Any two-tower GroupViT checkpoint to the keys of `ImageTextModel`.

    Args:
        state_dict: the tensors of an original `.pth` (its "model" entry), of transformers' `GroupViTModel`, or of
            this package.

    Returns:
        the same tensors under this package's names.

    Raises:
        ValueError: listing the keys that no rule maps.
    """
    name = detect_format(state_dict)
    if name == "zoo":
        return {key.removeprefix("model."): value for key, value in state_dict.items()}
    if name == "timm":
        return {f"vision.{key}": value for key, value in network_state_dict(state_dict).items()}
    table = ORIGINAL_KEYS if name == "original" else TRANSFORMERS_KEYS
    converted: dict[str, Tensor] = {}
    leftover = []
    for key, value in state_dict.items():
        if key in TRANSFORMERS_BUFFERS:
            continue
        new_key = _rename(key, table)
        if new_key is None:
            leftover.append(key)
        else:
            # The original projectors are 1x1 convolutions over one position.
            squeeze = "_projector.fc" in new_key and value.ndim == 3
            converted[new_key] = value.squeeze(-1) if squeeze else value
    if leftover:
        raise ValueError(f"checkpoint: leftover keys that fit no part of the {name} GroupViT: {', '.join(leftover)}")
    if name == "transformers":
        converted = _join_qkv(converted)
        # That class has one temperature; the multi-label loss starts from the same.
        converted.setdefault("multi_label_logit_scale", converted["logit_scale"].clone())
    return converted


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook: the vision tower's tensors of any GroupViT checkpoint, under the timm model's names.

    Args:
        state_dict: see `convert_state_dict`.
        model: the timm GroupViT to load into; its position embedding may have another size.

    Raises:
        ValueError: listing missing and leftover keys; only the head, which checkpoints of two towers lack, and the
            stages a `features_only` model has pruned, may differ.
    """
    prefix = "vision."
    converted = convert_state_dict(state_dict)
    vision = {key.removeprefix(prefix): value for key, value in converted.items() if key.startswith(prefix)}
    return fitted(vision, model)


def _rename(key: str, table: list[tuple[str, str]]) -> str | None:
    for pattern, replacement in table:
        match = re.fullmatch(pattern, key)
        if match is None:
            continue
        new_key = match.expand(replacement)
        new_key = re.sub(r"<(\w+)>", lambda m: _GROUPING.get(m[1]) or _TOWERS[m[1]], new_key)
        return _rename_layer(new_key)
    return None


def _rename_layer(key: str) -> str | None:
    """Resolves the bracketed rest of a transformers layer's key."""
    match = re.fullmatch(r"(.+)\[(.+)\]", key)
    if match is None:
        return key
    for pattern, replacement in _LAYER:
        rest, count = re.subn(rf"^{pattern}", replacement, match[2])
        if count:
            return match[1] + rest
    return None


def _join_qkv(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacks each block's `attn.q`, `attn.k` and `attn.v` into `attn.qkv`."""
    joined = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"(.+\.blocks\.\d+\.attn)\.([qkv])\.(weight|bias)", key)
        if match is None:
            joined[key] = value
        elif match[2] == "q":
            joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(
                [state_dict[f"{match[1]}.{part}.{match[3]}"] for part in "qkv"]
            )
    return joined
