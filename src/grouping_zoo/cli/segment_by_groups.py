"""`grouping-zoo segment` with a model without text: the groups of a photo, level by level."""

import argparse
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from grouping_zoo.cli.segment import Finding
from grouping_zoo.viz import pictures
from grouping_zoo.viz.attention import attention_picture
from grouping_zoo.viz.hierarchy import heads_picture, hierarchy_picture, shown_levels
from grouping_zoo.viz.photo_grouping import PhotoGrouper, PhotoGrouping

GROUPS, ATTENTION = "_groups.png", "_attention.png"
TEXT_OPTIONS = ("classes", "threshold", "masks", "window", "stride")
# What a call of `forward_grouping` may change, by the name of the option that asks for it. Numbers that are left out
# are the network's own, an attribute of the same name; layer and head have defaults.
NUMBER_OPTIONS = {"clusters": "num_clusters", "groups": "num_groups"}
PLACE_OPTIONS = {"layer": "layer", "head": "head"}
CALL_OPTIONS = NUMBER_OPTIONS | PLACE_OPTIONS
MAX_GROUPS = 4096  # of each head: more fit neither a picture nor, with a photo's many tokens, the memory


class GroupsReader:
    """Groups photos; see `grouping_zoo.cli.segment.PhotoReader`.

    Args:
        options: of the command.
        model: a transformers model around a network with `forward_grouping`.
        processor: its image processor.

    Raises:
        ValueError: if the model makes no groups, or on a setting that it does not have.
    """

    endings = re.compile(r"_(groups|attention|(head\d+_)?level\d+_labels)\.png$")

    def __init__(self, options: argparse.Namespace, model: Any, processor: Any) -> None:
        network = getattr(model, "model", None)
        if not hasattr(network, "forward_grouping"):
            raise ValueError(f"{options.model}: {type(model).__name__} makes no groups; choose from: grouping-zoo list")
        self.network: Any = network
        self.level = options.level
        known = inspect.signature(self.network.forward_grouping).parameters
        _check_options(options, known)
        self.arguments = {
            argument: getattr(options, option)
            for option, argument in CALL_OPTIONS.items()
            if getattr(options, option) is not None
        }
        size = options.size or min(model.config.pretrained_cfg["input_size"][1:])
        own = {name: getattr(self.network, name) for name in NUMBER_OPTIONS.values() if name in known}
        own |= {name: known[name].default for name in PLACE_OPTIONS.values() if name in known}
        self.settings = {"size": size, "level": self.level} | own | self.arguments
        self.grouper = PhotoGrouper(group=self._group, image_processor=processor, size=size, device=options.device)

    def _group(self, inputs: Mapping[str, Any]) -> Any:
        others = {key: value for key, value in inputs.items() if key != "pixel_values"}
        return self.network.forward_grouping(inputs["pixel_values"], **others, **self.arguments)

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> Finding:
        """Groups a photo."""
        found, inputs = self.grouper(photo)
        attention = None
        if hasattr(self.network, "token_attention"):
            attention = self.network.token_attention(inputs["pixel_values"])[0].float().cpu().numpy()  # (L, h, w)
        levels = self._levels(found)
        return Finding(
            _record(found, levels),
            _words(found),
            (GROUPS,) + (ATTENTION,) * (attention is not None),
            lambda target: self._save(target, found, levels, attention),
        )

    def _levels(self, found: PhotoGrouping) -> list[int]:
        if self.level is None:
            return shown_levels(found)
        count = found.grouping.num_levels
        if not -count <= self.level < count:
            raise ValueError(f"--level: expected -{count} to {count - 1}, got {self.level}")
        return [self.level % count]

    def _save(self, target: Path, found: PhotoGrouping, levels: Sequence[int], attention: np.ndarray | None) -> None:
        folder, name = target.parent, target.name
        picture = hierarchy_picture(found, levels) if found.num_heads == 1 else heads_picture(found, levels[-1])
        picture.save(folder / f"{name}{GROUPS}")
        if attention is not None:
            attention_picture(found.picture, attention).save(folder / f"{name}{ATTENTION}")
        for head, one in _by_head(found).items():
            for level in levels:
                labels = one.full_labels(level)
                pictures.save_label_png(labels, folder / f"{name}{head}_level{level}_labels.png")


def _check_options(options: argparse.Namespace, known: Mapping[str, Any]) -> None:
    for option in TEXT_OPTIONS:
        if getattr(options, option) is not None:
            raise ValueError(
                f"--{option}: {options.model} has no text encoder, it groups but names nothing; leave it out, or "
                "choose a GroupViT checkpoint: grouping-zoo list"
            )
    if options.groups is not None and options.groups > MAX_GROUPS:
        raise ValueError(f"--groups: expected at most {MAX_GROUPS}, got {options.groups}; lower it")
    offered = [f"--{option}" for option, argument in CALL_OPTIONS.items() if argument in known]
    for option, argument in CALL_OPTIONS.items():
        if getattr(options, option) is not None and argument not in known:
            raise ValueError(
                f"--{option}: {options.model} has no such setting; leave it out"
                + f" (it has {', '.join(offered)})" * bool(offered)
            )


def _by_head(found: PhotoGrouping) -> dict[str, PhotoGrouping]:
    """The grouping of each head, by what file names call it: nothing if there is but one."""
    if found.num_heads == 1:
        return {"": found}
    return {f"_head{number}": found.head(number) for number in range(found.num_heads)}


def _record(found: PhotoGrouping, levels: Sequence[int]) -> dict[str, Any]:
    """What was found, as plain data."""
    heads = [{"levels": [_level_record(one, level) for level in levels]} for one in _by_head(found).values()]
    return {
        "image_size": {"width": found.full_size[0], "height": found.full_size[1]},
        "working_size": {"width": found.working_size[0], "height": found.working_size[1]},
        "groups_per_level": [found.grouping.num_groups(level) for level in range(found.grouping.num_levels)],
    } | (heads[0] if len(heads) == 1 else {"heads": heads})


def _level_record(found: PhotoGrouping, level: int) -> dict[str, Any]:
    shares = found.shares(level)
    record: dict[str, Any] = {"level": level, "groups": len(shares), "seen": int(np.count_nonzero(shares))}
    record["shares"] = [round(share, 6) for share in shares.tolist()]
    if level < found.grouping.num_levels - 1:
        record["parents"] = found.parents[level].tolist()
    return record


def _words(found: PhotoGrouping) -> str:
    tokens, *groups = (found.grouping.num_groups(level) for level in range(found.grouping.num_levels))
    what = "superpixels" if found.grouping.grid is None else "tokens"
    heads = f" in each of {found.num_heads} heads" * (found.num_heads > 1)
    return f"{tokens} {what} -> {' -> '.join(map(str, groups))} group{'s' * (groups[-1] != 1)}{heads}"
