"""Base of the tasks that train one network on images: settings, network, validation, export."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
from timm.models import get_pretrained_cfg
from torch import nn
from torch.utils.data import Dataset, default_collate

from grouping_zoo.data.image_source import BUILT_IN, ImageSource, open_images
from grouping_zoo.data.multi_view import image_tensors
from grouping_zoo.data.segmentation_sets import open_segmentation_set
from grouping_zoo.engine.model_card import vision_card
from grouping_zoo.engine.recipe import Recipe
from grouping_zoo.engine.validation import EvaluationConfig, Validation, card_metrics
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel, network_model
from grouping_zoo.hf.checkpoint_folder import timm_source, zoo_models
from grouping_zoo.hf.vision import publish


@dataclass(kw_only=True)
class ModelConfig:
    """The network."""

    architecture: str
    """Any of timm's models."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""


@dataclass(kw_only=True)
class ImageDataConfig:
    """Images to train on."""

    source: Literal[
        "scenes",
        "photos",
        "folder",
        "hub",
        "voc",
        "context",
        "coco-object",
        "coco-stuff",
        "ade20k",
        "lip",
        "parts",
        "densepose",
    ] = "scenes"
    """"scenes", "photos": the built-in ones; "folder": images in a folder, one subfolder a class, or none where none
    is known; "hub": a data set's name; the others: the folder of that data set, with masks."""
    path: str | None = None
    """Folder or hub name; null for the built-in ones."""
    split: str | None = "train"
    """"train" of the built-in ones; subfolder of the folder, null for the folder itself; split of the hub data set."""
    image_size: int = 224
    """Side of the network's images in pixels."""
    length: int = 10_000
    """Built-in images an epoch."""
    objects: Literal["shapes", "digits"] = "shapes"
    """Objects in the scenes."""
    max_objects: int = 3
    """Most objects of a scene; 1 gives scenes with a class."""
    recolor: float = 0.0
    """Fraction of the scenes with their photo in other colours."""

    def __post_init__(self) -> None:
        if (self.source in BUILT_IN) != (self.path is None):
            raise ValueError(
                f"data.path: expected {'null' if self.source in BUILT_IN else 'a folder or name'} with "
                f"data.source={self.source}, got {self.path}"
            )
        if self.image_size < 1:
            raise ValueError(f"data.image_size: expected a side in pixels, got {self.image_size}; set 224")

    @property
    def spec(self) -> str:
        """The data set's name in `grouping-zoo eval --data`."""
        if self.source == "scenes" and self.objects == "digits":
            return "digits"
        return self.source if self.path is None else f"{self.source}:{self.path}"


@dataclass(kw_only=True)
class VisionRecipe(Recipe):
    """A training run of one network on images; each task adds its own sections."""

    model: ModelConfig
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


class VisionTask:
    """See `grouping_zoo.engine.task.Task`; a subclass makes `objective` and `dataset` of the parts made here.

    Args:
        recipe: of the run.

    Attributes:
        source: the training images.
        network: the timm model.
        tensors: what the network takes of an image.
    """

    method: ClassVar[str]
    """Name of the training on the model card."""
    auto_class: str = "AutoModel"
    """Class of transformers that opens the checkpoint."""
    objective: nn.Module
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def __init__(self, recipe: VisionRecipe) -> None:
        self.recipe = recipe
        self.source = open_source(recipe.data, recipe.run.seed)
        self.network = create_network(recipe.model, len(self.head_classes()), recipe.data.image_size)
        self.tensors = image_tensors(self.network)
        self.check_network()
        self.validation = Validation(recipe.evaluation, recipe.data.spec, recipe.run.num_workers)
        self.validation.check(self._evaluated(self.network))

    def head_classes(self) -> list[str]:
        """Classes of the network's head; none where it has no head."""
        return []

    def check_network(self) -> None:
        """Check that the network suits the training.

        Raises:
            ValueError: if it does not.
        """
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Run the recipe's tasks; none if it names none."""
        return self.validation(self._evaluated(model))

    def export(self, model: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        """Writes a checkpoint folder that timm and, for this package's models, transformers open."""
        run, data, architecture = self.recipe.run, self.recipe.data, self.recipe.model.architecture
        card = vision_card(run, architecture, data.path or data.source, self.method, self.auto_class)
        publish(model, folder, card, class_names=self.head_classes() or None, metrics=card_metrics(metrics))

    def load_weights(self, source: str) -> None:
        """Starts from a checkpoint folder or hub name of the same architecture; another head is left out."""
        config = self.recipe.model
        arguments = _network_arguments(config, self.recipe.data.image_size)
        name = timm_source(source)
        try:
            loaded: Any = timm.create_model(name, pretrained=True, **arguments)
            if loaded.num_classes != self.network.num_classes:
                loaded.reset_classifier(self.network.num_classes)
            self.network.load_state_dict(loaded.state_dict())
        except (RuntimeError, TypeError, ValueError) as error:
            reasons = " ".join(str(error).split()[:60])  # every single weight may be listed
            raise ValueError(
                f"run.init_from: expected a checkpoint of {config.architecture} with the same arguments, got {source}, "
                f"which does not fit: {reasons} ..."
            ) from None

    def _evaluated(self, network: Any) -> EvaluatedModel:
        device = next(network.parameters()).device
        return network_model(self.recipe.model.architecture, network, device, self.head_classes() or None)


def open_source(data: ImageDataConfig, seed: int, **changes: Any) -> ImageSource:
    """The images of a recipe; `changes` replace its settings."""
    settings: dict[str, Any] = dict(
        split=data.split,
        length=data.length,
        image_size=data.image_size,
        seed=seed,
        objects=data.objects,
        max_objects=data.max_objects,
        recolor=data.recolor,
    )
    settings |= changes
    if data.source in ("scenes", "photos", "folder", "hub"):
        return open_images(data.source, data.path, **settings)
    return open_segmentation_set(f"{data.source}:{data.path}", settings["split"])


def create_network(config: ModelConfig, num_classes: int, image_size: int) -> Any:
    """A timm model for images of a size, which `pretrained_cfg` then names as its own.

    Raises:
        ValueError: for an unknown architecture, or arguments that it does not take.
    """
    name = config.architecture
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"this package's own are {', '.join(zoo_models())}"
        raise ValueError(f"model.architecture: expected one of timm's models, got {name!r}; {hint}")
    try:
        network: Any = timm.create_model(name, num_classes=num_classes, **_network_arguments(config, image_size))
    except TypeError as error:
        raise ValueError(f"model.model_args: expected arguments of {name}, got {config.model_args}: {error}") from None
    except RuntimeError as error:  # of timm on an unknown tag, of torch on sizes that nothing has
        raise ValueError(
            f"model: expected an architecture and arguments that fit it, got {name} and {config.model_args}: {error}"
        ) from None
    channels = network.pretrained_cfg["input_size"][0]
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (channels, image_size, image_size)}
    return network


def _network_arguments(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """The recipe's, and for models that take images of one size only, that size."""
    sizes = {"img_size": image_size} if get_pretrained_cfg(config.architecture).fixed_input_size else {}
    return sizes | config.model_args
