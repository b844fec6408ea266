"""The training loop: from a recipe to a checkpoint, on one process or many, interrupted or not."""

import copy
import itertools
import logging
import math
import os
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast,
    broadcast_object_list,
    send_to_device,
    set_seed,
)
from safetensors import SafetensorError
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import IterableDataset

from grouping_zoo.engine.atomic_folder import delete, replaced_folder, restore_folder
from grouping_zoo.engine.cpu_launch import started_alone_by_accelerate
from grouping_zoo.engine.loader import EndlessLoader
from grouping_zoo.engine.log import TrainingLog, finite_or_none
from grouping_zoo.engine.optimization import build_optimizer, build_scheduler
from grouping_zoo.engine.output_lock import locked
from grouping_zoo.engine.progress import open_bar
from grouping_zoo.engine.recipe import Recipe, RunConfig, recipe_settings, save_recipe
from grouping_zoo.engine.stop_request import StopRequest
from grouping_zoo.engine.task import Fingerprinted, Task
from grouping_zoo.engine.training_state import (
    delete_states,
    latest_sound_state,
    latest_state,
    load_state,
    remove_leftovers,
    save_state,
    saved_states,
)

logger = logging.getLogger(__name__)


def train(recipe: Recipe, progress_bar: bool = True) -> dict[str, float]:
    """Train, evaluate and export.

    Writes into `recipe.run.output_dir`: `recipe.yaml` (resolved), `log.jsonl`, `state/` (see `training_state`) and, at
    the end, `checkpoint/`. On the CPU an interrupted and resumed run ends bit for bit like an uninterrupted one. The
    folder is locked meanwhile.

    Args:
        recipe: settings of the run.
        progress_bar: show one, on the first process.

    Returns:
        metrics of the final evaluation; NaN where one is undefined.

    Raises:
        ValueError: if the recipe contradicts itself, the processes, or the state that is to be resumed; if another
            training uses the folder, or all states in it are damaged.
        FloatingPointError: on a loss or gradient that is not finite, before it reaches the weights; the last training
            state stays.
        OSError: if something cannot be written; the last training state stays.
        KeyboardInterrupt: on SIGINT, SIGTERM, SIGHUP or the death of the launcher, after the update under way and with
            its state saved.
    """
    stop = StopRequest()
    run = recipe.run
    accelerator = _accelerator(run)
    set_seed(run.seed)
    task = recipe.build()
    with locked(Path(run.output_dir)) if accelerator.is_main_process else nullcontext():
        training = _Training(recipe, task, accelerator)
        training.start()
        metrics = None
        clock = _Clock()
        bar = open_bar(run.steps, training.step, progress_bar and accelerator.is_main_process)
        with training.loader, stop, bar:
            while training.step < run.steps:
                values, stopping = training.update(clock, stop.requested)
                metrics = training.evaluate() if training.is_due(run.validate_every) else None
                shown = training.record(values, metrics, clock)
                if stopping or training.is_due(run.save_every):
                    training.save()
                bar.update()
                if shown:
                    bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()})
                if stopping and training.step < run.steps:
                    raise KeyboardInterrupt
            # A run resumed after its last update has not evaluated yet.
            metrics = training.evaluate() if metrics is None else metrics
            training.export(metrics)
        accelerator.end_training()
    return metrics


