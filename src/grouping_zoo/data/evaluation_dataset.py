"""Images for evaluation: the network's inputs of each, with the label and the masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.v2 import functional as F

from grouping_zoo.data.images import Unreadable
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.sets.registry import ImageSet


class EvaluationDataset(Dataset[dict[str, Any] | Unreadable]):
    """The network's inputs of each image, and what is known of it.

    A sample is ``{"index": int, "pixel_values": (3, H, W) float32}`` with the network's extra inputs, and ``"label"``,
    ``"mask"`` and ``"instances"`` where there are such; `Unreadable` of an image that cannot be read.

    Args:
        source: gives the images.
        order: indices of those that are taken.
        transform: prepares them.
        whole: show the whole image, its shorter side resized, and leave its masks as they are; else image and masks
            are resized and cropped.
    """

    def __init__(
        self, source: ImageSet, order: Sequence[int] | np.ndarray, transform: InputTransform, *, whole: bool = False
    ) -> None:
        self.source = source
        self.order = np.asarray(order)
        self.transform = transform
        self.whole = whole

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any] | Unreadable:
        found = self.source.read(int(self.order[index]))
        if isinstance(found, Unreadable):
            return found
        view = self.transform.whole(found.image) if self.whole else self.transform.crop(found.image)
        sample: dict[str, Any] = {"index": index, **self.transform.inputs(F.pil_to_tensor(view))}
        if found.label is not None:
            sample["label"] = found.label
        for name, mask in (("mask", found.mask), ("instances", found.instances)):
            if mask is not None:
                sample[name] = torch.from_numpy(mask.astype(np.int64)) if self.whole else self.transform.crop_mask(mask)
        return sample


def collate_readable(
    samples: list[Mapping[str, Any] | Unreadable],
) -> tuple[dict[str, Any] | None, list[Unreadable]]:
    """Return a batch of the samples that can be read, None if there is none, and the others."""
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    return (default_collate(readable) if readable else None), unreadable
