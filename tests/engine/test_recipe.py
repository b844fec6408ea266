"""Recipes: reading, overrides, bases, saving, and the errors of each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import toy_task
from grouping_zoo.engine import recipe as recipe_module
from grouping_zoo.engine.__main__ import main
from grouping_zoo.engine.recipe import (
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    load_recipe,
    recipe_path,
    save_recipe,
)
from grouping_zoo.user_errors import report_user_errors

MINIMAL = "task: toy\nrun: {output_dir: out, steps: 20, batch_size: 8}\n"


@pytest.fixture(autouse=True)
def toy_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipe_module.TASKS, "toy", toy_task.TASKS["toy"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_mean_the_same_in_all_three_forms(file: Path) -> None:
    spellings = (["run.seed=7"], ["--run.seed=7"], ["--run.seed", "7"])
    assert [load_recipe(file, overrides).run.seed for overrides in spellings] == [7, 7, 7]
    assert load_recipe(file, ["run.seed=7", "run.seed=8"]).run.seed == 8


def test_values_get_the_declared_types(file: Path) -> None:
    recipe = load_recipe(
        file,
        ["optimizer.learning_rate=1e-3", "optimizer.betas=[0.9,0.95]", "run.ema_decay=null", "toy.extra={depth: 3}"],
    )
    assert recipe.optimizer.learning_rate == 0.001
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.run.ema_decay is None
    assert recipe.toy.extra == {"depth": 3}


def test_saved_recipe_reads_back_equal(file: Path, tmp_path: Path) -> None:
    overrides = ["optimizer.betas=[0.9,0.95]", "optimizer.learning_rate=1e-5", "toy.extra={a: [1, x, null]}"]
    recipe = load_recipe(file, overrides)
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_a_packaged_recipe_reads_like_the_resolved_one_that_an_earlier_release_saved(tmp_path: Path) -> None:
    saved = json.loads((Path(toy_task.__file__).parent / "golden" / "recipes.json").read_text())
    assert len(saved) == 19
    for name, settings in saved.items():
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
        assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(name), name


# --- bases ----------------------------------------------------------------------------------------------------------


def test_a_recipe_changes_single_settings_of_its_base(file: Path, tmp_path: Path) -> None:
    middle, last = tmp_path / "deeper" / "middle.yaml", tmp_path / "last.yaml"
    middle.parent.mkdir()
    middle.write_text("base: ../recipe.yaml\nrun: {steps: 30, seed: 3}\ntoy: {noisy: false, extra: {a: 1, b: 2}}\n")
    last.write_text("base: deeper/middle.yaml\nrun: {seed: 4}\ntoy: {extra: {b: 3}}\n")
    recipe = load_recipe(last, ["run.batch_size=16"])
    expected = ["run.steps=30", "run.seed=4", "run.batch_size=16", "toy.noisy=false", "toy.extra={b: 3}"]
    assert recipe == load_recipe(file, expected)
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert "base" not in (tmp_path / "resolved.yaml").read_text()
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_a_packaged_recipe_is_a_base(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: cast_small_in100\nrun: {steps: 7000, warmup_steps: 3}\n")
    with pytest.raises(ValueError, match=r"own\.yaml: run\.warmup_steps is no setting"):
        load_recipe(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("base: cast_small_in100\nrun: {steps: 99001}\n")
    assert load_recipe(tmp_path / "own.yaml") == load_recipe("cast_small_in100", ["run.steps=99001"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: a.yaml"}, r"a\.yaml: base: expected a recipe that is not based on this one, got a\.yaml"),
        (
            {"a": "base: b.yaml", "b": "base: ./a.yaml"},
            r"b\.yaml: base: expected .* not based on this one, got \./a\.yaml",
        ),
        ({"a": "base: none.yaml"}, r"a\.yaml: base: expected a YAML file, got .*none\.yaml, which does not exist"),
        ({"a": "base: cast_nano_scene"}, r"a\.yaml: base: expected .* packaged recipe, .*'cast_nano_scenes'\?"),
        ({"a": "base: [b]"}, r"a\.yaml: base: expected a YAML file or a packaged recipe"),
        ({"a": "base: b.yaml", "b": "run: {stesp: 1}\ntask: toy"}, r"b\.yaml: run\.stesp is no setting"),
        ({"a": "base: b.yaml", "b": "run: {steps: 1}"}, r"a\.yaml: task: expected one of"),
        ({"a": "base: b.yaml\ntask: toy", "b": "task: dino"}, r"b\.yaml: task: expected toy as in .*a\.yaml, got dino"),
    ],
)
def test_a_wrong_base_is_one_error(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_a_base_is_no_override(file: Path) -> None:
    with pytest.raises(ValueError, match="override: base is no setting"):
        load_recipe(file, ["base=cast_nano_scenes"])


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.stesp=3", r"run\.stesp is no setting; did you mean run\.steps\?"),
        ("rum.steps=3", r"rum is no setting; did you mean run\?"),
        ("run.steps=many", r"run\.steps.*int.*many"),
        ("run.steps=2.5", r"run\.steps.*int.*2\.5"),
        ("run.mixed_precision=fp61", r"run\.mixed_precision.*fp16.*fp61"),
        ("run.steps", "KEY=VALUE"),
        ("--run.steps", "KEY=VALUE"),
        ("task=image_text", "task: expected toy"),
        ("optimizer.name=adamv", r"optimizer\.name.*did you mean 'adam"),
        ("optimizer.betas=[0.9,1.5]", r"optimizer\.betas.*1\.5"),
        ("schedule.warmup_steps=20", r"schedule\.warmup_steps.*fewer than run\.steps=20"),
        ("schedule.name=step", r"schedule\.decay_steps: expected at least 1"),
    ],
)
def test_wrong_override_is_an_error_that_names_it(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: toy\nrun: {output_dir: out, steps: 20, batch_size: 8, stesp: 3}", r"run\.stesp.*run\.steps"),
        ("task: tyo\n", "did you mean 'toy'"),
        ("run: {steps: 2}\n", "add a line `task: NAME`"),
        ("- a\n- b\n", "mapping"),
        ("task: [toy\n", "expected YAML"),
        ("task: toy\nrun: {output_dir: out, steps: 20}\n", r"run\.batch_size"),
        ("task: toy\nrun: 3\n", "run"),
    ],
)
def test_wrong_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}),
        (OptimizerConfig, {"weight_decay": -1.0}),
        (OptimizerConfig, {"layer_decay": 1.5}),
        (OptimizerConfig, {"clip_grad_norm": 0.0}),
        (OptimizerConfig, {"betas": (0.9, 0.99), "name": "sgd"}),
        (ScheduleConfig, {"warmup_steps": -1}),
        (ScheduleConfig, {"decay_steps": 3}),
        (ScheduleConfig, {"min_learning_rate": 1e-5, "name": "constant"}),
        (ScheduleConfig, {"decay_rate": 0.0}),
        (RunConfig, {"steps": 0}),
        (RunConfig, {"batch_size": 9, "accumulation_steps": 2}),
        (RunConfig, {"ema_decay": 1.0}),
        (RunConfig, {"keep_checkpoints": 0}),
        (RunConfig, {"validate_every": 0}),
        (RunConfig, {"seed": 2**32}),
        (RunConfig, {"output_dir": __file__}),
    ],
)
def test_impossible_setting_is_refused_by_name(cls: type, settings: dict[str, object]) -> None:
    required = {"output_dir": "out", "steps": 20, "batch_size": 8} if cls is RunConfig else {}
    section = cls.__name__.removesuffix("Config").lower()
    with pytest.raises(ValueError, match=rf"{section}\.\w+: expected"):
        cls(**{**required, **settings})


def test_unknown_packaged_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="packaged recipe, got 'no-such-thing-at-all'; known: "):
        recipe_path("no-such-thing-at-all")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("error", [ValueError("a\nb"), FileNotFoundError("a b"), FloatingPointError("a b")])
def test_user_error_is_one_line_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, report_user_errors():
        raise error
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: a b\n"


def test_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), report_user_errors():
        raise KeyError("bug")


@pytest.mark.parametrize(
    "arguments", [[], ["--resume", "perhaps"], ["no-such-recipe"], ["none.yaml"], ["FILE", "run.stesp=3"]]
)
def test_command_line_mistake_is_one_line(
    arguments: list[str],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([str(file) if argument == "FILE" else argument for argument in arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_misspelt_key_in_a_fresh_process(file: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, toy_task.__file__, str(file), "--run.stesp", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=toy_task.subprocess_environment(),
    )
    assert result.returncode == 2
    assert result.stderr == "error: override: run.stesp is no setting; did you mean run.steps?\n"
    assert list(tmp_path.iterdir()) == [file]
