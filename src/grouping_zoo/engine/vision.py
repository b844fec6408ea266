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

from grouping_zoo.data.input_transform import input_transform
from grouping_zoo.data.sets import DataSet, ImageSet, find_set, open_set, set_spec
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

    source: str = "scenes"
    """A data set as `grouping-zoo eval --data` takes it: "scenes", "voc:DIR", "folder:DIR", "hub:NAME", ..."""
    path: str | None = None
    """The part of the source after the colon, if it is not written there: source: voc, path: DIR."""
    split: str | None = "train"
    """"train", "validation", or the data set's own name of a split; null for all images of a folder."""
    image_size: int = 224
    """Side of the network's images in pixels."""
    length: int = 10_000
    """Built-in images an epoch."""
    objects: Literal["shapes", "digits"] = "shapes"
    """Objects of the scenes; "digits" is another way to write source: digits."""
    max_objects: int = 3
    """Largest number of objects in a scene; 1 gives scenes with a class."""
    recolor: float = 0.0
    """Fraction of the scenes with their photo in other colors."""

    def __post_init__(self) -> None:
        find_set(self.spec)
        if self.image_size < 1:
            raise ValueError(f"data.image_size: expected a side in pixels, got {self.image_size}; set 224")

    @property
    def spec(self) -> str:
        """The data set, as `open_set` and `grouping-zoo eval --data` take it."""
        return set_spec(self.source, self.path, self.objects)

    @property
    def data_set(self) -> DataSet:
        """Its entry in the registry."""
        return find_set(self.spec)[0]


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
        inputs: prepares images for the network.
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
        self.inputs = input_transform(self.network)
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
        card = vision_card(run, architecture, data.spec, self.method, self.auto_class)
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


def open_source(data: ImageDataConfig, seed: int) -> ImageSet:
    """Open the images of a recipe."""
    return open_set(
        data.spec,
        data.split,
        length=data.length,
        image_size=data.image_size,
        seed=seed,
        max_objects=data.max_objects,
        recolor=data.recolor,
    )


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
