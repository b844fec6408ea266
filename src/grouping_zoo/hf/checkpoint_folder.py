"""Checkpoint folders: where they lie, how they are opened, and how they are written so that both doors open them.

A folder holds `model.safetensors`, `config.json` (timm's and transformers' fields together),
`preprocessor_config.json`, `processor_config.json`, the tokenizer where there is text, and `README.md`, its card.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg, is_model
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    BaseImageProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from grouping_zoo.hf.image_text import ZooGroupViTConfig
from grouping_zoo.models.builder import PACKAGED, zoo_models

HEADS = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForSemanticSegmentation": AutoModelForSemanticSegmentation,
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def packaged_checkpoints() -> dict[str, Path]:
    """The checkpoints that come with the package: name -> folder."""
    return {folder.parent.name: folder.parent for folder in sorted(PACKAGED.glob("*/config.json"))}


def find_checkpoint(name: str | Path) -> str:
    """Where the checkpoint of a name lies.

    Args:
        name: a checkpoint folder, a packaged checkpoint ("groupvit_nano_scenes"), a timm model that has one
            ("groupvit_nano_patch4_64"), or a hub name ("user/name").

    Returns:
        the folder, or the hub name as it is.

    Raises:
        ValueError: if nothing fits, with the names that do.
    """
    text = os.fspath(name)
    if text and Path(text).is_dir():  # a path would take an empty text for the current folder
        if not (Path(text) / "config.json").is_file():
            raise ValueError(f"{text}: expected a checkpoint folder, found no config.json in it")
        return text
    packaged = packaged_checkpoints()
    if text in packaged:
        return str(packaged[text])
    if is_model(text.split(".")[0]):
        weights = _packaged_weights(text)
        if weights is None:
            raise ValueError(f"{text}: has no packaged weights; train it, or give a checkpoint folder or hub name")
        return str(weights.parent)
    if HUB_NAME.fullmatch(text) and not text.startswith("."):
        return text
    known = [*packaged, *(model for model in zoo_models() if _packaged_weights(model))]
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"model: {text!r} is no folder, no hub name (user/name) and none of {', '.join(known) or 'no names'}{hint}"
    )


def timm_source(checkpoint: str) -> str:
    """What timm calls a checkpoint folder, a packaged checkpoint or a hub name."""
    found = find_checkpoint(checkpoint)
    return f"{'local-dir' if Path(found).is_dir() else 'hf-hub'}:{found}"


def open_checkpoint(name: str | Path) -> tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]:
    """The model and the processor of a checkpoint.

    Args:
        name: see `find_checkpoint`.

    Returns:
        the model in evaluation mode, with the head that the checkpoint has, and its processor: of a model with text
        the tokenizer and the image processor in one, of any other the image processor.
    """
    source = find_checkpoint(name)
    config = AutoConfig.from_pretrained(source)
    auto_class = fitting_auto_class((config.architectures or [""])[0])
    processor = AutoProcessor if config.model_type == ZooGroupViTConfig.model_type else AutoImageProcessor
    return auto_class.from_pretrained(source).eval(), processor.from_pretrained(source)


def fitting_auto_class(class_name: str) -> Any:
    """transformers' Auto class that opens a checkpoint of a class with the head that it has."""
    return next((auto for end, auto in HEADS.items() if class_name.endswith(end)), AutoModel)


def save_checkpoint(folder: Path, model: PreTrainedModel, processor: ProcessorMixin, card: str) -> None:
    """Writes a checkpoint folder.

    Args:
        folder: made if need be.
        model: a transformers class of this package.
        processor: with an image processor and, where there is text, a tokenizer.
        card: the model card, Markdown.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    image_processor: Any = processor.image_processor
    image_processor.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _packaged_weights(model: str) -> Path | None:
    weights = getattr(get_pretrained_cfg(model, allow_unregistered=False), "file", None)
    return Path(weights) if weights and Path(weights).is_file() else None
