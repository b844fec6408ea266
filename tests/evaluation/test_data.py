from pathlib import Path

import pytest

from evaluated import grey_folder
from grouping_zoo.evaluation.data import EvaluationSet


def test_training_images_must_be_others_of_the_same_classes(tmp_path: Path) -> None:
    folder = grey_folder(tmp_path, ("ant", "bee"))
    same = EvaluationSet(spec=f"folder:{folder}", split="train")
    with pytest.raises(ValueError, match="train_split: expected another split than the evaluated one, got 'train'"):
        same.source("train", (32, 32), single=True)
    (folder / "train" / "ant").rename(folder / "train" / "cat")
    other = EvaluationSet(spec=f"folder:{folder}")
    for _ in range(2):
        with pytest.raises(ValueError, match="train_split: expected the 2 classes of validation, got 2 or others in"):
            other.source("train", (32, 32), single=True)


def test_settings_are_the_arguments() -> None:
    data = EvaluationSet(spec="digits", images=3)
    assert data.class_names[0] == "zero"
    assert EvaluationSet(**data.settings) == data
    assert (data.settings["spec"], data.settings["images"], len(data.settings)) == ("digits", 3, 6)
