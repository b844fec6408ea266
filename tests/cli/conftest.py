"""What all tests of the command share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from command import loud_libraries, save_tiny_groupvit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny GroupViT."""
    return save_tiny_groupvit(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _library_settings() -> Iterator[None]:
    with loud_libraries():
        yield
