"""Short runs that the tests of the engine share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from grouping_zoo.engine.loop import train
from short_runs import short


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Output folder of a finished short run, by its name in `short_runs.RUNS`; each is trained once."""

    @cache
    def folder_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        train(short(name, folder), progress_bar=False)
        return folder

    return folder_of
