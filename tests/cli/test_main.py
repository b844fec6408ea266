"""The `grouping-zoo` command as a whole, and `list`."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from command import Run, mistake
from grouping_zoo.version import __version__


@pytest.mark.parametrize("words", [["segmnt"], ["--nothing"], ["info"], ["eval"], ["train", "no_such_recipe"]])
def test_wrong_commands(run: Run, words: list[str]) -> None:
    mistake(run(*words))


def test_list_names_architectures_with_their_size(run: Run) -> None:
    result = run("list")
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if "groupvit_small_patch16_224" in line]
    assert "28.8 M parameters, 224x224 pixels" in line


def test_list_names_packaged_checkpoints_with_their_classes(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grouping_zoo.hf.checkpoint_folder.PACKAGED", checkpoint.parent)
    assert "tiny " in run("list").out
    assert "groupvit_nano_patch4_64; 8 classes: ball, box" in run("list").out
    assert run("info", "tiny").code == 0
    mistake(run("info", "tinny"), "did you mean 'tiny'?")


def test_train_has_its_own_help(run: Run) -> None:
    result = run("train", "--help")
    assert result.code == 0
    assert "recipe" in result.out


def test_it_runs_as_a_module_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["grouping-zoo", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("grouping_zoo.cli", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("words", [["list"], ["--version"]])
def test_the_command_starts_without_what_it_does_not_need(words: list[str]) -> None:
    script = (
        "import sys, contextlib; from grouping_zoo.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({words})\n"
        "unneeded = {'matplotlib', 'torchmetrics', 'datasets', 'skimage', 'sklearn'}\n"
        "unneeded |= {f'grouping_zoo.{room}' for room in ('viz', 'evaluation', 'inference', 'engine')}\n"
        "print(*unneeded & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == ""
