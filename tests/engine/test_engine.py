import contextlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from grouping_zoo.data.sampling import EndlessSampler, SampleKey
from grouping_zoo.engine import loop, stop_request
from grouping_zoo.engine.loader import EndlessLoader
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.optimization import build_optimizer, build_scheduler, parameter_groups
from grouping_zoo.engine.recipe import OptimizerConfig, ScheduleConfig
from grouping_zoo.engine.stop_request import StopRequest, signals_blocked
from grouping_zoo.engine.training_state import DIGESTS_NAME, latest_state, read_tree, write_tree
from toy_task import (
    ToyDataset,
    ToyNetwork,
    ToyObjective,
    ToyRecipe,
    ToyTask,
    log_lines,
    sample,
    state_tensors,
    toy_recipe,
)


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "checkpoint" / "model.safetensors")


def assert_equal_weights(first: Path, second: Path) -> None:
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


def names_in(group: dict, objective: nn.Module) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in objective.named_parameters() if id(parameter) in members}


def test_weight_decay_spares_biases_norms_and_named_parameters() -> None:
    objective = ToyObjective(ToyNetwork(noisy=True), None, 0)
    groups = parameter_groups(objective, 0.05, None)
    decayed = set().union(*(names_in(group, objective) for group in groups if group["weight_decay"]))
    spared = set().union(*(names_in(group, objective) for group in groups if not group["weight_decay"]))
    assert decayed == {"model.hidden.weight", "model.output.weight", "head.weight"}
    assert decayed | spared == {name for name, _ in objective.named_parameters()}


def test_frozen_parameters_are_left_out() -> None:
    objective = ToyObjective(ToyNetwork(noisy=True), None, 0)
    objective.model.hidden.requires_grad_(False)
    members = set().union(*(names_in(group, objective) for group in parameter_groups(objective, 0.05, None)))
    assert not any("hidden" in name for name in members)
    objective.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the task is frozen"):
        build_optimizer(objective, OptimizerConfig())


@pytest.mark.parametrize("towers", [False, True])
def test_layer_decay_falls_with_the_distance_from_the_top(towers: bool) -> None:
    network = ToyNetwork(noisy=True)
    objective = ToyObjective(nn.ModuleDict({"vision": network}) if towers else network, None, 0)
    groups = parameter_groups(objective, 0.05, 0.5)
    scales = {name: group["lr_scale"] for group in groups for name in names_in(group, objective)}
    prefix = "model.vision." if towers else "model."
    found = [scales[prefix + name] for name in ("hidden.weight", "norm.weight", "output.weight")]
    assert found == [0.25, 0.5, 1.0]
    assert scales["head.weight"] == 1.0


def test_a_trained_network_beside_the_published_one_counts_as_it() -> None:
    objective = ToyObjective(ToyNetwork(noisy=True).requires_grad_(False), None, 0)
    objective.student = ToyNetwork(noisy=True)
    groups = parameter_groups(objective, 0.05, 0.5)
    found = {name: group for group in groups for name in names_in(group, objective)}
    named = objective.student.no_weight_decay()
    assert named
    assert all(found[f"student.{name}"]["weight_decay"] == 0 for name in named)
    assert found["student.hidden.weight"]["weight_decay"] == 0.05
    assert found["student.hidden.weight"]["lr_scale"] == 0.25
    assert not any(name.startswith("model.") for name in found)


def test_layer_decay_without_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay.*Linear has no group_matcher"):
        build_optimizer(ToyObjective(nn.Linear(2, 2), None, 0), OptimizerConfig(layer_decay=0.5))


def expected_rate(config: ScheduleConfig, step: int, steps: int, peak: float) -> float:
    if step < config.warmup_steps:
        start = config.warmup_learning_rate
        return start + (peak - start) * step / config.warmup_steps
    if config.name == "cosine":
        low = config.min_learning_rate
        return low + (peak - low) * (1 + math.cos(math.pi * step / steps)) / 2
    if config.name == "step":
        return peak * config.decay_rate ** (step // config.decay_steps)
    return peak * config.decay_rate ** (step / config.decay_steps) if config.name == "exponential" else peak


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(warmup_steps=5, warmup_learning_rate=0.01, min_learning_rate=0.02),
        ScheduleConfig(name="step", decay_steps=7, decay_rate=0.5),
        ScheduleConfig(name="exponential", decay_steps=7, decay_rate=0.5, warmup_steps=2),
        ScheduleConfig(name="constant", warmup_steps=3),
    ],
    ids=lambda config: config.name,
)
def test_schedule_follows_its_formula(config: ScheduleConfig) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr_scale": 0.5}], lr=1.0)
    scheduler = build_scheduler(optimizer, config, steps=30)
    for step in range(30):
        scheduler.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * expected_rate(config, step, 30, 1.0))


