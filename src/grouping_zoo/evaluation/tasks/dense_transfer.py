"""Segmentation after training on masks: a head on frozen dense features, or the whole network with its family's head.

Shape legend: N images, B of a batch, D feature width, (h, w) feature map, K classes, (H, W) images.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForSemanticSegmentation

from grouping_zoo.data.augmented import AugmentationConfig, AugmentedDataset
from grouping_zoo.data.image_source import ImageSource, LabelledImage
from grouping_zoo.data.sampling import EndlessSampler
from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.dense_transfer import (
    DENSE_TRANSFERS,
    TransferSettings,
    level_features,
    resized,
    train_head,
    train_on_masks,
)
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.tasks.registry import register_task
from grouping_zoo.evaluation.tasks.semantic_segmentation import SegmentationTask
from grouping_zoo.hf.vision import ZooVisionConfig

MAX_FEATURES = 2**31  # 8 GiB of float32, and twice that while they are joined
SCENES = 500  # where none are asked for: a head on frozen features learns no more of the usual 1000
Predict = Callable[[dict[str, Any]], Tensor]


@register_task
class DenseTransfer(SegmentationTask):
    """The classes of the data, learned from the masks of its training images."""

    name = "dense-transfer"
    learns = True
    presets = DENSE_TRANSFERS

    def fits(self, model: EvaluatedModel) -> bool:
        """See `Task`."""
        return model.gives_maps

    def run(self, context: EvaluationContext) -> dict[str, float]:
        """See `SegmentationTask.evaluate`.

        Raises:
            ValueError: if the settings are for other models or images.
        """
        name = context.presets.get(self.name, "scenes")
        settings = self.presets[name]
        if settings.image_size is not None and set(context.size) != {settings.image_size}:
            raise ValueError(
                f"size: expected {settings.image_size}, which {name} is for, got {context.size[0]} x "
                f"{context.size[1]}; give size {settings.image_size}"
            )
        predict = _fine_tuned(context, name, settings) if settings.head == "own" else _probed(context, settings)
        return self.evaluate(context, predict)


# --- frozen ---------------------------------------------------------------------------------------------------------


def _probed(context: EvaluationContext, settings: TransferSettings) -> Predict:
    """Train a head on features that are computed once; all processes have all of them, and train the same head."""
    model, data = context.model, context.data
    if data.is_built_in and data.train_images is None:
        context = replace(context, data=replace(data, train_images=SCENES))

    def features(batch: dict[str, Any]) -> Tensor:
        return model.call(functools.partial(level_features, model.network, levels=settings.levels), batch)

    found: list[tuple[Tensor, Tensor]] = []
    for maps, masks in context.results(
        lambda batch: (features(batch).cpu(), batch["mask"]), "training features", "train", DenseTransfer.crop
    ):
        if not found:
            _check_memory(context, maps[0].numel())
        found.append((maps, masks))
    all_maps, all_masks = (torch.cat(values) for values in zip(*found, strict=True))
    del found
    head = train_head(
        all_maps,
        all_masks,
        len(data.mask_names),
        settings,
        ignore_index=data.ignore_index,
        seed=data.seed,
        device=model.device,
        progress=_shows_progress(context),
    )
    return lambda batch: _labels(head(features(batch)), batch)


def _check_memory(context: EvaluationContext, features: int) -> None:
    images = len(context.images("train", DenseTransfer.crop))
    if images * features > MAX_FEATURES:
        raise ValueError(
            f"train_images: expected at most {MAX_FEATURES // features}, whose dense features fit into "
            f"{4 * MAX_FEATURES / 2**30:.0f} GiB, got {images}; give fewer, or a smaller size"
        )


# --- trained --------------------------------------------------------------------------------------------------------


def _fine_tuned(context: EvaluationContext, name: str, settings: TransferSettings) -> Predict:
    """Train a copy of the whole network; every process trains all of it, so that several are no faster than one."""
    data, device = context.data, context.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(data.seed)
        model = _with_own_head(context.model, data.mask_names, name)
        for argument in {*settings.train_args, *settings.test_args}:
            if argument not in inspect.signature(model.forward).parameters:
                raise ValueError(
                    f"preset: expected for dense-transfer={name} a model that takes {argument}, got "
                    f"{context.model.name}; choose another"
                )
        loader = _training_loader(context, settings)

        def predictions() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in loader:
                inputs = {key: value.to(device) for key, value in batch.items()}
                mask = inputs.pop("mask")
                yield model(**inputs, **settings.train_args).logits, mask

        model.train()
        train_on_masks(
            predictions(), model, settings, ignore_index=data.ignore_index, progress=_shows_progress(context)
        )
    model.eval().requires_grad_(False)
    # Accelerators do not add up in the same order twice: all go on with one result.
    model.load_state_dict(context.ranks.from_main({key: value.cpu() for key, value in model.state_dict().items()}))
    trained = functools.partial(model, **settings.test_args)
    return lambda batch: _labels(context.model.call(trained, batch).logits, batch)


def _with_own_head(evaluated: EvaluatedModel, class_names: list[str], preset: str) -> Any:
    """Copy the network, with the new head that its family has for segmentation."""
    config = ZooVisionConfig.of_network(evaluated.network, class_names)
    if config is None:
        raise ValueError(
            f"preset: expected for dense-transfer={preset} a model of CAST, PGT or VT, whose segmentation head is "
            f"trained with it, got {evaluated.name}; leave the preset out"
        )
    model: Any = AutoModelForSemanticSegmentation.from_config(config)
    own = model.model.state_dict()
    given = evaluated.network.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    model.model.load_state_dict(own | fitting)
    return model.to(evaluated.device)


def _training_loader(context: EvaluationContext, settings: TransferSettings) -> DataLoader[Any]:
    """Return an endless loader of random views of the training images, which depend on the seed alone."""
    data = context.data
    source = data.source("train", context.size, single=False)
    order = data.order(source, "train").tolist()
    views = AugmentedDataset(
        _Chosen(source, order),
        context.size[0],
        context.model.inputs,
        AugmentationConfig(crop_scale=settings.crop_scale),
        "mask",
        data.seed,
    )
    sampler = EndlessSampler(len(views), settings.batch_size, data.seed)
    return DataLoader(views, batch_sampler=sampler, num_workers=context.workers)


class _Chosen(ImageSource):
    """Some images of a source."""

    def __init__(self, source: ImageSource, numbers: list[int]) -> None:
        self.source = source
        self.numbers = numbers
        self.mirrored_classes = source.mirrored_classes

    def __len__(self) -> int:
        return len(self.numbers)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return self.source[self.numbers[index]]


# --- both -----------------------------------------------------------------------------------------------------------


def _labels(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """Return every pixel's class, (B, H, W) on the CPU."""
    return resized(logits.float(), batch["pixel_values"].shape[-2:]).argmax(dim=1).cpu()


def _shows_progress(context: EvaluationContext) -> bool:
    return context.progress and context.ranks.is_main
