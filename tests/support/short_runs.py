"""A run of a few updates of each task, with a network small enough for a second or two."""

import json
from pathlib import Path
from typing import Any

from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import Recipe, load_recipe

TINY_PGT = dict(embed_dim=12, depths=[1, 1], group_dims=[4, 6], num_heads=2, num_groups=4, feature_dim=16)
TINY_CAST = dict(embed_dim=16, depths=[1, 1], num_heads=2, num_clusters=[6, 3], stem_strides=[2, 2], img_size=32)
STEM = dict(stem_type="deep", stem_width=4)
TINY_VT_RESNET = dict(layers=[1, 1], channels=[8, 12], map_dim=16, num_tokens=4, token_dim=16, **STEM)
TINY_RESNET = dict(layers=[1, 1, 1, 1], channels=[4, 8, 12, 16], **STEM)
TINY_VT_FPN = dict(backbone_args=TINY_RESNET, dim=8, num_tokens=3, token_dim=16, head_dim=12)

SHORT = {
    "data.length": 40,
    "schedule.warmup_steps": 1,
    "run.steps": 4,
    "run.batch_size": 8,
    "run.num_workers": 0,
    "run.log_every": 1,
    "run.validate_every": None,
}
SMALL_IMAGES = {"data.image_size": 32, "evaluation.train_images": 24, "evaluation.images": 12}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "dino": (
        "pgt_nano_photos",
        {
            "model.model_args": TINY_PGT,
            "views.local_size": 20,
            "views.num_local": 1,
            "objective.num_prototypes": 8,
            "objective.hidden_dim": 16,
            "objective.bottleneck_dim": 4,
            **SMALL_IMAGES,
        },
    ),
    "moco_v3": (
        "cast_nano_scenes",
        {"model.model_args": TINY_CAST, "objective.hidden_dim": 16, "objective.out_dim": 8, **SMALL_IMAGES},
    ),
    "class": ("vt_resnet_nano_scenes", {"model.model_args": TINY_VT_RESNET, "evaluation.images": 12}),
    "mask": ("vt_fpn_nano_scenes", {"model.model_args": TINY_VT_FPN, "evaluation.images": 12}),
    "image_text": ("groupvit_nano_scenes_quick", {"evaluation.images": 4}),
    "cast_text": ("cast_nano_scenes_text", {"evaluation.images": 4}),
    "pgt_text": ("pgt_nano_scenes_text", {"evaluation.images": 4}),
}
"""Packaged recipe and the settings that make it short, by task; "class" and "mask" are the targets of "supervised",
"cast_text" and "pgt_text" are "image_text" with other towers."""


def short(name: str, output_dir: Path, *overrides: str) -> Any:
    """The recipe of a short run."""
    recipe, changes = RUNS[name]
    settings = [f"{key}={json.dumps(value)}" for key, value in (SHORT | changes).items()]
    return load_recipe(recipe, [*settings, f"run.output_dir={output_dir}", *overrides])


def train_interrupted(recipe: Recipe, updates: int) -> None:
    """Trains until an error in the update after so many."""
    build, calls = recipe.build, iter(range(updates))

    def interrupt(objective: Any, inputs: Any) -> None:
        if next(calls, None) is None:
            raise InterruptedError

    def build_interrupted() -> Any:
        task = build()
        task.objective.register_forward_pre_hook(interrupt)
        return task

    recipe.build = build_interrupted  # type: ignore[method-assign]
    try:
        train(recipe, progress_bar=False)
    except InterruptedError:
        return
    raise AssertionError(f"expected an interruption after {updates} updates")
