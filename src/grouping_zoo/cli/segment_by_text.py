"""`grouping-zoo segment` with a model that has text: every pixel gets a class."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from grouping_zoo.cli.segment import Finding
from grouping_zoo.data.tokenization import make_tokenize
from grouping_zoo.evaluation.scenes import prompt_templates, segmenter_settings
from grouping_zoo.evaluation.zero_shot import ZeroShotSegmenter, class_embeddings
from grouping_zoo.viz import pictures
from grouping_zoo.viz.photo_segmentation import PhotoSegmentation, PhotoSegmenter

GROUPS, OVERLAY, LABELS = "_groups.png", "_overlay.png", "_labels.png"
GROUP_OPTIONS = ("level", "clusters", "groups", "layer", "head")


def check_text_options(options: argparse.Namespace) -> None:
    """Checks what can be checked before a model is opened, which takes its time.

    Raises:
        ValueError: on wrong classes, or a stride without a window.
    """
    if options.stride and not options.window:
        raise ValueError("--stride: expected only with --window, got it alone; add --window")
    _class_names(options.classes)


class TextReader:
    """Segments photos by class names; see `grouping_zoo.cli.segment.PhotoReader`.

    Args:
        options: of the command.
        model: a transformers model with two towers.
        processor: with an image processor and a tokenizer.

    Raises:
        ValueError: if the model has no classes and none are given, or on a setting for models without text.
    """

    endings = re.compile(r"_(groups|overlay|labels)\.png$")

    def __init__(self, options: argparse.Namespace, model: Any, processor: Any) -> None:
        for name in GROUP_OPTIONS:
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: is for models without text, which {options.model} is not; leave it out")
        config = model.config
        self.class_names = _known_classes(options, list(config.class_names or []))
        templates = prompt_templates(config)
        chosen = dict(
            background_threshold=options.threshold, masks=options.masks, window=options.window, stride=options.stride
        )
        settings = segmenter_settings(config, **chosen)
        text = class_embeddings(model.model, make_tokenize(processor.tokenizer), self.class_names, templates)
        segmenter = ZeroShotSegmenter(model=model.model, text=text, **settings)
        size = options.size or min(config.pretrained_cfg["input_size"][1:])
        self.settings = settings | {"stride": segmenter.stride, "size": size, "prompts": templates}
        self.segmenter = PhotoSegmenter(segmenter=segmenter, image_processor=processor.image_processor, size=size)

    def __call__(self, photo: Image.Image) -> Finding:
        """Segments a photo."""
        found = self.segmenter(photo)
        return Finding(
            _record(found, self.class_names),
            _words(found, self.class_names),
            (OVERLAY, GROUPS),
            lambda target: _save(target, found, self.class_names),
        )


def _known_classes(options: argparse.Namespace, own: list[str]) -> list[str]:
    names = _class_names(options.classes) or own
    if not names:
        raise ValueError(f'--classes: {options.model} has no classes of its own; give for example "cat, coffee cup"')
    foreign = [name for name in names if own and name not in own]
    if foreign:
        print(
            f"note: {options.model} was made for {', '.join(own)}; what it finds of {', '.join(foreign)} may be wrong",
            file=sys.stderr,
        )
    return names


def _class_names(text: str | None) -> list[str] | None:
    """The classes asked for; None for the model's own."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip(" ;")]
    if not names:
        raise ValueError('--classes: expected at least one class name, got none; give for example "cat, coffee cup"')
    lowered = [name.casefold() for name in names]
    twice = sorted({name for name in lowered if lowered.count(name) > 1})
    if twice:
        raise ValueError(f"--classes: expected different names, got {', '.join(twice)} more than once; leave one out")
    if "background" in lowered:
        raise ValueError("--classes: background is what reaches no class; leave it out, and set --threshold instead")
    return names


def _record(found: PhotoSegmentation, class_names: Sequence[str]) -> dict[str, Any]:
    background, *shares = found.shares()
    classes = zip(class_names, shares, found.scores, found.probabilities, strict=True)
    return {
        "image_size": {"width": found.full_size[0], "height": found.full_size[1]},
        "working_size": {"width": found.working_size[0], "height": found.working_size[1]},
        "background": {"index": 0, "share": round(background, 6)},
        "classes": [
            {
                "index": index,
                "name": name,
                "share": round(share, 6),
                "score": round(score, 6),
                "image_probability": round(probability, 6),
            }
            for index, (name, share, score, probability) in enumerate(classes, start=1)
        ],
        "groups": {"per_level": found.group_counts, "seen": found.groups_seen},
    }


def _words(found: PhotoSegmentation, class_names: Sequence[str]) -> str:
    shares = dict(zip(["background", *class_names], found.shares(), strict=True))
    background = shares.pop("background")
    seen = sorted((name for name, share in shares.items() if share), key=lambda name: -shares[name])
    parts = [f"{name} {pictures.percent(shares[name])}" for name in seen]
    parts += [f"background {pictures.percent(background)}"] * (background > 0)
    groups = "1 group" if found.groups_seen == 1 else f"{found.groups_seen} groups"
    return f"{', '.join(parts)}; {groups}"


def _save(target: Path, found: PhotoSegmentation, class_names: Sequence[str]) -> None:
    shown = ["background", *(name.split(";")[0].strip() for name in class_names)]
    folder, name = target.parent, target.name
    pictures.groups_picture(found.picture, found.groups).save(folder / f"{name}{GROUPS}")
    pictures.overlay_picture(found.picture, found.labels, shown).save(folder / f"{name}{OVERLAY}")
    pictures.save_label_png(found.full_labels(), folder / f"{name}{LABELS}")
