"""The training loop: from a recipe to a checkpoint, on one process or many, interrupted or not."""

import copy
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast, send_to_device, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from grouping_zoo.engine.cpu_launch import started_alone_by_accelerate
from grouping_zoo.engine.loader import EndlessLoader
from grouping_zoo.engine.log import TrainingLog
from grouping_zoo.engine.optimization import build_optimizer, build_scheduler
from grouping_zoo.engine.recipe import Recipe, RunConfig, recipe_settings, save_recipe
from grouping_zoo.engine.stop_request import StopRequest
from grouping_zoo.engine.training_state import latest_state, load_state, remove_leftovers, save_state


def train(recipe: Recipe, progress_bar: bool = True) -> dict[str, float]:
    """Trains, evaluates and exports.

    Writes into `recipe.run.output_dir`: `recipe.yaml` (resolved), `log.jsonl`, `state/` (see `training_state`) and, at
    the end, `checkpoint/`. On the CPU an interrupted and resumed run ends bit for bit like an uninterrupted one.

    Args:
        recipe: what to train.
        progress_bar: show one, on the first process.

    Returns:
        metrics of the final evaluation.

    Raises:
        ValueError: if the recipe contradicts itself, the processes, or the state that is to be resumed.
        FloatingPointError: on a loss or gradient that is not finite, before it reaches the weights; the last training
            state stays.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the update under way and with its state saved.
    """
    training = _Training(recipe)
    run = recipe.run
    training.start()
    bar = tqdm(
        total=run.steps,
        initial=training.step,
        unit="step",
        disable=not (progress_bar and training.accelerator.is_main_process),
    )
    metrics = None
    clock = _Clock()
    with training.loader, StopRequest() as stop, bar:
        while training.step < run.steps:
            values, stopping = training.update(clock, stop.requested)
            metrics = training.evaluate() if training.is_due(run.validate_every) else None
            shown = training.record(values, metrics, clock)
            bar.update()
            if shown:
                bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})
            if stopping or training.is_due(run.save_every):
                training.save()
            if stopping and training.step < run.steps:
                raise KeyboardInterrupt
    # A run resumed after its last update has not evaluated yet.
    metrics = training.evaluate() if metrics is None else metrics
    training.export(metrics)
    training.accelerator.end_training()
    return metrics


