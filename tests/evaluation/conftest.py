from pathlib import Path

import pytest
import timm

from evaluated import CPU
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel, transformers_model
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.hf.vision import publish
from zoo import with_random_weights


@pytest.fixture(scope="module")
def groupvit(checkpoint_folder: Path) -> EvaluatedModel:
    return transformers_model("tiny", *open_checkpoint(checkpoint_folder), CPU)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    settings = dict(embed_dim=32, depths=(1, 1, 1, 1), superpixel_method="grid")
    network = with_random_weights(timm.create_model("cast_nano", **settings).eval())
    folder = tmp_path_factory.mktemp("cast") / "cast"
    publish(network, folder, "# cast\n")
    return transformers_model("cast", *open_checkpoint(folder), CPU)
