"""Settings and fixtures that all tests share."""

import os

# Before any import of the hub's client, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from grouping_zoo import ZooGroupViTConfig, ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from grouping_zoo.data.tokenization import train_tokenizer
from grouping_zoo.hf.checkpoint_folder import save_checkpoint
from zoo import with_random_weights

# One thread: sums, and so results to the last bit, do not depend on the number of cores.
torch.set_num_threads(1)

CAPTIONS = ["a photo of a cat", "a coffee cup on a table", "the handwritten digit seven", "a rocket, in the sky"]


def tiny_config(**kwargs: object) -> ZooGroupViTConfig:
    """Two towers that fit the tokenizer of `checkpoint_folder`."""
    settings = dict(
        architecture="groupvit_nano_patch4_64",
        model_args=dict(
            img_size=32,
            embed_dim=32,
            num_heads=2,
            depths=(1, 1, 1),
            num_group_tokens=(6, 4, 0),
            num_output_groups=(6, 4, 0),
        ),
        text_args=dict(vocab_size=300, context_length=16, width=16, depth=2, num_heads=2, eos_token_id=2),
        projection_dim=12,
        projection_hidden_dim=24,
    )
    return ZooGroupViTConfig(**{**settings, **kwargs})


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny two-tower checkpoint with tokenizer and image processor. Read-only: copy it before changing anything."""
    torch.manual_seed(0)
    model = with_random_weights(ZooGroupViTModel(tiny_config(class_names=["cat", "cup"])).eval())
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, context_length=16)
    image_processor = ZooGroupViTImageProcessor(size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(folder, model, ZooGroupViTProcessor(image_processor, tokenizer), "# A tiny checkpoint\n")
    return folder


@pytest.fixture
def transformers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Warnings and errors of transformers, which does not pass them on to the root logger by itself."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, "transformers")
    yield caplog
    logger.removeHandler(caplog.handler)
