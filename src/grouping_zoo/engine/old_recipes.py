"""Recipes of version 0.1.0, whose `evaluation:` section had other keys for each task.

| then | now |
|---|---|
| dino, moco_v3: `test_images`, `train_images` | `tasks: [knn]`, `images`, `train_images` |
| dino, moco_v3: `neighbours`, `temperature` | gone: `knn` has 20 neighbours, and logs other numbers of them too |
| supervised: `images` | `tasks: [top1]`, or `[segmentation]` with `target: mask` |
| image_text: `images` | `tasks: [zero-shot-cls, zero-shot-seg, hierarchy]`, `data: scenes` for captions of others |
| image_text: all other keys | section `zero_shot:` |
"""

from collections.abc import Mapping
from typing import Any

GONE = ("test_images", "neighbours", "temperature")
ZERO_SHOT = (
    "class_names",
    "templates",
    "background_threshold",
    "top_classes",
    "masks",
    "background_similarity",
    "multi_label_scale",
)


def with_current_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the `evaluation:` section of a recipe where it names no tasks; another one is left as it is."""
    old = settings.get("evaluation")
    if not isinstance(old, Mapping) or "tasks" in old or "base" in settings:  # there were no bases
        return dict(settings)
    data, is_text = settings.get("data") or {}, settings.get("task") == "image_text"
    kept = {key: value for key, value in old.items() if key not in (*GONE, *ZERO_SHOT) and value is not None}
    images = kept.pop("images", 0) or old.get("test_images", 0)
    if images:
        kept |= {"tasks": _tasks(settings), "images": images}
        if data.get("split") and not is_text:
            kept["train_split"] = data["split"]
        if is_text and data.get("source", "scenes") != "scenes":
            kept["data"] = "digits" if data.get("objects") == "digits" else "scenes"
    else:
        kept.pop("train_images", None)
        kept.pop("split", None)
    zero_shot = {"zero_shot": {key: old[key] for key in ZERO_SHOT if key in old}}
    return {**settings, "evaluation": kept, **(zero_shot if is_text else {})}


def _tasks(settings: Mapping[str, Any]) -> list[str]:
    if settings.get("task") == "image_text":
        return ["zero-shot-cls", "zero-shot-seg", "hierarchy"]
    if settings.get("task") == "supervised":
        return ["segmentation" if settings.get("target") == "mask" else "top1"]
    return ["knn"]