def test_update_n_takes_the_schedule_at_n(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", log_every=1)
    train(recipe, progress_bar=False)
    rates = [line["learning_rate"] for line in log_lines(tmp_path / "run")]
    peak = recipe.optimizer.learning_rate
    assert rates == pytest.approx([expected_rate(recipe.schedule, step, 20, peak) for step in range(20)])


def test_run_equals_a_plain_loop(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", {"noisy": False}, steps=10)
    recipe.optimizer = OptimizerConfig(name="sgd", learning_rate=0.05, weight_decay=0.0, clip_grad_norm=1.0)
    recipe.schedule = ScheduleConfig(name="constant")
    train(recipe, progress_bar=False)

    torch.manual_seed(recipe.run.seed)
    task = ToyTask(recipe)
    optimizer = torch.optim.SGD(task.objective.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    average = {name: value.clone() for name, value in task.objective.model.state_dict().items()}
    losses = []
    for keys in batches_of(recipe):
        loss = task.objective(task.collate([ToyDataset()[key] for key in keys]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.objective.parameters(), 1.0)
        optimizer.step()
        for name, value in task.objective.model.state_dict().items():
            average[name] = 0.9 * average[name] + 0.1 * value
        losses.append(loss.item())
    torch.testing.assert_close(weights(tmp_path / "run"), average)
    logged = log_lines(tmp_path / "run")
    assert [line["step"] for line in logged] == [3, 6, 9, 10]
    assert [line["loss"] for line in logged] == pytest.approx([losses[step - 1] for step in (3, 6, 9, 10)])


def batches_of(recipe: ToyRecipe) -> list[list[SampleKey]]:
    return list(islice(EndlessSampler(50, recipe.run.batch_size, recipe.run.seed), recipe.run.steps))


def test_outputs_of_a_run(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run"
    metrics = train(toy_recipe(output, steps=9, validate_every=4, tracker="tensorboard"), progress_bar=False)
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint",
        "log.jsonl",
        "recipe.yaml",
        "state",
        "tracker",
    ]
    assert json.loads((output / "checkpoint" / "metrics.json").read_text()) == metrics
    assert [line["step"] for line in log_lines(output)] == [3, 4, 6, 8, 9]
    validated = {line["step"]: line["validation/error"] for line in log_lines(output) if "validation/error" in line}
    assert list(validated) == [4, 8, 9]
    assert validated[9] == metrics["error"]
    assert list((output / "tracker").rglob("events*"))


def test_no_pickle_is_written(tmp_path: Path) -> None:
    train(toy_recipe(tmp_path / "run", {"streaming": True}), progress_bar=False)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != DIGESTS_NAME]
    suffixes = {path.suffix for path in files}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".yaml"}


def test_evaluation_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    train(toy_recipe(tmp_path / "rarely", ema_decay=None), progress_bar=False)
    train(toy_recipe(tmp_path / "often", ema_decay=None, validate_every=1), progress_bar=False)
    assert_equal_weights(tmp_path / "rarely", tmp_path / "often")


@pytest.mark.parametrize("streaming", [False, True])
def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path: Path, streaming: bool) -> None:
    toy = {"noisy": False, "streaming": streaming}
    train(toy_recipe(tmp_path / "whole", toy), progress_bar=False)
    train(toy_recipe(tmp_path / "micro", toy, accumulation_steps=2), progress_bar=False)
    torch.testing.assert_close(weights(tmp_path / "whole"), weights(tmp_path / "micro"), rtol=1e-5, atol=1e-6)
    whole, micro = (log_lines(tmp_path / name) for name in ("whole", "micro"))
    assert [line["loss"] for line in whole] == pytest.approx([line["loss"] for line in micro], rel=1e-5)


def test_workers_do_not_change_the_run(tmp_path: Path) -> None:
    train(toy_recipe(tmp_path / "none", steps=8), progress_bar=False)
    train(toy_recipe(tmp_path / "two", steps=8, num_workers=2), progress_bar=False)
    assert_equal_weights(tmp_path / "none", tmp_path / "two")


def test_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss: .* step 8; .*step-00000006.*lower optimizer\.learning_rate"):
        train(toy_recipe(tmp_path / "bad", {"fail_at": 7}, save_every=2), progress_bar=False)
    state = latest_state(tmp_path / "bad")
    assert state is not None
    assert state.name == "step-00000006"
    assert all(value.isfinite().all() for value in state_tensors(state).values())
    assert not (tmp_path / "bad" / "checkpoint").exists()


def test_non_finite_gradient_stops_before_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The root's slope at 0 is infinite, its value is not.
    monkeypatch.setattr(ToyObjective, "forward", lambda self, batch: {"loss": (self.model.position * 0).sum().sqrt()})
    with pytest.raises(FloatingPointError, match="gradient norm: expected a finite number"):
        train(toy_recipe(tmp_path / "run"), progress_bar=False)


def test_newest_states_are_kept(tmp_path: Path) -> None:
    train(toy_recipe(tmp_path / "run", save_every=3, keep_checkpoints=3), progress_bar=False)
    names = sorted(path.name for path in (tmp_path / "run" / "state").iterdir())
    assert names == ["step-00000015", "step-00000018", "step-00000020"]


def test_init_from_takes_the_weights_alone(tmp_path: Path) -> None:
    train(toy_recipe(tmp_path / "first"), progress_bar=False)
    source = tmp_path / "first" / "checkpoint"
    recipe = toy_recipe(tmp_path / "second", steps=4, init_from=str(source))
    recipe.optimizer = OptimizerConfig(name="sgd", learning_rate=1e-12)
    train(recipe, progress_bar=False)
    learned = {name: value for name, value in weights(tmp_path / "second").items() if "norm" not in name}
    torch.testing.assert_close(learned, {name: load_file(source / "model.safetensors")[name] for name in learned})
    assert log_lines(tmp_path / "second")[0]["step"] == 3


def test_mixed_precision_trains_on_the_cpu(tmp_path: Path) -> None:
    # accelerate's state outlives a run, and does not take another precision.
    loop.Accelerator().state._reset_state(reset_partial_state=True)
    metrics = train(toy_recipe(tmp_path / "run", mixed_precision="bf16"), progress_bar=False)
    loop.Accelerator(mixed_precision="bf16").state._reset_state(reset_partial_state=True)
    assert math.isfinite(metrics["error"])


def test_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "run", accumulation_steps=2)
    with pytest.raises(ValueError, match=r"run\.batch_size: expected a multiple of 6 \(3 processes x 2"):
        EndlessLoader(recipe.build(), recipe.run, rank=0, world_size=3, pin_memory=False)


