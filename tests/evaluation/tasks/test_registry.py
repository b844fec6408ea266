from pathlib import Path

import pytest
import timm

from evaluated import SCENES, grey_folder, model_of
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.metrics.base import QUANTITIES, Quantity, quantity
from grouping_zoo.evaluation.tasks import TASKS, Task, check_presets, fitting_tasks, register_task


def test_tasks_fit_by_what_a_model_can_do(groupvit: EvaluatedModel, cast: EvaluatedModel) -> None:
    everyone = ["knn", "linear", "dense-transfer", "retrieval", "grouping-only", "clustering"]
    found = {one.name: {task.name for task in fitting_tasks(one, SCENES)} for one in (groupvit, cast)}
    assert found["tiny"] == {*everyone, "zero-shot-cls", "zero-shot-seg", "alignment-only", "hierarchy"}
    assert found["cast"] == {*everyone, "hierarchy", "superpixels", "figure-ground"}
    plain = model_of(timm.create_model("test_vit", num_classes=5, img_size=64).eval())
    assert {task.name for task in fitting_tasks(plain, SCENES)} == {*everyone, "top1"}
    fpn = model_of(timm.create_model("semantic_fpn_nano", num_classes=9).eval())
    segments = ["dense-transfer", "retrieval", "grouping-only", "clustering"]
    assert {task.name for task in fitting_tasks(fpn, SCENES)} == {"segmentation", *segments}


def test_a_task_that_does_not_fit_names_those_that_do(cast: EvaluatedModel, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"zero-shot-seg does not fit: cast is no model for it; choose from knn, linear"
    ):
        fitting_tasks(cast, SCENES, ["knn", "zero-shot-seg"])
    with pytest.raises(ValueError, match=r"expected some of top1, knn, .*, got 'nearest'"):
        fitting_tasks(cast, SCENES, ["nearest"])
    folder = grey_folder(tmp_path, ("a", "b"))
    with pytest.raises(ValueError, match=r"retrieval does not fit: the images of folder:.* have no mask"):
        fitting_tasks(cast, EvaluationSet(spec=f"folder:{folder}"), ["retrieval"])


def test_a_task_of_ones_own_is_registered_with_its_quantities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grouping_zoo.evaluation.tasks.registry.TASKS", dict(TASKS))
    monkeypatch.setitem(QUANTITIES, "parsecs", Quantity("placeholder"))

    class Distance(Task):
        name, needs = "distance", ("label",)
        quantities = {"parsecs": Quantity("distance", "pc")}  # noqa: RUF012

        def fits(self, model):
            return True

        def run(self, context):
            return {"parsecs": 12.0}

    register_task(Distance)
    (task,) = fitting_tasks(model_of(timm.create_model("test_vit", img_size=64)), SCENES, ["distance"])
    assert isinstance(task, Distance)
    assert quantity("parsecs/kessel") == ("distance", "pc")
    assert quantity("what_else") == ("what else", "%")
    with pytest.raises(ValueError, match="expected a name that is free, got 'distance'"):
        register_task(Distance)


def test_wrong_presets_are_named() -> None:
    check_presets({"linear": "cast-in1k", "dense-transfer": "scenes"})
    with pytest.raises(ValueError, match="expected for linear one of sweep, cast-in1k, cast-in100, pgt-in1k"):
        check_presets({"linear": "cast"})
    with pytest.raises(ValueError, match="expected one for linear or dense-transfer, got knn=5"):
        check_presets({"knn": "5"})
