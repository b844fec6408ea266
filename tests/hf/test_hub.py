"""Checkpoints and data sets that lie on a hub: a server on the loopback interface stands in for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints
from hub_server import hub_server

pytestmark = pytest.mark.slow  # each test imports everything anew in a process of its own

OPEN_BOTH_DOORS = """
import json, timm, torch
import grouping_zoo
model, processor = grouping_zoo.open_checkpoint("user/nano")
pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
vision = timm.create_model("hf-hub:user/nano", pretrained=True).eval()
with torch.no_grad():
    theirs = model(pixel_values=pixels).vision_model_output.last_hidden_state
    print(json.dumps([(vision.forward_features(pixels) - theirs).abs().max().item(), float(theirs.abs().max())]))
"""

OPEN_TIMMS = """
import json, timm, torch
from grouping_zoo.evaluation.evaluated_model import plain_timm_source, timm_model
source = plain_timm_source("user/vit")
subject = timm_model("user/vit", source, torch.device("cpu"))
print(json.dumps([source, plain_timm_source("user/nano"), float(subject.network.head.weight.double().sum())]))
"""

READ_DATA_SET = """
import json
from grouping_zoo.data.captioned import hub_images
stored, streamed = (hub_images("user/pictures", "train", streaming=streaming) for streaming in (False, True))
streamed_samples = [streamed.reader.read(row, "row", epoch=0) for row in streamed.rows]
print(json.dumps([[sample.caption for sample in some] for some in ([stored[i] for i in range(3)], streamed_samples)]))

"""


def run_online(program: str, endpoint: str, home: Path) -> Any:
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_checkpoint_on_the_hub_opens_by_both_doors(tmp_path: Path) -> None:
    folder = packaged_checkpoints()["groupvit_nano_scenes"]
    with hub_server({"user/nano": folder}) as (endpoint, requests):
        difference, largest = run_online(OPEN_BOTH_DOORS, endpoint, tmp_path)
    assert largest > 0.1
    assert difference < 1e-6
    assert any(request.endswith("/user/nano/resolve/main/model.safetensors") for request in requests)


def test_a_model_of_timms_on_the_hub_is_evaluated_too(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=3)
    save_for_hf(network, str(tmp_path / "vit"), safe_serialization=True)
    repositories = {"user/vit": tmp_path / "vit", "user/nano": packaged_checkpoints()["cast_nano_scenes"]}
    with hub_server(repositories) as (endpoint, _):
        source, of_the_zoo, weights = run_online(OPEN_TIMMS, endpoint, tmp_path / "home")
    assert (source, of_the_zoo) == ("hf-hub:user/vit", None)
    assert weights == pytest.approx(network.head.weight.double().sum().item())


def test_a_data_set_on_the_hub_is_read_whole_and_as_a_stream(tmp_path: Path) -> None:
    captions = ["a red ball", "two boxes", "a white star"]
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number, caption in enumerate(captions):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    with hub_server({"datasets/user/pictures": tmp_path / "pictures"}) as (endpoint, _):
        stored, streamed = run_online(READ_DATA_SET, endpoint, tmp_path / "home")
    assert sorted(stored) == sorted(streamed) == sorted(captions)


def test_a_missing_repository_is_one_clear_line(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    with hub_server({}) as (endpoint, _):
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "grouping_zoo.cli", "info", "user/missing"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "user/missing" in done.stderr
    assert "Traceback" not in done.stderr