def test_launcher_that_starts_too_few_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        train(toy_recipe(tmp_path / "run"), progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_state_tree_round_trip(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tree = {
        "numbers": {0: 1.5, 3: None, "x": True},
        "pair": (1, [shared, shared.view(2, 3).T]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "bits": 2**100,
    }
    write_tree(tmp_path / "tree", tree)
    found = read_tree(tmp_path / "tree")
    assert found["numbers"] == tree["numbers"]
    assert isinstance(found["pair"], tuple)
    assert found["bits"] == 2**100
    for path in (lambda t: t["pair"][1][0], lambda t: t["pair"][1][1], lambda t: t["empty"], lambda t: t["scalar"]):
        torch.testing.assert_close(path(found), path(tree), rtol=0, atol=0)
    with pytest.raises(ValueError, match="got set at /odd"):
        write_tree(tmp_path / "tree", {"odd": {1}})


def test_stop_request_notes_the_first_interrupt_and_raises_at_the_second() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(toy_recipe(tmp_path / "run", steps=4), False))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()


def test_empty_stream_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: expected a stream with at least one batch"):
        train(toy_recipe(tmp_path / "run", {"streaming": True}, batch_size=48), progress_bar=False)


def test_workers_end_with_the_run(tmp_path: Path) -> None:
    for streaming in (False, True):
        with pytest.raises(FloatingPointError) as error:
            train(
                toy_recipe(tmp_path / f"{streaming}", {"fail_at": 3, "streaming": streaming}, num_workers=2),
                progress_bar=False,
            )
        # Even while the error, and with it the frames of the run, is still held.
        assert error.value is not None
        assert multiprocessing.active_children() == []


def test_undefined_metrics_are_null_in_the_log_and_left_out_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyTask, "evaluate", lambda self, model: {"iou": math.nan, "error": 0.5})
    metrics = train(toy_recipe(tmp_path / "run", steps=4, tracker="tensorboard"), progress_bar=False)
    assert math.isnan(metrics["iou"])
    last = log_lines(tmp_path / "run")[-1]
    assert (last["validation/iou"], last["validation/error"]) == (None, 0.5)
    assert json.loads((tmp_path / "run" / "checkpoint" / "metrics.json").read_text()) == {"error": 0.5}


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as Apple's: any tensor of it is an error."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float64, torch.complex128)), (
                function
            )
        return result


