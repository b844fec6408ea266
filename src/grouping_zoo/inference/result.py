"""Results of segmenting a photo: they describe, draw and save themselves."""

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grouping_zoo.group_tree import GroupTree
from grouping_zoo.grouping import Grouping
from grouping_zoo.label_maps import resize_labels_nearest
from grouping_zoo.output_files import all_or_nothing, output_stem, write_json
from grouping_zoo.viz.attention import attention_figure
from grouping_zoo.viz.hierarchy import heads_figure, hierarchy_figure
from grouping_zoo.viz.label_png import save_label_png
from grouping_zoo.viz.overlays import classes_figure, groups_figure
from grouping_zoo.viz.show import show_image
from grouping_zoo.viz.wording import counted, percent

# Ends of the names of all images that `Segmentation.save` writes.
IMAGE_SUFFIX = re.compile(r"_(groups|overlay|attention|labels|(head\d+_)?level\d+_labels)\.png$")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Provenance of a result: the image's file name, the model, the device, the version and all settings."""

    image: str | None
    model: str
    device: str
    version: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Segmentation(ABC):
    """Groups of one photo and, of models with text, the class of every pixel.

    Args:
        image: the photo, RGB, (W, H).
        preview: the photo with at most 2048 pixels a side, (w, h), which figures are drawn on.
        network_size: (width, height) that the network saw.
        grouping: soft groups of this one image, on the CPU.
        origin: its provenance.
    """

    image: Image.Image
    preview: Image.Image
    network_size: tuple[int, int]
    grouping: Grouping
    origin: Origin

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Name of each label."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for people."""

    @abstractmethod
    def _label_map(self) -> np.ndarray:
        """(h, w) label of each pixel of the preview."""

    @abstractmethod
    def _record(self) -> dict[str, Any]:
        """Plain data of the groups and classes."""

    @abstractmethod
    def _figures(self) -> dict[str, Callable[[], Image.Image]]:
        """Ends of the names of the figures -> functions that draw them; that to look at first comes first."""

    @abstractmethod
    def _label_images(self) -> dict[str, Callable[[], np.ndarray]]:
        """Ends of the names of the label images -> functions that make the label maps (H, W)."""

    @cached_property
    def trees(self) -> list[GroupTree]:
        """Hard groups of each grouping head, level by level."""
        heads = range(self.grouping.assignments[0].shape[1])
        return [
            GroupTree.of_grouping(self.grouping.head(index), self.network_size, self.preview.size) for index in heads
        ]

    @property
    def tree(self) -> GroupTree:
        """Hard groups, level by level.

        Raises:
            ValueError: where several heads group on their own; each has its tree in `trees`.
        """
        if len(self.trees) > 1:
            raise ValueError(
                f"head: {len(self.trees)} heads group the image on their own; choose one by head=, or take `trees` or "
                "`heads`"
            )
        return self.trees[0]

    @property
    def labels(self) -> np.ndarray:
        """Label of every pixel of the photo, (H, W) int32, an index into `names`."""
        return resize_labels_nearest(self._label_map().astype(np.int32), self.image.size)

    @property
    def fractions(self) -> dict[str, float]:
        """Fraction of the pixels that each label has, by its name; they sum to 1."""
        counts = np.bincount(self._label_map().ravel(), minlength=len(self.names))
        return dict(zip(self.names, (counts / counts.sum()).tolist(), strict=True))

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Pixels of each label that has any, by its name: (H, W) bool."""
        labels = self.labels
        return {self.names[label]: labels == label for label in np.unique(labels).tolist()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `save` writes it to the JSON file."""
        sizes = {"image_size": self.image.size, "working_size": self.network_size}
        return {
            "image": self.origin.image,
            **{name: {"width": width, "height": height} for name, (width, height) in sizes.items()},
            **self._record(),
            "model": self.origin.model,
            "device": self.origin.device,
            "version": self.origin.version,
            "settings": self.origin.settings,
        }

    def figure(self) -> Image.Image:
        """The figure to look at first."""
        return next(iter(self._figures().values()))()

    def show(self) -> None:
        """Show the figure by matplotlib."""
        show_image(self.figure())

    def save(self, folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
        """Write figures (PNG), label maps (PNG whose values are the labels) and `to_dict` (JSON): all or none.

        Args:
            folder: made if need be; files of the same names are overwritten.
            name: start of the files' names; by default the photo's file name without its ending, or "image".

        Returns:
            Paths of the figures; that to look at first comes first.

        Raises:
            OSError: if the folder cannot be written.
        """
        stem = output_stem(name or Path(self.origin.image or "image").stem)
        figures = self._figures()
        with all_or_nothing(Path(folder)) as unfinished:
            for suffix, draw in figures.items():
                draw().save(unfinished / f"{stem}{suffix}")
            for suffix, make in self._label_images().items():
                save_label_png(make(), unfinished / f"{stem}{suffix}")
            write_json(unfinished / f"{stem}.json", self.to_dict())
        return [Path(folder) / f"{stem}{suffix}" for suffix in figures]

    def _repr_png_(self) -> bytes:
        """The figure, for notebooks."""
        buffer = io.BytesIO()
        self.figure().save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.image.width}x{self.image.height} pixels: {self.summary}>"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NamedSegmentation(Segmentation):
    """Result of a model with text: every pixel has a class or is background; see `Segmentation`.

    Args:
        class_names: L names.
        class_map: (h, w) int64 of the preview; 0 is background, 1 + class elsewhere.
        group_map: (h, w) int64 of the preview, the most probable coarsest group of each pixel.
        scores: each class's best pixel, which is what the threshold is compared with.
        probabilities: of each class for the photo as a whole.
    """

    class_names: list[str]
    class_map: np.ndarray
    group_map: np.ndarray
    scores: list[float]
    probabilities: list[float]

    @property
    def names(self) -> list[str]:
        """Name of each label: background and the classes."""
        return ["background", *self.class_names]

    @property
    def summary(self) -> str:
        """Classes by their size, and the number of groups."""
        fractions = self.fractions
        background = fractions.pop("background")
        seen = sorted((name for name, fraction in fractions.items() if fraction), key=lambda name: -fractions[name])
        found = {name: fractions[name] for name in seen} | ({"background": background} if background else {})
        areas = ", ".join(f"{name} {percent(fraction)}" for name, fraction in found.items())
        return f"{areas}; {counted(self._groups_seen, 'group')}"

    @property
    def _groups_seen(self) -> int:
        return int(np.count_nonzero(np.bincount(self.group_map.ravel())))

    def _label_map(self) -> np.ndarray:
        return self.class_map

    def _record(self) -> dict[str, Any]:
        background, *fractions = self.fractions.values()
        classes = zip(self.class_names, fractions, self.scores, self.probabilities, strict=True)
        levels = range(1, self.grouping.num_levels)
        return {
            "background": {"index": 0, "share": round(background, 6)},
            "classes": [
                {
                    "index": index,
                    "name": name,
                    "share": round(fraction, 6),
                    "score": round(score, 6),
                    "image_probability": round(probability, 6),
                }
                for index, (name, fraction, score, probability) in enumerate(classes, start=1)
            ],
            "groups": {"per_level": [self.grouping.num_groups(level) for level in levels], "seen": self._groups_seen},
        }

    def _figures(self) -> dict[str, Callable[[], Image.Image]]:
        shown = [name.split(";")[0].strip() for name in self.names]
        return {
            "_overlay.png": lambda: classes_figure(self.preview, self.class_map, shown),
            "_groups.png": lambda: groups_figure(self.preview, self.group_map),
        }

    def _label_images(self) -> dict[str, Callable[[], np.ndarray]]:
        return {"_labels.png": lambda: _enlarged(self.class_map, len(self.names), self.image.size)}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GroupSegmentation(Segmentation):
    """Result of a model without text: the groups of every level; see `Segmentation`.

    `labels`, `names`, `fractions` and `masks` are those of one level: the one asked for, or else the coarsest.

    Args:
        level: the one level asked for; None for all.
        token_attention: (L, h', w') where each of the network's tokens looks; None of networks without.
    """

    level: int | None
    token_attention: np.ndarray | None

    @property
    def levels(self) -> list[int]:
        """Levels that are shown: the one asked for, or all but a regular grid of tokens, which any photo has."""
        if self.level is not None:
            return [self.level % self.grouping.num_levels]
        return list(range(1 if self.grouping.superpixels is None else 0, self.grouping.num_levels))

    @property
    def heads(self) -> list["GroupSegmentation"]:
        """The result of each grouping head alone."""
        return [replace(self, grouping=self.grouping.head(index)) for index in range(len(self.trees))]

    @property
    def names(self) -> list[str]:
        """Name of each group."""
        return [f"group {index}" for index in range(self.grouping.num_groups(self.levels[-1]))]

    @property
    def summary(self) -> str:
        """Numbers of tokens and groups."""
        tokens, *groups = self.trees[0].num_groups
        kind = "tokens" if self.trees[0].on_grid else "superpixels"
        heads = f" in each of {len(self.trees)} heads" if len(self.trees) > 1 else ""
        finer = "".join(f"{number} -> " for number in groups[:-1])
        return f"{tokens} {kind} -> {finer}{counted(groups[-1], 'group')}{heads}"

    def _label_map(self) -> np.ndarray:
        return self.tree.labels(self.levels[-1])

    def _record(self) -> dict[str, Any]:
        heads = [{"levels": [_level_record(tree, level) for level in self.levels]} for tree in self.trees]
        found = heads[0] if len(heads) == 1 else {"heads": heads}
        return {"groups_per_level": self.trees[0].num_groups, **found}

    def _figures(self) -> dict[str, Callable[[], Image.Image]]:
        figures: dict[str, Callable[[], Image.Image]] = {}
        if len(self.trees) == 1:
            figures["_groups.png"] = lambda: hierarchy_figure(self.preview, self.tree, self.levels)
        else:
            figures["_groups.png"] = lambda: heads_figure(self.preview, self.trees, self.levels[-1])
        attention = self.token_attention
        if attention is not None:
            figures["_attention.png"] = lambda: attention_figure(self.preview, attention)
        return figures

    def _label_images(self) -> dict[str, Callable[[], np.ndarray]]:
        def maker(tree: GroupTree, level: int) -> Callable[[], np.ndarray]:
            return lambda: _enlarged(tree.labels(level), tree.num_groups[level], self.image.size)

        return {
            f"{f'_head{number}' if len(self.trees) > 1 else ''}_level{level}_labels.png": maker(tree, level)
            for number, tree in enumerate(self.trees)
            for level in self.levels
        }


def _level_record(tree: GroupTree, level: int) -> dict[str, Any]:
    fractions = tree.fractions(level)
    record: dict[str, Any] = {"level": level, "groups": len(fractions), "seen": int(np.count_nonzero(fractions))}
    record["shares"] = [round(fraction, 6) for fraction in fractions.tolist()]
    if level < tree.num_levels - 1:
        record["parents"] = tree.parents[level].tolist()
    return record


def _enlarged(labels: np.ndarray, count: int, size: tuple[int, int]) -> np.ndarray:
    """Labels at the photo's size, in the smallest dtype that holds `count` of them, for huge photos."""
    return resize_labels_nearest(labels.astype(np.uint8 if count <= 256 else np.int32), size)
