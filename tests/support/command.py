"""Calling the command in the tests' own process, and what it is called with."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from grouping_zoo import ZooGroupViTConfig, ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor, cli
from grouping_zoo.data.sets.scenes import CLASSES
from grouping_zoo.data.tokenization import train_tokenizer
from grouping_zoo.hf.checkpoint_folder import save_checkpoint

THRESHOLD = 0.02


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


def save_tiny_groupvit(folder: Path) -> Path:
    """A checkpoint of a tiny GroupViT that knows the classes of the scenes."""
    torch.manual_seed(0)
    config = ZooGroupViTConfig(
        architecture="groupvit_nano_patch4_64",
        model_args=dict(embed_dim=16, depths=[1, 0], num_heads=2, num_group_tokens=[6, 0], num_output_groups=[6, 0]),
        text_args=dict(vocab_size=300, context_length=16, width=16, depth=1, num_heads=2, eos_token_id=2),
        projection_dim=8,
        projection_hidden_dim=16,
        class_names=list(CLASSES),
        background_threshold=THRESHOLD,
    )
    model = ZooGroupViTModel(config).eval()
    processor = ZooGroupViTProcessor(
        ZooGroupViTImageProcessor(size={"height": 64, "width": 64}),
        train_tokenizer([f"a photo of a {name}" for name in CLASSES], 300, 16),
    )
    save_checkpoint(folder, model, processor, "# tiny\n")
    return folder


@contextlib.contextmanager
def loud_libraries() -> Iterator[None]:
    """The command silences the libraries of its process; other tests want to hear them."""
    levels = {name: logging.getLogger(name).level for name in ("timm", "huggingface_hub", "grouping_zoo")}
    verbosity = transformers_logging.get_verbosity()
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


def caller(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command in this process, with anything as arguments."""

    def call(*arguments: Any) -> Result:
        code: Any = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return Result(code, *capsys.readouterr())

    return call


def photo(size: tuple[int, int] = (96, 80)) -> Image.Image:
    return Image.fromarray(skimage.data.coffee()).resize(size)


def mistake(result: Result, *words: str) -> str:
    """Checks that a user's mistake is told in one line, and returns it."""
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    return line


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def unusual_images() -> dict[str, Callable[[Path], None]]:
    grey = np.asarray(photo().convert("L"))
    return {
        "one_pixel.png": photo((1, 1)).save,
        "line.png": photo((500, 1)).save,
        "three.png": photo((3, 3)).save,
        "thin.png": photo((2, 900)).save,
        "cmyk.jpg": photo().convert("CMYK").save,
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257).save,
        "alpha.png": photo().convert("RGBA").save,
        "palette.png": photo().convert("P").save,
        "grey.png": photo().convert("LA").save,
        "animated.gif": lambda path: photo().save(path, save_all=True, append_images=[photo().rotate(90)] * 3),
        "float.tiff": Image.fromarray(grey.astype(np.float32) / 255).save,
    }
