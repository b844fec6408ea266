"""Promises that every training task keeps: export, start from a checkpoint, interruption."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from grouping_zoo.engine.loop import train
from grouping_zoo.engine.training_state import latest_state, read_tree
from grouping_zoo.objectives.momentum import MomentumObjective
from short_runs import RUNS, short, train_interrupted

every_task = pytest.mark.parametrize("name", RUNS)
Trained = Callable[[str], Path]

# Noise in the training, and averages, that a resumed run has to go on with.
NOISY = {
    "dino": ["objective.freeze_prototypes=0.5"],
    "moco_v3": ["run.num_workers=1"],
    "class": ["objective.mixup_alpha=0.2", "objective.cutmix_alpha=1.0"],
    "mask": ["run.ema_decay=0.5"],
    "image_text": ['model.model_args={"assignment": "gumbel"}', "run.ema_decay=0.5"],
}
NO_EVALUATION = "evaluation.tasks=[]"


def objective_state(run: Path) -> dict[str, Tensor]:
    return read_tree(latest_state(run) / "shared")["objective"]


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


@torch.no_grad()
def outputs(name: str, folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of timm's and transformers' model of a checkpoint."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if name.endswith("text"):
        segments = network.segment_grouping(network.forward_grouped(images)).tokens[-1]
        return segments, AutoModel.from_pretrained(folder)(pixel_values=images).vision_model_output.last_hidden_state
    found = network(images)
    if name == "class":
        return found, AutoModelForImageClassification.from_pretrained(folder)(images).logits
    if name == "mask":
        found = F.interpolate(found, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return found, AutoModelForSemanticSegmentation.from_pretrained(folder)(images).logits
    return found, AutoModel.from_pretrained(folder)(pixel_values=images).pooler_output


@every_task
def test_timm_and_transformers_open_the_checkpoint_with_equal_outputs(name: str, trained: Trained) -> None:
    folder = trained(name) / "checkpoint"
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    size = short(name, folder).data.image_size
    first, second = outputs(name, folder, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(first, second)


@every_task
def test_the_checkpoint_holds_the_trained_weights(name: str, trained: Trained, tmp_path: Path) -> None:
    task = short(name, tmp_path).build()
    weights = published(objective_state(trained(name)))
    assert any(not torch.equal(weights[key], value) for key, value in task.objective.model.state_dict().items())
    task.load_weights(str(trained(name) / "checkpoint"))
    torch.testing.assert_close(task.objective.model.state_dict(), weights, rtol=0, atol=0)
    if isinstance(task.objective, MomentumObjective):
        slow, network = task.objective.momentum_pairs()[0]
        torch.testing.assert_close(slow.state_dict(), network.state_dict(), rtol=0, atol=0)


@every_task
def test_an_interrupted_run_ends_like_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ["run.save_every=2", *NOISY.get(name, []), NO_EVALUATION]
    train(short(name, whole, *settings), progress_bar=False)
    train_interrupted(short(name, parts, *settings), updates=3)
    assert latest_state(parts).name == "step-00000002"
    train(short(name, parts, *settings), progress_bar=False)
    torch.testing.assert_close(objective_state(parts), objective_state(whole), rtol=0, atol=0)
    files = [folder / "checkpoint" / "model.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
