import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from command import THRESHOLD, Run, loud_libraries, mistake
from grouping_zoo.cli import evaluate
from grouping_zoo.data.sets.scenes import CLASSES
from grouping_zoo.engine import cpu_launch
from grouping_zoo.hf.vision import publish
from zoo import with_random_weights

QUICK = ("--images", 7, "--train-images", 10)


@pytest.fixture(autouse=True)
def _library_settings() -> Iterator[None]:
    with loud_libraries():
        yield


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = dict(embed_dim=32, depths=(1, 1, 1, 1), superpixel_method="grid", num_classes=len(CLASSES))
    torch.manual_seed(0)
    network = with_random_weights(timm.create_model("cast_nano", **settings).eval())
    folder = tmp_path_factory.mktemp("models") / "cast"
    publish(network, folder, "# cast\n", class_names=CLASSES)
    return folder


def cells(line: str) -> list[str]:
    return line.split("%")[-1].split()


def test_eval_prints_the_checkpoint_beside_the_untrained_and_the_background(
    run: Run,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    words = ("--images", 12, "--seed", 5, "--task", "zero-shot-cls,zero-shot-seg,hierarchy", "--untrained")
    result = run("eval", checkpoint, *words, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    _, header, *rows, switches = result.out.splitlines()
    assert header.split() == ["checkpoint", "untrained", "all", "background"]
    titles = [row.split(",")[0].strip() for row in rows]
    assert titles[:3] == ["zero-shot-cls", "best class is in the image", "zero-shot-seg"]
    assert [f"IoU {name}" for name in ("background", *CLASSES)] == [title for title in titles if title[:3] == "IoU"]
    assert f"background_threshold {THRESHOLD}" in switches
    assert "seed 5" in result.out.splitlines()[0]
    written = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    (model,) = written["models"].values()
    assert set(model["metrics"]) == {"checkpoint", "untrained", "all background"}
    assert written["data"]["images"] == 12
    miou = model["metrics"]["checkpoint"]["zero-shot-seg"]["miou"]
    (row,) = [row for row in rows if "mean IoU" in row]
    assert cells(row)[0] == f"{miou:.1f}"
    assert cells(row)[2] == f"{model['metrics']['all background']['zero-shot-seg']['miou']:.1f}"
    with (tmp_path / "out" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert float(next(line["value"] for line in lines if line["metric"] == "miou")) == miou
    plots = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert plots == {f"tiny_{n}" for n in ("zero-shot-seg_classes", "zero-shot-seg_examples", "hierarchy_levels")}
    for path in (tmp_path / "out").glob("*.png"):
        assert min(Image.open(path).size) > 100


def test_all_packaged_checkpoints_by_all_tasks_that_fit(
    run: Run,
    checkpoint: Path,
    cast: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in (checkpoint, cast):
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.setattr("grouping_zoo.hf.checkpoint_folder.PACKAGED", tmp_path)
    result = run("eval", "--all", "--task", "top1,superpixels,zero-shot-cls", *QUICK, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]
    evaluated = {name: {column: set(tasks) for column, tasks in one["metrics"].items()} for name, one in found.items()}
    assert evaluated == {
        "cast": {column: {"top1", "superpixels"} for column in ("checkpoint", "untrained")},
        "tiny": {column: {"zero-shot-cls"} for column in ("checkpoint", "untrained")},
    }
    assert (tmp_path / "out" / "cast_top1_confusion.png").exists()
    mistake(run("eval", "--all", "--task", "segmentation", *QUICK), "segmentation fits none of cast, tiny")
    mistake(run("eval", "--all", "cast"), "NAME_OR_DIR or --all")


def test_compare_shows_metrics_and_differences(
    run: Run,
    checkpoint: Path,
    cast: Path,
    tmp_path: Path,
) -> None:
    result = run("compare", checkpoint, cast, *QUICK, "--task", "retrieval,knn", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    header = result.out.splitlines()[1]
    assert header.split("  ")[-1].strip() == "cast - tiny"
    (row,) = [line for line in result.out.splitlines() if "mean IoU" in line]
    tiny, other, difference = map(float, cells(row))
    assert difference == pytest.approx(other - tiny, abs=0.11)
    assert (tmp_path / "out" / "comparison_retrieval_differences.png").exists()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]
    first, second, less = (next(iter(one["metrics"].values())) for one in found.values())
    per_class = {name for name in less["retrieval"] if name.startswith("iou/")}
    assert per_class
    for name in per_class:
        assert less["retrieval"][name] == second["retrieval"][name] - first["retrieval"][name]


def test_compare_needs_two_models_with_a_task_in_common(run: Run, cast: Path) -> None:
    mistake(run("compare", cast), "two or more different checkpoints")
    mistake(run("compare", cast, cast), "two or more different checkpoints")
    mistake(run("compare", cast, cast.parent), "found no config.json")


def test_wrong_data(run: Run, cast: Path, checkpoint: Path, tmp_path: Path) -> None:
    mistake(run("eval", cast, "--data", "vok:there"), "expected one of scenes, ", "voc:DIR", "vok:there")
    mistake(run("eval", cast, "--data", f"folder:{tmp_path}"), "folder")
    mistake(run("eval", cast, "--data", "digits", "--task", "top1"), "got also zero, one, two")
    mistake(run("eval", cast, "--data", "scenes", "--split", "test"), "split", "'test'")
    mistake(run("eval", cast, "--split", "train", "--task", "knn", *QUICK), "train_split", "another split", "'train'")
    result = run("eval", checkpoint, "--data", "digits", "--task", "zero-shot-cls", *QUICK)
    assert result.code == 0
    assert "note: " in result.err
    assert "zero, one, two" in result.err


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        (("--task", ","), ["--task", "expected names", "got ','"]),
        (("--task", "knn,foo"), ["--task: expected some of top1, knn", "got 'foo'"]),
        (("--metric", "miou"), ["--metric: expected some of boundary, got 'miou'"]),
        (("--preset", "linear=sweep,"), ["--preset", "TASK=NAME"]),
        (("--seed", -1), ["--seed", "from 0 to 4294967295", "'-1'"]),
        (("--seed", 10**20), ["--seed", "from 0 to 4294967295"]),
        (("--workers", -1), ["--workers", "at least 0", "'-1'"]),
        (("--size", 100_000), ["--size: expected at most 4096 pixels, got 100000; lower it"]),
    ],
)
def test_wrong_switches(run: Run, switches: tuple[Any, ...], words: list[str]) -> None:
    mistake(run("eval", "--all", *switches), *words)


def test_a_timm_model_whose_weights_cannot_be_fetched_is_named(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(name: str, **_: Any) -> None:
        raise FileNotFoundError("Please check your connection")

    monkeypatch.setattr(timm, "create_model", offline)
    mistake(run("eval", "resnet18"), "resnet18: expected a model of timm's with weights", "check your connection")


def test_images_that_cannot_be_read_are_named_at_the_end(run: Run, cast: Path, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 4)):
        for name in CLASSES[:2]:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (64, 64), (40 * number,) * 3).save(tmp_path / split / name / f"{number}.png")
    torn = tmp_path / "val" / CLASSES[0] / "2.png"
    torn.write_bytes(b"torn")
    result = run("eval", cast, "--data", f"folder:{tmp_path}", "--task", "knn,top1", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "skipped, because they could not be read: 1" in result.err
    assert str(torn) in result.err
    (name,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["skipped"]
    assert name.endswith("val/ball/2.png")


def test_two_processes_give_the_metrics_of_one(run: Run, cast: Path, tmp_path: Path) -> None:
    # Two full batches and an odd rest.
    words = ["--images", "71", "--train-images", "33", "--task", "knn,hierarchy"]
    command = [sys.executable, "-m", "grouping_zoo.cli", "eval", str(cast), *words, "--out", str(tmp_path / "two")]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # What torchrun says to each process, without its own start, which takes seconds.
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **told, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    one = run("eval", cast, *words, "--out", tmp_path / "one")
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0] == one.out
    assert said[1][0] == "", "the second process says nothing"
    assert (tmp_path / "two" / "metrics.csv").read_text() == (tmp_path / "one" / "metrics.csv").read_text()


def test_accelerate_launch_on_the_cpu_starts_the_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(evaluate, "started_alone_by_accelerate", lambda: True)
    monkeypatch.setattr(evaluate, "processes_asked_for", lambda: 2)
    monkeypatch.setattr(cpu_launch, "torchrun", started.append)
    monkeypatch.setattr(sys, "argv", ["cli", "eval", "some"])
    assert run("eval", "some").code == 0
    assert started == [["--nproc-per-node=2", "-m", "grouping_zoo.cli", "eval", "some"]]
