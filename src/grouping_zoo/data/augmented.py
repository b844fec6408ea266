"""Random augmentation of labelled images for supervised training; a mask moves with its image."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from grouping_zoo.data.image_source import ImageSource
from grouping_zoo.data.input_transform import InputTransform
from grouping_zoo.data.sampling import SampleKey, sample_seed, seeded_rng

Target = Literal["class", "mask"]
POLICIES = {"auto_augment": v2.AutoAugment, "rand_augment": v2.RandAugment}


@dataclass(kw_only=True)
class AugmentationConfig:
    """Augmentation of a labelled image."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the image that a view shows."""
    flip: float = 0.5
    """Probability of a mirrored view."""
    policy: Literal["auto_augment", "rand_augment"] | None = None
    """Random operations: AutoAugment's ImageNet policy, or RandAugment's two of magnitude 9; null for none. For classes
    alone: they would move the image and not the mask."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of changes of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"augmentation.crop_scale: expected 0 < smallest <= largest <= 1, got {self.crop_scale}; set "
                "[0.08, 1.0], for example"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augmentation.flip: expected a probability from 0 to 1, got {self.flip}; set 0.5")
        if min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ValueError(
                f"augmentation.color_jitter: expected strengths of at least 0, that of the hue at most 0.5, got "
                f"{self.color_jitter}; set [0.4, 0.4, 0.4, 0.1], for example"
            )


class _Mirror(v2.RandomHorizontalFlip):
    """Mirrors image and mask, and exchanges the classes that a mirror exchanges, such as left and right hand."""

    def __init__(self, p: float, mirrored_classes: tuple[tuple[int, int], ...]) -> None:
        super().__init__(p)
        self.mirrored_classes = mirrored_classes

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the input mirrored."""
        mirrored = super().transform(inpt, params)
        if not isinstance(mirrored, tv_tensors.Mask):
            return mirrored
        exchanged = mirrored.clone()
        for left, right in self.mirrored_classes:
            exchanged[mirrored == left], exchanged[mirrored == right] = right, left
        return exchanged


class AugmentedDataset(Dataset[dict[str, Any]]):
    """Map-style training samples, indexed by `SampleKey`: random by (seed, epoch, index) alone.

    A sample is ``{"pixel_values": (3, H, W) float32}`` and with it ``"label"`` int, or ``"mask"`` (H, W) int64.

    Args:
        source: gives the images.
        image_size: side of a view in pixels.
        inputs: makes the network's inputs of a view.
        config: the augmentation.
        target: what is learned, the class of an image or of each pixel.
        seed: seed of everything random.

    Raises:
        ValueError: on a policy for masks; when read, if the source does not know the target.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        inputs: InputTransform,
        config: AugmentationConfig,
        target: Target,
        seed: int,
    ) -> None:
        if target == "mask" and config.policy is not None:
            raise ValueError(
                f"augmentation.policy: expected null with target=mask, got {config.policy}, which would move the image "
                "and not the mask; set null"
            )
        self.source = source
        self.inputs = inputs
        self.target = target
        self.seed = seed
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(image_size, scale=config.crop_scale),
            _Mirror(config.flip, source.mirrored_classes),
        ]
        if config.policy is not None:
            steps.append(POLICIES[config.policy]())
        if any(config.color_jitter):
            steps.append(v2.ColorJitter(*config.color_jitter))
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        found = self.source[key]
        known = found.label if self.target == "class" else found.mask
        if known is None:
            raise ValueError(
                f"target: expected images with a {self.target}, but image {key[1]} of the source has none; choose "
                f"another target or data.source"
            )
        with seeded_rng(sample_seed(self.seed, key)):
            if found.mask is None or self.target == "class":
                view = self.transform(found.image)
                rest: dict[str, Any] = {"label": found.label}
            else:
                view, mask = self.transform(found.image, tv_tensors.Mask(torch.from_numpy(found.mask)))
                rest = {"mask": mask.as_subclass(torch.Tensor).long()}
        return {**self.inputs.inputs(F.pil_to_tensor(view)), **rest}
