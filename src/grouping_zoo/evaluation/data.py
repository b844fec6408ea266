"""Evaluation data: training and held-out images of a set."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from grouping_zoo.data.image_source import LabelledImage
from grouping_zoo.data.sets import ImageSet, find_set, open_set

Split = Literal["train", "test"]
"""Images to learn from, or held-out ones; `EvaluationSet` says what the data set calls them."""
SCENE_COUNTS: dict[Split, int] = {"train": 1000, "test": 500}
MAX_OBJECTS = 3  # of a scene with several


@dataclass(kw_only=True)
class EvaluationSet:
    """Training and held-out images of one data set.

    Args:
        spec: see `open_set`: "scenes", "digits", "voc:DIR", "folder:DIR", ...
        split: the data set's name of the held-out split.
        train_split: its name of the training split.
        images: how many held-out images to evaluate on, drawn by chance; all of a stored set, 500 scenes if omitted.
        train_images: how many training images; all of a stored set, 1000 scenes if omitted.
        seed: of the scenes and of the draw.
    """

    spec: str = "scenes"
    split: str = "validation"
    train_split: str = "train"
    images: int | None = None
    train_images: int | None = None
    seed: int = 0
    # Large lists of files and annotations are read once.
    _opened: dict[tuple[Any, ...], ImageSet] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}

    @property
    def is_built_in(self) -> bool:
        """Whether it is a built-in one, whose images are made at any size."""
        return find_set(self.spec)[0].is_built_in

    def source(self, split: Split, size: tuple[int, int], single: bool) -> ImageSet:
        """Open all images of a split.

        Args:
            split: which.
            size: (height, width) of scenes.
            single: scenes with one object, which have a class, instead of several.

        Raises:
            ValueError: for training images if the held-out ones are the same split, or of other classes.
        """
        if split == "train" and self.train_split == self.split:
            raise ValueError(
                f"train_split: expected another split than the evaluated one, got {self.split!r} for both; images that "
                "are learned from are no test: name two splits"
            )
        key = (split, size, single) if self.is_built_in else (split,)
        if key not in self._opened:
            opened = open_set(
                self.spec,
                self.train_split if split == "train" else self.split,
                length=self.count(split) or 1,
                image_size=size,
                seed=self.seed,
                max_objects=1 if single else MAX_OBJECTS,
            )
            if split == "train" and list(opened.object_names) != self.class_names:
                raise ValueError(
                    f"train_split: expected the {len(self.class_names)} classes of {self.split}, got "
                    f"{len(opened.object_names)} or others in {self.train_split}; give both splits the same classes"
                )
            self._opened[key] = opened
        return self._opened[key]

    def count(self, split: Split) -> int | None:
        """Return how many images of a split are taken; None for all."""
        asked = self.images if split == "test" else self.train_images
        return asked or (SCENE_COUNTS[split] if self.is_built_in else None)

    def order(self, source: ImageSet, split: Split) -> np.ndarray:
        """Draw the numbers of the images that are taken, ascending."""
        drawn = np.random.default_rng(self.seed).permutation(len(source))[: self.count(split)]
        return np.sort(drawn)

    @cached_property
    def _example(self) -> tuple[ImageSet, LabelledImage]:
        source = self.source("test", (32, 32), single=True)
        found = next(source.readable(range(len(source))), None)
        if found is None:
            raise ValueError(f"data: expected readable images in {self.spec}, got none; check the files")
        return source, found[1]

    @property
    def knows(self) -> set[str]:
        """Truths that its images come with: "label", "mask", both or none."""
        example = self._example[1]
        known = {"label": example.label, "mask": example.mask}
        return {name for name, value in known.items() if value is not None}

    @property
    def class_names(self) -> list[str]:
        """Names of its classes, without background."""
        return list(self._example[0].object_names)

    @property
    def mask_names(self) -> list[str]:
        """Names of the masks' labels, background included where there is one."""
        return list(self._example[0].class_names)

    @property
    def background(self) -> int | None:
        """The masks' label of the background, None where every pixel has a class."""
        return self._example[0].background

    @property
    def ignore_index(self) -> int | None:
        """The masks' label of pixels that do not count."""
        return self._example[0].ignore_index