class _Clock:
    """Times since the last logged step."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def values(self, batch_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self.start
        return {"samples_per_second": self.steps * batch_size / elapsed, "data_wait": self.waited / elapsed}


class _Training:
    """All that changes during a run, and how."""

    def __init__(self, recipe: Recipe) -> None:
        run = recipe.run
        self.recipe = recipe
        self.output_dir = Path(run.output_dir)
        self.accelerator = _accelerator(run)
        self.resumed_from = self._state_to_resume()
        set_seed(run.seed)
        self.task = recipe.build()
        if run.init_from is not None and self.resumed_from is None:
            self.task.load_weights(run.init_from)
        self.module = self.task.objective
        if self.accelerator.device.type == "cuda" and self.accelerator.num_processes > 1:
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
        self.optimizer = build_optimizer(self.module, recipe.optimizer)
        self.scheduler = build_scheduler(self.optimizer, recipe.schedule, run.steps)
        self.objective, self.stepper = self.accelerator.prepare(self.module, self.optimizer)
        self.network: Any = self.module.model
        self.ema = None if run.ema_decay is None else ModelEmaV3(self.network, decay=run.ema_decay)
        self.loader = EndlessLoader(
            self.task,
            run,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self.step = 0

    def start(self) -> None:
        """Loads the state to resume, opens the loader and the log."""
        run = self.recipe.run
        # From here on each process has noise of its own.
        set_seed(run.seed, device_specific=True)
        stream = self._load(self.resumed_from) if self.resumed_from else None
        self.loader.start(self.step, stream)
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.output_dir)
            save_recipe(self.recipe, self.output_dir / "recipe.yaml")
            self.log = TrainingLog(self.output_dir / "log.jsonl", self.step)
        if run.tracker is not None:
            # What a killed run logged after its last state is cut from the curves, as from the log.
            self.accelerator.init_trackers("tracker", init_kwargs={run.tracker: {"purge_step": self.step + 1}})
        self.accelerator.wait_for_everyone()

    def is_due(self, every: int | None) -> bool:
        """Whether something done every n steps, and at the end, is to be done after this step."""
        return self.step == self.recipe.run.steps or (every is not None and self.step % every == 0)

    def update(self, clock: _Clock, stop_requested: bool) -> tuple[dict[str, float], bool]:
        """One update of the weights.

        Returns:
            values to log, equal on all processes; and whether any process was asked to stop.
        """
        accelerator, run = self.accelerator, self.recipe.run
        self.scheduler.step_update(self.step)
        parts: list[dict[str, Tensor]] = []
        for _ in range(run.accumulation_steps):
            with clock.waiting():
                batch = next(self.loader)
            with accelerator.accumulate(self.objective):
                losses = self.objective(send_to_device(batch, accelerator.device, non_blocking=True))
                accelerator.backward(losses["loss"])
            parts.append({name: value.detach() for name, value in losses.items()})
        values, stopping = self._agree(parts, stop_requested)
        self._require_finite("loss", values["loss"])
        max_norm = self.recipe.optimizer.clip_grad_norm or math.inf
        norm = accelerator.clip_grad_norm_(self.module.parameters(), max_norm)
        values["grad_norm"] = float(norm)
        if accelerator.scaler is None:
            # The fp16 scaler skips such updates itself, and lowers its scale.
            self._require_finite("gradient norm", values["grad_norm"])
        values["learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        self.stepper.step()
        self.stepper.zero_grad()
        self.step += 1
        clock.steps += 1
        self.module.after_step(self.step / run.steps)
        if self.ema is not None:
            self.ema.update(self.network)
        return values, stopping

    def evaluate(self) -> dict[str, float]:
        """Return metrics of the averaged network, or of the trained one; leaves no trace in the training.

        Several processes evaluate a copy of the first one's, which is exported: batch-norm statistics differ.
        """
        model = self._published()
        if self.accelerator.num_processes > 1:
            model = copy.deepcopy(model)
            broadcast(list(model.state_dict().values()))
        with _evaluation(model, self.accelerator.device):
            return self.task.evaluate(model)

    def record(self, values: dict[str, float], metrics: dict[str, float] | None, clock: _Clock) -> dict[str, float]:
        """Logs what is due at this step, and returns the training values if they are."""
        run = self.recipe.run
        shown = {**values, **clock.values(run.batch_size)} if self.is_due(run.log_every) else {}
        logged = shown | {f"validation/{name}": value for name, value in (metrics or {}).items()}
        if logged and self.accelerator.is_main_process:
            self.log.write(self.step, logged)
        if logged:
            self.accelerator.log(logged, step=self.step)
        if shown:
            clock.restart()
        return shown

    def save(self) -> None:
        """Writes the training state."""
        scaler, device = self.accelerator.scaler, self.accelerator.device
        shared = {
            "recipe": recipe_settings(self.recipe),
            "objective": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        own = {
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "stream": self.loader.state_dict(),
        }
        keep = self.recipe.run.keep_checkpoints
        save_state(self.output_dir, self.step, shared, own, keep, self.accelerator)

    def export(self, metrics: dict[str, float]) -> None:
        """Writes the checkpoint, whole or not at all."""
        if self.accelerator.is_main_process:
            folder = self.output_dir / "checkpoint"
            writing, old = self.output_dir / ".checkpoint.writing", self.output_dir / ".checkpoint.old"
            for leftover in (writing, old):
                shutil.rmtree(leftover, ignore_errors=True)
            writing.mkdir()
            model = self._published()
            with _evaluation(model, self.accelerator.device):
                self.task.export(model, writing, metrics)
            if folder.exists():
                os.replace(folder, old)
            os.replace(writing, folder)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _published(self) -> nn.Module:
        return self.network if self.ema is None else self.ema.module

    def _state_to_resume(self) -> Path | None:
        state = latest_state(self.output_dir)
        if state is not None and self.recipe.run.resume == "never":
            raise ValueError(
                f"run.resume: expected auto, as {state} holds a training state, got never; "
                f"use run.resume=auto or another run.output_dir"
            )
        return state

    def _load(self, folder: Path) -> dict[str, Any] | None:
        """Restores everything but the stream, whose position it returns."""
        shared, own = load_state(folder, self.recipe, self.accelerator)
        self.step = shared["step"]
        self.module.load_state_dict(shared["objective"])
        self.optimizer.load_state_dict(shared["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(shared["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(shared["scaler"])
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None:
            torch.cuda.set_rng_state(own["random_cuda"], self.accelerator.device)
        return own["stream"]

    def _agree(self, parts: list[dict[str, Tensor]], stop_requested: bool) -> tuple[dict[str, float], bool]:
        """Means over micro-batches and processes, in one exchange; one process' NaN or stop becomes everyone's."""
        names = list(parts[0])
        means = torch.stack([torch.stack([part[name].float() for part in parts]).mean() for name in names])
        stop = torch.full((1,), float(stop_requested), device=means.device)
        *values, stopping = self.accelerator.reduce(torch.cat([means, stop]), reduction="mean").tolist()
        return dict(zip(names, values, strict=True)), stopping > 0

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            state = latest_state(self.output_dir)
            raise FloatingPointError(
                f"{name}: expected a finite number, got {value} at step {self.step + 1}; the weights were not updated, "
                f"the last training state is {state or 'none yet'}; lower optimizer.learning_rate, raise "
                f"schedule.warmup_steps, set optimizer.clip_grad_norm, or use run.mixed_precision=bf16 in place of fp16"
            )


def _accelerator(run: RunConfig) -> Accelerator:
    accelerator = Accelerator(
        # Without it accelerate overlooks the other processes on a machine that has nothing but CPUs.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.mixed_precision,
        gradient_accumulation_steps=run.accumulation_steps,
        project_dir=run.output_dir,
        log_with=run.tracker,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=run.find_unused_parameters)],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"accelerate: expected plain data parallelism, got {accelerator.distributed_type}; "
            f"run `accelerate config` anew without it"
        )
    asked_for_several = started_alone_by_accelerate() or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if accelerator.num_processes == 1 and asked_for_several:
        raise ValueError(
            "accelerate: expected the processes that the launcher was asked for, got 1; "
            "use `torchrun --nproc-per-node N -m grouping_zoo.engine RECIPE`"
        )
    return accelerator


@contextmanager
def _evaluation(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, without gradients; the random state and each module's mode are as before afterwards."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        yield
    for module in in_training:
        module.training = True
