"""Evaluation data: training and held-out images of a set, prepared for a network."""

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from grouping_zoo.data.image_source import LabelledImage
from grouping_zoo.data.multi_view import ImageTensors
from grouping_zoo.data.segmentation_sets import BUILT_IN, SegmentationSet, open_segmentation_set
from grouping_zoo.evaluation.distributed import UnreadableImage

Split = Literal["train", "test"]
"""Images to learn from, or held-out ones; `EvaluationSet` says what the data set calls them."""
SCENE_COUNTS: dict[Split, int] = {"train": 1000, "test": 500}
MAX_OBJECTS = 3  # of a scene with several


@dataclass(kw_only=True)
class EvaluationSet:
    """Training and held-out images of one data set.

    Args:
        spec: see `open_segmentation_set`: "scenes", "digits", "voc:DIR", "folder:DIR", ...
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
    _opened: dict[tuple[Any, ...], SegmentationSet] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}

    @property
    def is_built_in(self) -> bool:
        """Whether it is a built-in one, whose images are made at any size."""
        return self.spec in BUILT_IN

    def source(self, split: Split, size: tuple[int, int], single: bool) -> SegmentationSet:
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
            opened = open_segmentation_set(
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

    def order(self, source: SegmentationSet, split: Split) -> np.ndarray:
        """Draw the numbers of the images that are taken, ascending."""
        drawn = np.random.default_rng(self.seed).permutation(len(source))[: self.count(split)]
        return np.sort(drawn)

    @cached_property
    def _example(self) -> tuple[SegmentationSet, LabelledImage]:
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


class EvaluationImages(Dataset[dict[str, Any] | UnreadableImage]):
    """Images as a network takes them, with what is known of them.

    A sample is ``{"index": int, "pixel_values": (3, H, W) float32}`` with ``"superpixels"`` (H, W), ``"label"``,
    ``"mask"`` and ``"instances"`` where there are such.

    Args:
        source: of images.
        order: the numbers of those that are taken.
        size: (height, width) that the network was made for.
        tensors: what is made of an image.
        whole: show the whole image, its shorter side resized, and leave its masks as they are; else the centre of
            both is cropped to `size`.
        crop_fraction: fraction of the resized image's sides that the crop keeps.
        resampling: how images are resized.
    """

    def __init__(
        self,
        source: SegmentationSet,
        order: np.ndarray,
        size: tuple[int, int],
        tensors: ImageTensors,
        *,
        whole: bool = False,
        crop_fraction: float = 1.0,
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:
        self.source = source
        self.order = order
        self.size = size
        self.tensors = tensors
        self.whole = whole
        self.crop_fraction = crop_fraction
        self.resampling = resampling

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any] | UnreadableImage:
        number = int(self.order[index])
        read = next(self.source.readable([number]), None)
        if read is None:
            name = f"{self.source.name}, image {number}"
            return UnreadableImage(name, self.source.corrupt.reasons[name] if self.source.corrupt is not None else name)
        found = read[1]
        view = F.pil_to_tensor(self._view(found.image, self.resampling))
        sample: dict[str, Any] = {"index": index, **self.tensors.inputs(view)}
        if found.label is not None:
            sample["label"] = found.label
        return sample | {name: self._mask(mask) for name, mask in _masks(found).items()}

    def _mask(self, mask: np.ndarray) -> Tensor:
        if self.whole:
            return torch.from_numpy(mask.astype(np.int64))
        # 32-bit integers: the only kind beside 8-bit ones that Pillow resizes without loss.
        view = self._view(Image.fromarray(mask.astype(np.int32)), Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(view).astype(np.int64))

    def _view(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        height, width = self.size
        if self.whole:
            scale = min(self.size) / min(image.size)
            resized = (round(scale * image.width), round(scale * image.height))
            return image if resized == image.size else image.resize(resized, resampling)
        scale = max(width / image.width, height / image.height) / self.crop_fraction
        resized = (max(width, math.floor(scale * image.width)), max(height, math.floor(scale * image.height)))
        view = image if resized == image.size else image.resize(resized, resampling)
        return F.center_crop(view, [height, width])


def _masks(found: LabelledImage) -> dict[str, np.ndarray]:
    masks = {"mask": found.mask, "instances": found.instances}
    return {name: mask for name, mask in masks.items() if mask is not None}
