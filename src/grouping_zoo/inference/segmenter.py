"""Segmentation of photos in one call, by any checkpoint of this package."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, overload

from transformers import PreTrainedModel

from grouping_zoo.inference.group_photo import PhotoGrouper
from grouping_zoo.inference.opening import grouping_network, has_text, open_model
from grouping_zoo.inference.photos import Photo, load_photo, photo_name
from grouping_zoo.inference.result import Origin, Segmentation
from grouping_zoo.inference.segment_photo import TextSegmenter, class_list
from grouping_zoo.version import __version__

DEFAULT_MODEL = "groupvit_nano_scenes"
Model = str | os.PathLike[str] | tuple[Any, Any]


class Segmenter:
    """Segments photos with one opened model.

    A model with text (GroupViT) names every pixel by `classes`; any other shows the groups of every level.

    Args:
        model: name of a checkpoint in the package or on the hub, a checkpoint folder, or an opened
            (model, processor) of transformers.
        classes: for models with text: names, or one text with commas between them; "cat; kitten" is one class. None
            for the model's own.
        threshold: for models with text: score below which a pixel is background, 0 to 1; None for the model's.
        masks: for models with text: "hard", a pixel belongs to one group, or "soft", to all; None for the model's.
        window: for models with text: side of a sliding window in pixels; None for none.
        stride: for models with text: step of the window in pixels; None for half of it.
        level: for models without text: the one level that is shown, 0 the finest, -1 the coarsest; None for all.
        size: shorter side of the photo that the network sees, in pixels; None for the model's own.
        device: of the model; None for the CPU, or where an opened model is.
        grouping_args: for models without text: what a call may change, such as CAST's `num_clusters` or PGT's
            `num_groups`, `layer` and `head`; see the network's `grouping_args`.

    Attributes:
        settings: every setting that changes the results.
        note: a warning about `classes` that the model was not made for; None for no such.

    Raises:
        ValueError: for a model that cannot be opened or makes no groups, or a setting that it does not have.
    """

    def __init__(
        self,
        model: Model = DEFAULT_MODEL,
        *,
        classes: str | Sequence[str] | None = None,
        threshold: float | None = None,
        masks: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        level: int | None = None,
        size: int | None = None,
        device: str | None = None,
        **grouping_args: Any,
    ) -> None:
        if stride and not window:
            raise ValueError("stride: expected only with window, got it alone; set window too")
        names = class_list(classes)
        self.model_name, opened, processor = _opened(model, device)
        self.device = str(next(opened.parameters()).device)
        text_settings = {"threshold": threshold, "masks": masks, "window": window, "stride": stride}
        network = grouping_network(opened)
        self.note: str | None = None
        self._segment: TextSegmenter | PhotoGrouper
        if has_text(opened, processor):
            _refuse({"level": level, **grouping_args}, f"is for models without text, which {self.model_name} is not")
            own = list(opened.config.class_names or [])
            names = names or own
            if not names:
                raise ValueError(
                    f'classes: {self.model_name} has no classes of its own; give for example "cat, coffee cup"'
                )
            self.note = _note(self.model_name, names, own)
            overrides = {"background_threshold": text_settings.pop("threshold"), **text_settings}
            self._segment = TextSegmenter(opened, processor, names, _size(size, opened), overrides)
        elif network is not None:
            _refuse(
                {"classes": names or None, **text_settings},
                f"{self.model_name} has no text encoder, it groups but names nothing",
                ", or choose a GroupViT checkpoint: grouping-zoo list",
            )
            self._segment = PhotoGrouper(network, processor, _size(size, opened), level, grouping_args)
        else:
            raise ValueError(
                f"{self.model_name}: {type(opened).__name__} makes no groups; choose from: grouping-zoo list"
            )
        self.settings = self._segment.settings

    @overload
    def __call__(self, image: Photo) -> Segmentation: ...

    @overload
    def __call__(self, image: list[Any]) -> list[Segmentation]: ...

    def __call__(self, image: Photo | list[Any]) -> Segmentation | list[Segmentation]:
        """Segment a photo, or each of a list.

        Args:
            image: see `grouping_zoo.inference.photos.load_photo`, or a list of such.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the photo cannot be read, or the network would have to look at too much of it at once.
        """
        if isinstance(image, list):
            return [self(one) for one in image]
        origin = Origin(
            image=photo_name(image),
            model=self.model_name,
            device=self.device,
            version=__version__,
            settings=self.settings,
        )
        return self._segment(load_photo(image), origin)


@overload
def segment(
    image: Photo, model: Model = ..., classes: str | Sequence[str] | None = ..., **settings: Any
) -> Segmentation: ...


@overload
def segment(
    image: list[Any], model: Model = ..., classes: str | Sequence[str] | None = ..., **settings: Any
) -> list[Segmentation]: ...


def segment(
    image: Photo | list[Any],
    model: Model = DEFAULT_MODEL,
    classes: str | Sequence[str] | None = None,
    **settings: Any,
) -> Segmentation | list[Segmentation]:
    """Segment a photo, or each of a list, as `grouping-zoo segment` does.

    The model is opened anew in each call; for many calls make a `Segmenter` and call that.

    Args:
        image: a path, an image of Pillow, an array (H, W, 3), a tensor (3, H, W), or a list of them; see
            `grouping_zoo.inference.photos.load_photo`.
        model: see `Segmenter`.
        classes: see `Segmenter`.
        settings: other arguments of `Segmenter`.

    Returns:
        The result, which shows, saves and describes itself; a list for a list.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see `Segmenter`.
    """
    segmenter = Segmenter(model, classes=classes, **settings)
    if segmenter.note:
        warnings.warn(segmenter.note, stacklevel=2)
    return segmenter(image)


def _opened(model: Model, device: str | None) -> tuple[str, Any, Any]:
    """The model's name, the model itself and its processor."""
    if isinstance(model, tuple):
        opened, processor = model
        name = opened.name_or_path if isinstance(opened, PreTrainedModel) else ""
        return name or type(opened).__name__, (opened.to(device) if device else opened).eval(), processor
    return (str(model), *open_model(str(model), device or "cpu"))


def _size(size: int | None, model: Any) -> int:
    return size or min(model.config.pretrained_cfg["input_size"][1:])


def _refuse(settings: Mapping[str, Any], reason: str, remedy: str = "") -> None:
    """Refuse settings that do not fit the model, unless they are None."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(f"{name}: {reason}; leave it out{remedy}")


def _note(model: str, names: Sequence[str], own: Sequence[str]) -> str | None:
    foreign = [name for name in names if own and name not in own]
    if not foreign:
        return None
    return f"{model} was made for {', '.join(own)}; what it finds of {', '.join(foreign)} may be wrong"