class _Clock:
    """Times since the last logged step."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def values(self, batch_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self.start
        return {"samples_per_second": self.steps * batch_size / elapsed, "data_wait": self.waited / elapsed}


class _Training:
    """All that changes during a run."""

    def __init__(self, recipe: Recipe, task: Task, accelerator: Accelerator) -> None:
        run = recipe.run
        self.recipe, self.task, self.accelerator = recipe, task, accelerator
        self.output_dir = Path(run.output_dir)
        self.resumed_from = self._state_to_resume()
        if run.init_from is not None and self.resumed_from is None:
            self.task.load_weights(run.init_from)
        self.objective = task.objective
        if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
            synchronize_batch_norms(self.objective)
        optimizer = build_optimizer(self.objective, recipe.optimizer)
        self.scheduler = build_scheduler(optimizer, recipe.schedule, run.steps)
        self.prepared_objective, self.optimizer = accelerator.prepare(self.objective, optimizer)
        self.model: Any = self.objective.model
        self.ema = None if run.ema_decay is None else ModelEmaV3(self.model, decay=run.ema_decay)
        self.loader = EndlessLoader(
            task,
            run,
            accelerator.process_index,
            accelerator.num_processes,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.data = _describe_data(task)
        self.step = 0

    def start(self) -> None:
        """Load the state to resume, open the loader and the log."""
        run = self.recipe.run
        # From here on each process has noise of its own.
        set_seed(run.seed, device_specific=True)
        stream = self._load(self.resumed_from) if self.resumed_from else None
        self.loader.start(self.step, stream)
        if self.accelerator.is_main_process:
            self._clean_up()
            written = self.output_dir / "recipe.yaml"
            writing = written.with_suffix(".writing")
            save_recipe(self.recipe, writing)
            os.replace(writing, written)
            self.log = TrainingLog(self.output_dir / "log.jsonl", self.step)
        if run.tracker is not None:
            # What a killed run logged after its last state is cut from the curves, as from the log.
            self.accelerator.init_trackers("tracker", init_kwargs={run.tracker: {"purge_step": self.step + 1}})
        self.accelerator.wait_for_everyone()

    def _clean_up(self) -> None:
        """Delete what killed processes left half written, and the damaged states after the resumed one."""
        remove_leftovers(self.output_dir)
        restore_folder(self.output_dir / "checkpoint")
        for name in ("recipe.writing", "log.writing"):
            delete(self.output_dir / name)
        newest_first = reversed(saved_states(self.output_dir))
        delete_states(list(itertools.takewhile(lambda state: state != self.resumed_from, newest_first)))

    def is_due(self, every: int | None) -> bool:
        """Return whether something done every n steps, and at the end, is to be done after this step."""
        return self.step == self.recipe.run.steps or (every is not None and self.step % every == 0)

    def update(self, clock: _Clock, stop_requested: bool) -> tuple[dict[str, float], bool]:
        """Update the weights once.

        Returns:
            values to log, equal on all processes; and whether any process was asked to stop.
        """
        accelerator, run = self.accelerator, self.recipe.run
        self.scheduler.step_update(self.step)
        micro_batches: list[dict[str, Tensor]] = []
        for _ in range(run.accumulation_steps):
            with clock.waiting():
                batch = next(self.loader)
            with accelerator.accumulate(self.prepared_objective):
                losses = self.prepared_objective(send_to_device(batch, accelerator.device, non_blocking=True))
                accelerator.backward(losses["loss"])
            micro_batches.append({name: value.detach() for name, value in losses.items()})
        values, stopping = self._agree(micro_batches, stop_requested)
        self._require_finite("loss", values["loss"])
        max_norm = self.recipe.optimizer.clip_grad_norm or math.inf
        norm = accelerator.clip_grad_norm_(self.objective.parameters(), max_norm)
        values["grad_norm"] = float(norm)
        if accelerator.scaler is None:
            # The fp16 scaler skips such updates itself, and lowers its scale.
            self._require_finite("gradient norm", values["grad_norm"])
        values["learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        clock.steps += 1
        self.objective.after_step(self.step / run.steps)
        if self.ema is not None:
            self.ema.update(self.model)
        return values, stopping

    def evaluate(self) -> dict[str, float]:
        """Return metrics of the averaged network, or of the trained one; leaves no trace in the training.

        Several processes evaluate a copy of the first one's, which is exported: batch-norm statistics differ.
        """
        model = self._published()
        if self.accelerator.num_processes > 1:
            model = copy.deepcopy(model)
            broadcast(list(model.state_dict().values()))
        with _evaluation(model, self.accelerator.device), self.loader.starting_workers():
            return self.task.evaluate(model)

    def record(self, values: dict[str, float], metrics: dict[str, float] | None, clock: _Clock) -> dict[str, float]:
        """Log what is due at this step, and return the training values if they are."""
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
        """Write the training state."""
        scaler, device = self.accelerator.scaler, self.accelerator.device
        shared = {
            "recipe": recipe_settings(self.recipe),
            "data": self.data,
            "objective": self.objective.state_dict(),
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
        """Write the checkpoint, whole or not at all, without metrics that are undefined."""
        if self.accelerator.is_main_process:
            folder = self.output_dir / "checkpoint"
            model = self._published()
            defined = {name: value for name, value in finite_or_none(metrics).items() if value is not None}
            try:
                with replaced_folder(folder) as writing, _evaluation(model, self.accelerator.device):
                    self.task.export(model, writing, defined)
            except (OSError, SafetensorError) as error:
                raise OSError(
                    f"checkpoint: {folder} cannot be written ({error}); make room or rights and start again, the "
                    f"trained weights are in {latest_state(self.output_dir)}"
                ) from None
        self.accelerator.wait_for_everyone()

    def _published(self) -> nn.Module:
        return self.model if self.ema is None else self.ema.module

    def _state_to_resume(self) -> Path | None:
        """The newest sound training state, the same on all processes, as the first one chooses it."""
        states: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            newest = latest_state(self.output_dir)
            if newest is not None and self.recipe.run.resume == "never":
                raise ValueError(
                    f"run.resume: expected auto, as {newest} holds a training state, got never; "
                    f"use run.resume=auto or another run.output_dir"
                )
            states = [latest_sound_state(self.output_dir)]
        return broadcast_object_list(states)[0]

    def _load(self, folder: Path) -> dict[str, Any] | None:
        """Restore everything but the stream, whose position is returned."""
        try:
            shared, own = load_state(folder, self.recipe, self.accelerator)
            return self._restore(shared, own)
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(
                f"training state: expected {folder} to fit the recipe's network, which it does not: "
                f"{' '.join(str(error).split())[:300]}; delete that folder"
            ) from None

    def _restore(self, shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any] | None:
        if self.accelerator.is_main_process:
            _warn_of_other_data(shared.get("data"), self.data)
        self.step = shared["step"]
        self.objective.load_state_dict(shared["objective"])
        self.optimizer.load_state_dict(shared["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(shared["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(shared["scaler"])
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None:
            torch.cuda.set_rng_state(own["random_cuda"], self.accelerator.device)
        return own["stream"]

    def _agree(self, losses: list[dict[str, Tensor]], stop_requested: bool) -> tuple[dict[str, float], bool]:
        """Means over micro-batches and processes, in one exchange; one process' NaN or stop becomes everyone's."""
        names = list(losses[0])
        means = torch.stack([torch.stack([values[name].float() for values in losses]).mean() for name in names])
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


def synchronize_batch_norms(objective: nn.Module) -> None:
    """Have batch norms in training share their statistics between processes; frozen teachers share none."""
    for name, part in list(objective.named_children()):
        if any(module.training for module in part.modules() if isinstance(module, _BatchNorm)):
            # timm's, as torch's drops the activations of timm's layers of norm and activation.
            objective.add_module(name, convert_sync_batchnorm(part))


def _describe_data(task: Task) -> dict[str, Any]:
    """Summary of the data, to notice on resume that they changed."""
    dataset = task.dataset
    return {
        "samples": len(dataset) if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset) else None,
        "fingerprint": dataset.fingerprint() if isinstance(dataset, Fingerprinted) else None,
    }


def _warn_of_other_data(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    for name, value in (before or {}).items():
        if value is not None and now.get(name) not in (None, value):
            logger.warning(
                "data: %s was %s when the run was interrupted, and is %s now; it goes on with other data than it began "
                "with",
                name,
                value,
                now[name],
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
