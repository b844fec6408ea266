"""The example of a family of one's own goes the whole way of the package's families, without an edit of the package."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from transformers import AutoModel, AutoModelForSemanticSegmentation

import grouping_zoo
from command import Run, mistake
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe
from short_runs import SHORT

EXAMPLE = Path(__file__).parents[2] / "examples" / "slot_attention.py"
TINY = dict(embed_dim=16, num_slots=4)
RUNS = {
    "dino": (
        "pgt_nano_photos",
        {
            "model.model_args": TINY,
            "views.local_size": 20,
            "views.num_local": 1,
            "objective.num_prototypes": 8,
            "objective.hidden_dim": 16,
            "objective.bottleneck_dim": 4,
            "evaluation.train_images": 24,
        },
    ),
    "captions": ("pgt_nano_scenes_text", {"model.model_args": TINY}),
    "masks": ("vt_fpn_nano_scenes", {"model.model_args": dict(TINY, dense=True)}),
}


@pytest.fixture(scope="module")
def slot_attention() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slot_attention", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slot_attention"] = module  # timm looks the module of an entry point up by its name
    spec.loader.exec_module(module)
    return module


def trained(name: str, folder: Path) -> Path:
    recipe, changes = RUNS[name]
    settings = {**SHORT, "data.image_size": 32, "evaluation.images": 12, **changes}
    lines = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    train(load_recipe(recipe, [*lines, "model.architecture=slot_attention_nano", f"run.output_dir={folder}"]))
    return folder / "checkpoint"


def test_iterations_equal_a_plain_loop(slot_attention: ModuleType) -> None:
    torch.manual_seed(0)
    binding = slot_attention.SlotBinding(6, 2).double()
    tokens, noise = torch.randn(1, 5, 6, dtype=torch.float64), torch.randn(1, 3, 6, dtype=torch.float64)
    slots, assignment = binding(tokens, noise, 2)
    inputs = binding.norm_tokens(tokens[0])
    state = binding.mean[0] + binding.log_scale[0].exp() * noise[0]
    for _ in range(2):
        queries = binding.query(binding.norm_slots(state))
        share = torch.zeros(5, 3, dtype=torch.float64)
        for n in range(5):
            share[n] = (queries @ binding.key(inputs[n]) / 6**0.5).softmax(dim=0)
        new = []
        for s in range(3):
            weights = (share[:, s] + 1e-8) / (share[:, s] + 1e-8).sum()
            update = sum(weights[n] * binding.value(inputs[n]) for n in range(5))
            after = binding.gru(update[None], state[s][None])[0]
            new.append(after + binding.mlp(binding.norm_mlp(after)))
        state = torch.stack(new)
    torch.testing.assert_close(slots[0], state)
    torch.testing.assert_close(assignment[0], share)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_is_trained_opened_evaluated_and_groups_a_photo(
    name: str, slot_attention: ModuleType, run: Run, tmp_path: Path
) -> None:
    checkpoint = trained(name, tmp_path / "run")
    network = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
    assert isinstance(network, slot_attention.SlotAttention)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if name == "masks":
        logits = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval()(images).logits
        assert logits.shape == (2, network.num_classes, 32, 32)
    else:
        found = AutoModel.from_pretrained(checkpoint).eval().forward_grouping(images)
        assert torch.equal(found.labels(-1), network.forward_grouping(images).labels(-1))
    task = {"dino": "knn", "captions": "zero-shot-cls", "masks": "hierarchy"}[name]
    result = run("eval", checkpoint, "--task", task, "--images", 6, "--train-images", 24, "--out", tmp_path / "eval")
    assert result.code == 0, result.err
    assert task in (tmp_path / "eval" / "metrics.json").read_text()
    photo = Path(__file__).parents[2] / "docs" / "scene.png"
    result = run("segment", photo, "--model", checkpoint, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    segmented = grouping_zoo.segment(str(photo), model=str(checkpoint))
    assert len(segmented.masks) >= 1


def test_a_call_may_change_its_slots(slot_attention: ModuleType, run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = slot_attention.SlotAttentionModel(slot_attention.SlotAttentionConfig(model_args=TINY)).eval()
    classifier.save_pretrained(tmp_path / "model")
    slot_attention.SlotAttentionConfig.image_processor_class.of_network(classifier.model).save_pretrained(
        tmp_path / "model"
    )
    photo = Path(__file__).parents[2] / "docs" / "scene.png"
    command = ("segment", photo, "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert run(*command, "--set", "num_slots=3").code == 0
    record = json.loads((tmp_path / "out" / "scene.json").read_text())
    assert record["groups_per_level"][-1] == 3
    mistake(run(*command, "--set", "num_clusters=3"), "num_clusters")
