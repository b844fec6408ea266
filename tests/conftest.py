"""Settings and fixtures that all tests share."""

import os

# Before any import of the hub's client, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from command import Run, caller
from grouping_zoo import ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from grouping_zoo.data.tokenization import train_tokenizer
from grouping_zoo.hf.checkpoint_folder import save_checkpoint
from two_towers import CAPTIONS, tiny_config
from zoo import with_random_weights

# One thread: sums, and so results to the last bit, do not depend on the number of cores.
torch.set_num_threads(1)

# A first backward pass before anything is compiled: torch's compiler registers devices, for which a first pass after it
# starts threads, and forked processes could then run no backward pass.
torch.ones(1, requires_grad=True).sum().backward()

# A shell starts programs in the background with interrupts ignored, which the programs that tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command: `run("segment", path, "--out", folder)`."""
    return caller(capsys)