def test_the_engine_makes_no_float64(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), NoFloat64():
        torch.zeros(1, dtype=torch.float64)
    recipe = toy_recipe(tmp_path / "run", validate_every=5, accumulation_steps=2)
    recipe.optimizer = OptimizerConfig(clip_grad_norm=1.0, layer_decay=0.5)
    with NoFloat64():
        train(recipe, progress_bar=False)
    assert log_lines(tmp_path / "run")[-1]["step"] == 20


class BatchNormNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm_act = BatchNormAct2d(4, act_layer=nn.ReLU)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm_act(self.conv(x)))


def test_synchronized_batch_norms_compute_the_same_and_keep_their_activations() -> None:
    torch.manual_seed(0)
    objective = nn.Module()
    objective.model = BatchNormNetwork()
    objective.teacher = nn.Sequential(BatchNormNetwork()).eval().requires_grad_(False)
    x = torch.randn(8, 3, 5, 5)
    objective.model(x)  # moves the averages
    parameters = dict(objective.named_parameters())
    before, objective.model.training = objective.model.eval()(x), True
    objective.train()
    objective.teacher.eval()
    loop.synchronize_batch_norms(objective)
    synchronized = [name for name, module in objective.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    assert synchronized == ["model.norm_act", "model.norm"]
    assert objective.model.training
    torch.testing.assert_close(objective.model.eval()(x), before, rtol=0, atol=0)
    assert objective.model.norm_act(-torch.ones(1, 4, 1, 1)).min() == 0
    # The parameters are the same ones, under the same names.
    assert all(value is parameters[name] for name, value in objective.named_parameters())


def test_stop_request_leaves_a_hangup_that_nohup_ignores() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


@pytest.mark.parametrize("launched", [True, False])
def test_stop_request_notes_the_death_of_a_launcher_but_not_of_a_shell(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    stop = StopRequest()
    assert not stop.requested
    monkeypatch.setattr(stop_request.os, "getppid", lambda: 1)
    assert stop.requested == launched


def test_blocked_signals_arrive_afterwards() -> None:
    with StopRequest() as stop:
        with signals_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert not stop.requested
        assert stop.requested


def test_a_progress_bar_survives_a_closed_error_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        os.close(reader)
        train(toy_recipe(tmp_path / "run", steps=4, log_every=1), progress_bar=True)
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    assert (tmp_path / "run" / "checkpoint").is_dir()


def test_workers_that_hang_end_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(self: ToyDataset, key: SampleKey) -> Any:
        time.sleep(3600 if key.epoch else 0)
        return sample(key.epoch, key.index)

    monkeypatch.setattr(ToyDataset, "__getitem__", hang)
    recipe = toy_recipe(tmp_path / "run", {"fail_at": 3}, num_workers=1)
    with pytest.raises(FloatingPointError):
        train(recipe, progress_bar=False)
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


class BlockedSignals(Dataset[int]):
    """Tells how many of the stop signals the process that reads it has blocked."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return len(signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(stop_request.STOP_SIGNALS))


def test_workers_of_an_evaluation_outlive_signals_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(self: ToyTask, model: nn.Module) -> dict[str, float]:
        return {"blocked": float(next(iter(DataLoader(BlockedSignals(), num_workers=1))))}

    monkeypatch.setattr(ToyTask, "evaluate", evaluate)
    assert train(toy_recipe(tmp_path / "run", steps=4), progress_bar=False) == {"blocked": 3.0}
    assert BlockedSignals()[0] == 0
