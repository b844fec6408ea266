"""Validation in training gives what `grouping-zoo eval` gives for the checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from evaluated import CPU, context_of
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe, recipe_settings
from grouping_zoo.engine.training_state import check_same_training
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.evaluated_model import transformers_model
from grouping_zoo.evaluation.tasks import TASKS
from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings
from processes import train_in_two_processes
from short_runs import short
from toy_task import log_lines


def checkpoint_metrics(folder: Path, tasks: list[str], data: EvaluationSet) -> dict[str, float]:
    model = transformers_model("trained", *open_checkpoint(folder), CPU)
    settings = {}
    if model.towers is not None:
        config = model.model.config
        settings["zero_shot"] = segmenter_settings(config) | {"templates": prompt_templates(config)}
    context = context_of(model, data, **settings)
    found = {task: TASKS[task].run(context) for task in tasks}
    return {f"{task}/{name}": v for task, metrics in found.items() for name, v in metrics.items() if v == v}


def test_crop_pct_counts_in_training_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            for number in range(8):
                file = tmp_path / "images" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(255, size=(40, 52, 3), dtype=np.uint8)).save(file)
    settings = [
        "model.architecture=vt_resnet18",
        "data.source=folder",
        f"data.path={tmp_path / 'images'}",
        "evaluation.tasks=[top1,knn]",
        "evaluation.images=20",
        "evaluation.train_images=null",
    ]
    found = train(short("class", tmp_path / "run", *settings), progress_bar=False)
    data = EvaluationSet(spec=f"folder:{tmp_path / 'images'}", images=20)
    checkpoint = tmp_path / "run" / "checkpoint"
    assert timm.create_model(f"local-dir:{checkpoint}", pretrained=True).pretrained_cfg["crop_pct"] == 0.875
    assert found == checkpoint_metrics(checkpoint, ["top1", "knn"], data)


def test_a_model_with_text_is_validated_on_any_data_set(tmp_path: Path) -> None:
    settings = ["evaluation.data=digits", "evaluation.images=5", "evaluation.tasks=[zero-shot-cls,zero-shot-seg]"]
    found = train(short("image_text", tmp_path, *settings), progress_bar=False)
    data = EvaluationSet(spec="digits", images=5)
    assert found == checkpoint_metrics(tmp_path / "checkpoint", ["zero-shot-cls", "zero-shot-seg"], data)


def test_several_processes_validate_the_network_that_is_exported(tmp_path: Path) -> None:
    # Batch norm in the stem: each process has statistics of its own, and the entropies show any difference.
    settings = ["evaluation.tasks=[hierarchy]", "evaluation.images=40", "run.ema_decay=0.5"]
    train_in_two_processes(short("image_text", tmp_path, *settings))
    found = checkpoint_metrics(tmp_path / "checkpoint", ["hierarchy"], EvaluationSet(images=40))
    logged = log_lines(tmp_path)[-1]
    # Each process computes with fewer threads than this one, which adds up in another order.
    assert {name: logged[f"validation/{name}"] for name in found} == pytest.approx(found, rel=1e-6)


def test_captions_without_masks_need_a_data_set(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a star"}) + "\n")
    settings = ["data.source=folder", f"data.path={tmp_path}", f"run.output_dir={tmp_path / 'run'}"]
    recipe = load_recipe("groupvit_nano_scenes_quick", settings)
    with pytest.raises(ValueError, match=r"evaluation.data: expected a data set of `grouping-zoo eval --data`, .*null"):
        recipe.build()


def test_the_validation_of_an_interrupted_run_may_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe("groupvit_nano_scenes_quick", ["evaluation.tasks=[zero-shot-cls]"])
    saved = recipe_settings(recipe)
    del saved["zero_shot"]
    saved["evaluation"] = {"images": 500, "background_threshold": 0.5}  # as version 0.1.0 wrote it
    check_same_training(saved, recipe, tmp_path)
    saved["objective"]["memory_bank"] = 9
    with pytest.raises(ValueError, match=r"objective.memory_bank: 9 -> 0"):
        check_same_training(saved, recipe, tmp_path)
