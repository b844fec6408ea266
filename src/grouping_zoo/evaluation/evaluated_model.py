"""A model as the evaluation sees it: a network, what it takes of an image, and what it can do."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.models import get_model_args
from torch import Tensor
from transformers import ProcessorMixin

from grouping_zoo.data.input_transform import InputTransform, input_transform
from grouping_zoo.data.tokenization import make_tokenize
from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.base import ZooPreTrainedModel
from grouping_zoo.hf.checkpoint_folder import find_checkpoint, timm_source, zoo_models
from grouping_zoo.hf.vision import ZooForSemanticSegmentation
from grouping_zoo.models.family import GroupingNetwork, as_grouping_network, extra_inputs
from grouping_zoo.models.image_text import ImageTextModel


@runtime_checkable
class DenseNetwork(Protocol):
    """A timm network with feature maps, which a few of timm's are not."""

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See timm."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model that is evaluated.

    Args:
        name: what tables and errors call it.
        model: the transformers model, or the timm network where there is none.
        network: the timm network in it, from images to features.
        device: where it is.
        inputs: prepares images for it.
        pretrained_cfg: timm's description of its input.
        class_names: of its head, or that it was made for; None where they are unknown.
        towers: image and text tower of a model with text.
        tokenize: from texts to ids, for a model with text.
        call_args: arguments of each call of the network, such as the number of groups.
    """

    name: str
    model: Any
    network: Any
    device: torch.device
    inputs: InputTransform
    pretrained_cfg: Mapping[str, Any]
    class_names: list[str] | None = None
    towers: ImageTextModel | None = None
    tokenize: Callable[[list[str]], Tensor] | None = None
    call_args: Mapping[str, Any] = field(default_factory=dict)

    # --- what it can do ---------------------------------------------------------------------------------------------

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that it was made for."""
        height, width = self.pretrained_cfg["input_size"][1:]
        return height, width

    @cached_property
    def grouping_network(self) -> GroupingNetwork | None:
        """The network, if it is of a family that groups."""
        return as_grouping_network(self.network)

    @property
    def grouping_heads(self) -> int:
        """Heads that group apart, 1 for a single grouping, 0 for none."""
        return 0 if self.grouping_network is None else self.grouping_network.grouping_heads

    @property
    def gives_features(self) -> bool:
        """Whether it gives one feature an image."""
        return self.grouping_network is None or not self.grouping_network.predicts_pixels

    @property
    def gives_maps(self) -> bool:
        """Whether it gives feature maps."""
        return isinstance(self.network, DenseNetwork)

    @property
    def predicts_pixels(self) -> bool:
        """Whether its head classifies pixels, not images."""
        return not self.gives_features or isinstance(self.model, ZooForSemanticSegmentation)

    @property
    def num_outputs(self) -> int:
        """Classes of its head, 0 without one."""
        if isinstance(self.model, ZooForSemanticSegmentation):
            return len(self.model.config.id2label or ())
        return self.network.num_classes

    # --- what it gives ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def call(self, function: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """Call a function of images, and of the network's further inputs, on this model's device."""
        extra = {name: batch[name].to(self.device) for name in extra_inputs(self.network)}
        return function(batch["pixel_values"].to(self.device), **extra, **self.call_args)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """Return a feature for each image, (B, D)."""
        return self.network.forward_head(self.call(self.network.forward_features, batch), pre_logits=True)

    def outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return what its head gives: (B, K), or of pixels (B, K, h, w)."""
        if isinstance(self.model, ZooForSemanticSegmentation):
            return self.call(self.model, batch).logits
        return self.call(self.network, batch)

    def groupings(self, batch: Mapping[str, Any]) -> list[Grouping]:
        """Return the grouping of images by each of its heads."""
        found: Grouping = self.call(self.network.forward_grouping, batch)
        return [found.head(number) for number in range(self.grouping_heads)]


def network_model(
    name: str, network: Any, device: torch.device, class_names: list[str] | None = None
) -> EvaluatedModel:
    """Wrap a timm network.

    Args:
        name: what tables and errors call it.
        network: on the device.
        device: where it is.
        class_names: of its head; those in its `pretrained_cfg` if omitted.
    """
    return EvaluatedModel(
        name=name,
        model=network,
        network=network,
        device=device,
        inputs=input_transform(network),
        pretrained_cfg=network.pretrained_cfg,
        class_names=class_names or list(network.pretrained_cfg.get("label_names") or ()) or None,
    )


def text_model(
    name: str,
    towers: ImageTextModel,
    tokenize: Callable[[list[str]], Tensor],
    device: torch.device,
    image_size: tuple[int, int],
) -> EvaluatedModel:
    """Wrap a model with text.

    Args:
        name: what tables and errors call it.
        towers: on the device.
        tokenize: from texts to ids.
        device: where it is.
        image_size: (height, width) of the images that it was made for.
    """
    network: Any = towers.vision
    size = {"input_size": (network.pretrained_cfg["input_size"][0], *image_size)}
    model = network_model(name, network, device)
    pretrained_cfg = {**network.pretrained_cfg, **size}
    return dataclasses.replace(model, pretrained_cfg=pretrained_cfg, towers=towers, tokenize=tokenize)


def transformers_model(name: str, model: Any, processor: Any, device: torch.device) -> EvaluatedModel:
    """Wrap a checkpoint as `open_checkpoint` gives it.

    Raises:
        ValueError: if it is of no family of this package.
    """
    if not isinstance(model, ZooPreTrainedModel):
        raise ValueError(
            f"{name}: expected a checkpoint of this package, or one of timm's, got a {type(model).__name__}; "
            "choose from grouping-zoo list"
        )
    inner: Any = model.model
    config: Any = model.config
    network = inner.vision if isinstance(inner, ImageTextModel) else inner
    pretrained_cfg = {**network.pretrained_cfg, **(config.pretrained_cfg or {})}
    inputs = input_transform(network, pretrained_cfg=pretrained_cfg)
    plain = EvaluatedModel(
        name=name, model=model, network=network, device=device, inputs=inputs, pretrained_cfg=pretrained_cfg
    )
    if isinstance(inner, ImageTextModel) and isinstance(processor, ProcessorMixin):
        images: Any = processor.image_processor
        return dataclasses.replace(
            plain,
            inputs=dataclasses.replace(inputs, mean=tuple(images.image_mean), std=tuple(images.image_std)),
            class_names=list(config.class_names or ()) or None,
            towers=inner,
            tokenize=make_tokenize(processor.tokenizer),
        )
    named = config.id2label or {}
    names = [str(named[index]) for index in sorted(named)]
    unnamed = names == [f"LABEL_{index}" for index in range(len(names))]
    return dataclasses.replace(plain, class_names=None if unnamed else names)


def timm_model(name: str, source: str, device: torch.device) -> EvaluatedModel:
    """Open a model that timm alone opens.

    Args:
        name: what the user calls it.
        source: what `plain_timm_source` calls it.
        device: where it is put.

    Raises:
        ValueError: if there are no weights of it, or they cannot be fetched.
    """
    try:
        network: Any = timm.create_model(source, pretrained=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{name}: expected a model of timm's with weights: {error}; choose another one") from None
    return network_model(name, network.eval().to(device), device)


def plain_timm_source(name: str) -> str | None:
    """Return timm's name of a model that timm alone opens, its own, a folder or on the hub; None for any other."""
    architecture = name.split(".")[0]
    if not Path(name).is_dir() and timm.is_model(architecture) and architecture not in zoo_models():
        return name
    found = find_checkpoint(name)
    config = _configuration(found)
    if config is None or "model_type" in config:
        return None
    return timm_source(found)


def untrained(model: EvaluatedModel, seed: int) -> EvaluatedModel:
    """Make the same architecture with random weights."""
    torch.manual_seed(seed)
    if isinstance(model.model, ZooPreTrainedModel):
        fresh: Any = type(model.model)(model.model.config).eval().to(model.device)
        if model.towers is not None:
            return dataclasses.replace(model, model=fresh, network=fresh.model.vision, towers=fresh.model)
        return dataclasses.replace(model, model=fresh, network=fresh.model)
    network: Any = timm.create_model(
        model.pretrained_cfg["architecture"],
        **{**get_model_args(model.network), "num_classes": model.network.num_classes, "pretrained": False},
    )
    network.pretrained_cfg = model.network.pretrained_cfg
    network = network.eval().to(model.device)
    return dataclasses.replace(model, model=network, network=network)


def _configuration(checkpoint: str) -> dict[str, Any] | None:
    """Return the config.json of a folder or hub name; None where none can be read."""
    file = Path(checkpoint) / "config.json"
    if not Path(checkpoint).is_dir():
        try:
            file = Path(hf_hub_download(checkpoint, "config.json"))
        except (OSError, ValueError):
            return None  # opening the checkpoint tells what is wrong with it
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
