"""Common parts of the tasks that train one network on images: settings, network, evaluation, export."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from grouping_zoo.data.image_source import BUILT_IN, ImageSource, open_images
from grouping_zoo.data.multi_view import SingleViews, image_tensors
from grouping_zoo.data.segmentation_sets import open_segmentation_set
from grouping_zoo.engine.model_card import vision_card
from grouping_zoo.engine.recipe import Recipe
from grouping_zoo.evaluation.recognition import extract_features, knn_accuracy
from grouping_zoo.hf.checkpoint_folder import timm_source, zoo_models
from grouping_zoo.hf.vision import publish
from grouping_zoo.models.vt_fpn import SemanticFPN

EVALUATION_BATCH_SIZE = 64


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
    """Share of the scenes with their photo in other colours."""

    def __post_init__(self) -> None:
        if (self.source in BUILT_IN) != (self.path is None):
            raise ValueError(
                f"data.path: expected {'null' if self.source in BUILT_IN else 'a folder or name'} with "
                f"data.source={self.source}, got {self.path}"
            )
        if self.image_size < 1:
            raise ValueError(f"data.image_size: expected a side in pixels, got {self.image_size}; set 224")


@dataclass(kw_only=True)
class EvaluationConfig:
    """Accuracy of frozen features on labelled images, by a vote of the nearest training images."""

    train_images: int = 0
    """Training images that vote, drawn by chance; of scenes, those with one object. 0 for no evaluation."""
    test_images: int = 0
    """Held-out images that are judged."""
    split: str | None = "validation"
    """Where these are; see data.split."""
    neighbours: int = 20
    """How many images vote."""
    temperature: float = 0.07
    """The smaller, the more the nearest ones count."""

    def __post_init__(self) -> None:
        if min(self.train_images, self.test_images) < 0 or (self.train_images > 0) != (self.test_images > 0):
            raise ValueError(
                f"evaluation.train_images, evaluation.test_images: expected both above 0, or both 0 for no evaluation, "
                f"got {self.train_images} and {self.test_images}"
            )
        if self.neighbours < 1:
            raise ValueError(f"evaluation.neighbours: expected at least 1, got {self.neighbours}; set 20")
        if self.temperature <= 0:
            raise ValueError(f"evaluation.temperature: expected more than 0, got {self.temperature}; set 0.07")


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
        self._check_evaluation()

    def head_classes(self) -> list[str]:
        """Classes of the network's head; none where it has no head."""
        return []

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of the nearest neighbours; none if the recipe asks for none."""
        settings = self.recipe.evaluation
        if not settings.train_images:
            return {}
        train_source, test_source = self._labelled_parts()
        train, train_labels = self._features(model, train_source, settings.train_images)
        test, test_labels = self._features(model, test_source, settings.test_images)
        accuracy = knn_accuracy(
            train,
            train_labels,
            test,
            test_labels,
            neighbours=settings.neighbours,
            temperature=settings.temperature,
            num_classes=len(train_source.class_names) or None,
        )
        return {"knn_accuracy": accuracy}

    def export(self, model: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        """Writes a checkpoint folder that timm and, for this package's models, transformers open."""
        run, data, architecture = self.recipe.run, self.recipe.data, self.recipe.model.architecture
        card = vision_card(run, architecture, data.path or data.source, self.method, self.auto_class)
        publish(model, folder, card, class_names=self.head_classes() or None, metrics=metrics)

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

    def _check_evaluation(self) -> None:
        """Opens the held-out images, so that a mistake in their settings does not end the training that leads there."""
        if self.recipe.evaluation.train_images:
            check_splits(self.recipe.data.split, self.recipe.evaluation.split)
            self._labelled_parts()

    def _labelled_parts(self) -> tuple[ImageSource, ImageSource]:
        """Training and held-out images with labels."""
        recipe, settings = self.recipe, self.recipe.evaluation
        if recipe.data.source in BUILT_IN:
            counts = (settings.train_images, settings.test_images)
            train, test = (
                open_source(recipe.data, recipe.run.seed, split=split, length=count, max_objects=1, recolor=0.0)
                for split, count in zip((recipe.data.split, settings.split), counts, strict=True)
            )
        else:
            train, test = self.source, open_source(recipe.data, recipe.run.seed, split=settings.split)
        check_classes(train, test, recipe.data.split, settings.split)
        return train, test

    def judged_batches(self, source: ImageSource, number: int) -> DataLoader[Any]:
        """A source's images as they are judged, or so many of them, drawn by chance."""
        run = self.recipe.run
        order = np.random.default_rng(run.seed).permutation(len(source))[:number].tolist()
        views = SingleViews(source, self.recipe.data.image_size, self.tensors)
        return DataLoader(Subset(views, order), EVALUATION_BATCH_SIZE, num_workers=run.num_workers)

    def _features(self, model: nn.Module, source: ImageSource, number: int) -> tuple[Tensor, Tensor]:
        """Features and labels of a source's images, or of so many of them."""
        loader = self.judged_batches(source, number)
        labels: list[Tensor] = []

        def batches() -> Iterator[dict[str, Tensor]]:
            for batch in loader:
                if "label" not in batch:
                    raise ValueError(
                        "evaluation.train_images: expected labelled images, but the source knows no classes; set 0"
                    )
                labels.append(batch["label"])
                yield batch

        return extract_features(model, batches()), torch.cat(labels)


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


def check_splits(train: str | None, held_out: str | None) -> None:
    """Checks that a network is judged on other images than those that it learns from.

    Raises:
        ValueError: if both are the same part.
    """
    if train == held_out:
        raise ValueError(
            f"evaluation.split: expected another one than data.split, got {held_out} for both; name two parts, or "
            "leave the evaluation out"
        )


def check_classes(train: ImageSource, held_out: ImageSource, train_split: str | None, split: str | None) -> None:
    """Checks that the numbers of the classes mean the same in both parts.

    Raises:
        ValueError: if they do not.
    """
    if train.class_names != held_out.class_names:
        raise ValueError(
            f"evaluation.split: expected the {len(train.class_names)} classes of data.split={train_split}, got "
            f"{len(held_out.class_names)} or others in {split}; give both parts the same classes"
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


def check_gives_features(network: Any, architecture: str) -> None:
    """Checks that a network gives one feature an image.

    Raises:
        ValueError: of one that segments.
    """
    if isinstance(network, SemanticFPN):
        raise ValueError(
            f"model.architecture: expected a network with one feature an image, got {architecture}, which gives one a "
            "pixel; choose another, or task: supervised with target: mask"
        )


def _network_arguments(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """The recipe's, and for models that take images of one size only, that size."""
    sizes = {"img_size": image_size} if get_pretrained_cfg(config.architecture).fixed_input_size else {}
    return sizes | config.model_args
