from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from evaluated import ClassInCorner, context_of, grey_folder, model_of
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.tasks import TASKS


def test_an_image_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    folder = grey_folder(tmp_path, names)
    corrupt = folder / "val" / "bee" / "1.png"
    corrupt.write_bytes(corrupt.read_bytes()[:40])
    data = EvaluationSet(spec=f"folder:{folder}")
    context = context_of(model_of(ClassInCorner(names, names)), data)
    assert TASKS["knn"].run(context)["accuracy"] == 100
    features, labels = context.features("test")
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert features.argmax(dim=1).tolist() == labels.tolist()
    ((name, reason),) = context.skipped.items()
    assert name.endswith("val/bee/1.png")
    assert str(corrupt) in reason


def test_features_in_the_cache_are_taken_until_something_changes(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    folder = grey_folder(tmp_path / "images", names)
    network = ClassInCorner(names, names)
    network.weight = nn.Parameter(torch.zeros(2))

    def calls(**changes: Any) -> int:
        before = network.calls
        data = EvaluationSet(spec=f"folder:{folder}", **{k: changes.pop(k) for k in ("images",) if k in changes})
        context = context_of(model_of(network), data, cache=tmp_path / "cache", **changes)
        assert TASKS["linear"].run(context)["top1"] == 100
        return network.calls - before

    assert calls() == 2
    assert calls() == 0, "the second probe does not run the network"
    assert calls(size=(24, 24)) == 2
    assert calls(images=8) == 1, "the training images are the same"
    network.weight.data += 1
    assert calls() == 2
    Image.new("RGB", (40, 36)).save(folder / "val" / "ant" / "new.png")
    assert calls() == 2
    assert calls() == 0
