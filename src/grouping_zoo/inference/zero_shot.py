"""Zero-shot recognition and segmentation by text, as GroupViT does it.

Sharma (2023), section 4.4, Eq. 29-37.

Shape legend: B images, L classes, P prompt templates, S segments, D joint width, (H, W) image size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grouping_zoo.grouping import Grouping
from grouping_zoo.models.image_text import ImageTextModel

BACKGROUND = 0
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@torch.no_grad()
def class_embeddings(
    model: ImageTextModel,
    tokenize: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
) -> Tensor:
    """One normalised text feature a class: the mean of its prompts' normalised features.

    Args:
        model: the two towers.
        tokenize: texts to ids (n, T) int64.
        class_names: L names; several names for one class may be given as "cat; kitten".
        templates: prompts with one "{}" each.

    Returns:
        (L, D) float32 on the model's device, rows of norm 1.

    Raises:
        ValueError: on an empty list or name, or a template without "{}".
    """
    if not class_names:
        raise ValueError('classes: expected at least one class name, got none; give for example "cat, coffee cup"')
    if not all(name.replace(";", "").strip() for name in class_names):
        raise ValueError(f"classes: expected no empty name, got {list(class_names)}")
    if not templates:
        raise ValueError("templates: expected at least one, got none")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"templates: expected '{{}}' where the class name goes, got {template!r}")
    device = model.logit_scale.device
    rows = []
    for names in class_names:
        prompts = [t.format(name.strip()) for name in names.split(";") if name.strip() for t in templates]
        features = F.normalize(model.encode_text(tokenize(prompts).to(device)).float(), dim=-1)
        rows.append(features.mean(dim=0))
    return F.normalize(torch.stack(rows), dim=-1)


@torch.no_grad()
def classify(model: ImageTextModel, pixel_values: Tensor, text: Tensor, **inputs: Tensor) -> Tensor:
    """Probability of each class for each image: (B, in_chans, H, W) and (L, D) -> (B, L); `inputs` as of `segment`."""
    return class_probabilities(model, F.normalize(model.encode_image(pixel_values, **inputs).float(), dim=-1), text)


def class_probabilities(model: ImageTextModel, image: Tensor, text: Tensor) -> Tensor:
    """Probability of each class for each image: normalised features (B, D) and (L, D) -> (B, L)."""
    return (model.scale() * image @ text.T).softmax(dim=-1)


class TextSegmentation(NamedTuple):
    """Result of one pass over B images.

    Attributes:
        scores: affinity of every pixel to every class, (B, L, H, W) float32 in [0, 1].
        probabilities: probability of each class for the image as a whole, (B, L) float32.
        grouping: of the images as a whole, also where the scores are those of windows.
    """

    scores: Tensor
    probabilities: Tensor
    grouping: Grouping


class EncodedImages(NamedTuple):
    """Normalised features of images (B, D) and segments (B, S, D), and the grouping that makes the segments."""

    image: Tensor
    segments: Tensor
    grouping: Grouping


@dataclass(kw_only=True)
class ZeroShotSegmenter:
    """Labels every pixel with a class or as background.

    Affinity of segment and class: softmax over classes of the scaled similarity, times the same softmax over only the
    `top_classes` classes that the whole image likes best (Eq. 33). A pixel takes the classes of its segment; it is
    background where the best is below the threshold, which never exceeds the image's own largest affinity (Eq. 37).

    Args:
        model: the two towers, in evaluation mode.
        text: (L, D) from `class_embeddings`.
        background_threshold: 0 to 1; 0 turns the background off. Published: VOC 0.95, COCO 0.9, Context 0.35.
        top_classes: how many classes an image may have.
        masks: "hard": a pixel belongs to its most probable segment (as published); "soft": to all, by probability.
        window: side of the sliding window in pixels (as published 448); None sees the whole image at once.
        stride: step of the window (as published 224); half the window if omitted.
        background_similarity: cosine of an extra class "none of these" with every segment, which takes its part of the
            softmax; None for no such class (as published).
        multi_label_scale: take the multi-label loss's temperature instead of the caption loss's.
    """

    model: ImageTextModel
    text: Tensor
    background_threshold: float = 0.95
    top_classes: int = 5
    masks: Literal["hard", "soft"] = "hard"
    window: int | None = None
    stride: int | None = None
    background_similarity: float | None = None
    multi_label_scale: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.background_threshold <= 1:
            raise ValueError(f"background_threshold: expected 0 to 1, got {self.background_threshold}")
        if self.background_similarity is not None and not -1 <= self.background_similarity <= 1:
            raise ValueError(f"background_similarity: expected None or -1 to 1, got {self.background_similarity}")
        if self.top_classes < 1:
            raise ValueError(f"top_classes: expected at least 1, got {self.top_classes}")
        if self.masks not in ("hard", "soft"):
            raise ValueError(f"masks: expected 'hard' or 'soft', got {self.masks!r}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: expected at least 1 pixel, got {self.window}")
        if self.stride is not None and self.window is None:
            raise ValueError(f"stride: {self.stride} needs a window; set window too")
        if self.stride is None and self.window is not None:
            self.stride = max(self.window // 2, 1)
        if self.stride is not None and not 1 <= self.stride <= (self.window or self.stride):
            raise ValueError(f"stride: expected 1 to the window's {self.window}, got {self.stride}")

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, **inputs: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H, W) int64: 0 background, 1 + class otherwise; `inputs` as of `segment`."""
        return self.labels(self.scores(pixel_values, **inputs))

    @torch.no_grad()
    def segment(self, pixel_values: Tensor, **inputs: Tensor) -> TextSegmentation:
        """Scores, classes and groups of images (B, in_chans, H, W); each image and each window is encoded once.

        Args:
            pixel_values: images (B, in_chans, H, W).
            inputs: what else the vision model takes, see `GroupingNetwork.input_names`.
        """
        whole = self._encode(pixel_values, **inputs)
        probabilities = class_probabilities(self.model, whole.image, self.text)
        return TextSegmentation(self._scores(pixel_values, whole), probabilities, whole.grouping)

    @torch.no_grad()
    def scores(self, pixel_values: Tensor, **inputs: Tensor) -> Tensor:
        """Affinity of every pixel to every class, (B, L, H, W) float32 in [0, 1]; windows are averaged."""
        return self._scores(pixel_values, None if self._slides(pixel_values) else self._encode(pixel_values, **inputs))

    def labels(self, scores: Tensor) -> Tensor:
        """Labels of pixels by their `scores`: (B, L, H, W) -> (B, H, W) int64."""
        best, label = scores.max(dim=1)  # (B, H, W)
        threshold = best.flatten(1).max(dim=1).values.clamp(max=self.background_threshold)
        return torch.where(best < threshold[:, None, None], BACKGROUND, label + 1)

    def _slides(self, pixel_values: Tensor) -> bool:
        return self.window is not None and max(pixel_values.shape[-2:]) > self.window

    def _scores(self, pixel_values: Tensor, whole: EncodedImages | None) -> Tensor:
        """Scores of the images as they are encoded or, where a window slides, of their windows."""
        if whole is not None and not self._slides(pixel_values):
            return self._pixel_scores(whole, pixel_values)
        assert self.window is not None
        assert self.stride is not None
        height, width = pixel_values.shape[-2:]
        total = pixel_values.new_zeros(len(pixel_values), len(self.text), height, width, dtype=torch.float32)
        count = torch.zeros(height, width, device=total.device)
        for top in _window_starts(height, self.window, self.stride):
            for left in _window_starts(width, self.window, self.stride):
                area = (..., slice(top, top + self.window), slice(left, left + self.window))
                # The vision model makes what else it takes, such as superpixels, of the window itself.
                total[area] += self._pixel_scores(self._encode(pixel_values[area]), pixel_values[area])
                count[area] += 1
        return total / count

    def _encode(self, pixel_values: Tensor, **inputs: Tensor) -> EncodedImages:
        image, segments, grouping = self.model.encode_segments(pixel_values, **inputs)
        return EncodedImages(F.normalize(image.float(), dim=-1), F.normalize(segments.float(), dim=-1), grouping)

    def _pixel_scores(self, encoded: EncodedImages, pixel_values: Tensor) -> Tensor:
        affinity = self.affinity(encoded.image, encoded.segments)  # (B, S, L)
        height, width = pixel_values.shape[-2:]
        groups = encoded.grouping.probabilities(-1, (height, width))  # (B, S, H, W)
        if self.masks == "soft":
            return torch.einsum("bsl,bshw->blhw", affinity, groups)
        owner = groups.argmax(dim=1).flatten(1)  # (B, H * W)
        picked = affinity.transpose(1, 2).gather(2, owner[:, None].expand(-1, affinity.shape[2], -1))
        return picked.unflatten(2, (height, width))

    def affinity(self, image: Tensor, segments: Tensor) -> Tensor:
        """Eq. 30-33: normalised image (B, D) and segment (B, S, D) features -> (B, S, L) in [0, 1]."""
        scale = self.model.scale(self.multi_label_scale)
        logits = scale * segments @ self.text.T  # (B, S, L)
        favourites = (image @ self.text.T).topk(min(self.top_classes, len(self.text)), dim=1).indices  # (B, top)
        liked = torch.zeros(len(image), len(self.text), dtype=torch.bool, device=image.device)
        liked = liked.scatter(1, favourites, True)[:, None]
        return self._softmax(logits, scale) * self._softmax(logits.masked_fill(~liked, -torch.inf), scale)

    def _softmax(self, logits: Tensor, scale: Tensor) -> Tensor:
        """Softmax over the classes and, if there is one, the class of the background, which is left out after it."""
        if self.background_similarity is None:
            return logits.softmax(dim=-1)
        background = (scale * self.background_similarity).expand(*logits.shape[:-1], 1)
        return torch.cat([logits, background], dim=-1).softmax(dim=-1)[..., :-1]


def _window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows that cover `length`; the last one ends at the border."""
    last = max(length - window, 0)
    return sorted({min(start, last) for start in range(0, last + stride, stride)})


def segmenter_settings(config: Any, **overrides: Any) -> dict[str, Any]:
    """Every setting of `ZeroShotSegmenter` but its model and texts: a checkpoint's own, or else the defaults.

    Args:
        config: of the checkpoint; its fields that are called as the segmenter's count.
        **overrides: what counts instead, where not None.
    """
    settings = {}
    for entry in fields(ZeroShotSegmenter):
        if entry.name not in ("model", "text"):
            choices = (overrides.pop(entry.name, None), getattr(config, entry.name, None))
            settings[entry.name] = next((choice for choice in choices if choice is not None), entry.default)
    assert not overrides, f"no settings of the segmenter: {overrides}"
    return settings


def prompt_templates(config: Any) -> list[str]:
    """The prompts of a checkpoint, or "a photo of a {}." where it names none."""
    return list(getattr(config, "prompt_templates", None) or DEFAULT_TEMPLATES)
