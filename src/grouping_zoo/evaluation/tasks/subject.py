"""What is judged: a checkpoint's network, whatever its family, and what it can do."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.models import get_model_args
from torch import Tensor

from grouping_zoo.data.multi_view import ImageTensors, image_tensors
from grouping_zoo.data.tokenization import make_tokenize
from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.checkpoint_folder import find_checkpoint, timm_source, zoo_models
from grouping_zoo.models.image_text import ImageTextModel


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint that is judged.

    Args:
        name: what the user calls it.
        model: the transformers model, or the timm network where it has none.
        network: the timm network in it, from images to features.
        processor: of a transformers model.
        device: where it is.
    """

    name: str
    model: Any
    network: Any
    processor: Any
    device: torch.device

    # --- what it takes ----------------------------------------------------------------------------------------------

    @property
    def description(self) -> dict[str, Any]:
        """timm's `pretrained_cfg`; a checkpoint's own comes before that of its architecture."""
        own = getattr(getattr(self.model, "config", None), "pretrained_cfg", None)
        return {**self.network.pretrained_cfg, **(own or {})}

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that it was made for."""
        height, width = self.description["input_size"][1:]
        return height, width

    @cached_property
    def tensors(self) -> ImageTensors:
        """What it takes of an image: normalised pixels, and superpixels if it groups them."""
        mean, std = self.description["mean"], self.description["std"]
        if self.towers is not None:
            mean, std = self.processor.image_processor.image_mean, self.processor.image_processor.image_std
        return image_tensors(self.network, mean, std)

    @torch.no_grad()
    def call(self, function: Callable[..., Any], batch: dict[str, Any]) -> Any:
        """A function of images, and of superpixels where the batch has them, on this model's device."""
        extra = {key: batch[key].to(self.device) for key in ("superpixels",) if key in batch}
        return function(batch["pixel_values"].to(self.device), **extra)

    # --- what it can do ---------------------------------------------------------------------------------------------

    @property
    def towers(self) -> ImageTextModel | None:
        """The two towers of a model with text."""
        inner = getattr(self.model, "model", None)
        with_text = isinstance(inner, ImageTextModel) and getattr(self.processor, "tokenizer", None) is not None
        return inner if with_text else None

    @property
    def tokenize(self) -> Callable[[list[str]], Tensor]:
        """From texts to ids, for a model with text."""
        return make_tokenize(self.processor.tokenizer)

    @property
    def class_names(self) -> list[str] | None:
        """Names of its classes, where it states them."""
        config = getattr(self.model, "config", None)
        if self.towers is not None:
            return list(self.model.config.class_names or []) or None
        named = getattr(config, "id2label", None) or {}
        names = [str(named[index]) for index in sorted(named)] or list(self.description.get("label_names") or ())
        unnamed = names == [f"LABEL_{index}" for index in range(len(names))]
        return None if unnamed else names

    @cached_property
    def _noise(self) -> dict[str, Tensor]:
        """An image to try it on."""
        return {"pixel_values": torch.rand(1, 3, *self.image_size, generator=torch.Generator().manual_seed(0))}

    @cached_property
    def gives_features(self) -> bool:
        """Whether it gives one feature an image."""
        return self.call(self.features, self._noise).ndim == 2

    @cached_property
    def heads(self) -> int:
        """In how many ways it groups an image, each with a head of its own; 0 if it makes no groups."""
        if not hasattr(self.network, "forward_grouping"):
            return 0
        try:
            return self.call(self.network.forward_grouping, self._noise).assignments[0].shape[1]
        except ValueError:  # a plain variant of a network that groups
            return 0

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Of what its head gives of an image: (1, classes), of its pixels (1, classes, h, w), empty without head."""
        if self._segments_by_head or bool(self.network.num_classes):
            return tuple(self.outputs(self._noise).shape)
        return ()

    def features(self, pixel_values: Tensor, **inputs: Tensor) -> Tensor:
        """The image's feature: (B, 3, H, W) -> (B, D)."""
        return self.network.forward_head(self.network.forward_features(pixel_values, **inputs), pre_logits=True)

    def outputs(self, batch: dict[str, Any]) -> Tensor:
        """What its head gives: (B, K), or of pixels (B, K, h, w)."""
        return self.call(self.model, batch).logits if self._segments_by_head else self.call(self.network, batch)

    def groupings(self, batch: dict[str, Any]) -> list[Grouping]:
        """The grouping of images by each of its heads."""
        found: Grouping = self.call(self.network.forward_grouping, batch)
        return [found.head(number) for number in range(self.heads)]

    @property
    def _segments_by_head(self) -> bool:
        return type(self.model).__name__.endswith("ForSemanticSegmentation")


def plain_timm_source(name: str) -> str | None:
    """What timm calls a model that timm alone opens: one of its own, a folder or a hub name; None for any other."""
    architecture = name.split(".")[0]
    if not Path(name).is_dir() and timm.is_model(architecture) and architecture not in zoo_models():
        return name
    found = find_checkpoint(name)
    config = _configuration(found)
    if config is None or "model_type" in config:
        return None
    return timm_source(found)


def _configuration(checkpoint: str) -> dict[str, Any] | None:
    """What config.json of a folder or hub name says; None where none can be read."""
    file = Path(checkpoint) / "config.json"
    if not Path(checkpoint).is_dir():
        try:
            file = Path(hf_hub_download(checkpoint, "config.json"))
        except (OSError, ValueError):
            return None  # who opens the checkpoint says what is wrong with it
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def timm_subject(name: str, source: str, device: torch.device) -> Subject:
    """Opens a model that timm alone opens.

    Args:
        name: what the user calls it.
        source: what `plain_timm_source` calls it.
        device: where it shall be.

    Raises:
        ValueError: if there are no weights of it, or they cannot be fetched.
    """
    try:
        network: Any = timm.create_model(source, pretrained=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{name}: expected a model of timm's with weights: {error}; choose another one") from None
    return Subject(name=name, model=network.eval().to(device), network=network, processor=None, device=device)


def transformers_subject(name: str, model: Any, processor: Any, device: torch.device) -> Subject:
    """A checkpoint as `open_checkpoint` gives it.

    Raises:
        ValueError: if it is of no family of this package.
    """
    inner = getattr(model, "model", None)
    network: Any = inner.vision if isinstance(inner, ImageTextModel) else inner
    if not hasattr(network, "forward_features"):
        raise ValueError(
            f"{name}: expected a checkpoint of this package, or one of timm's, got a {type(model).__name__}; "
            "choose from grouping-zoo list"
        )
    return Subject(name=name, model=model, network=network, processor=processor, device=device)


def untrained(subject: Subject, seed: int) -> Subject:
    """The same architecture with random weights."""
    torch.manual_seed(seed)
    if subject.model is not subject.network:
        model = type(subject.model)(subject.model.config).eval().to(subject.device)
        return transformers_subject(subject.name, model, subject.processor, subject.device)
    description = subject.network.pretrained_cfg
    network: Any = timm.create_model(
        description["architecture"],
        **{**get_model_args(subject.network), "num_classes": subject.network.num_classes, "pretrained": False},
    )
    network.pretrained_cfg = description
    network = network.eval().to(subject.device)
    return Subject(name=subject.name, model=network, network=network, processor=None, device=subject.device)
