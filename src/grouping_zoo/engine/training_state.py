"""Training states on disk: written whole or not at all, verified when read, and without pickle.

    output_dir/state/step-00000123/
        shared.json, shared.safetensors          everything that is the same on all processes
        process-00000.json, ...safetensors       random state and stream position of each process
        SHA256SUMS                               digest of every file, as `sha256sum --check` reads it

Each pair of files holds one tree of dicts and lists: the tensors in safetensors, all else in JSON.
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grouping_zoo.engine.atomic_folder import delete
from grouping_zoo.engine.recipe import Recipe, recipe_settings

logger = logging.getLogger(__name__)

STATE_NAME = re.compile(r"step-\d{8}")
DIGESTS_NAME = "SHA256SUMS"
# Names that no state has, for folders that are not, or no longer, complete.
WRITING, DELETING = ".writing-", ".deleting-"

FREE_TO_CHANGE = frozenset(
    f"run.{name}"
    for name in (
        "output_dir",
        "log_every",
        "validate_every",
        "save_every",
        "keep_checkpoints",
        "tracker",
        "num_workers",
        "resume",
    )
)
FREE_SECTIONS = ("evaluation", "zero_shot")  # leave no trace in the training
"""Settings that may differ on resume, as the trained weights do not depend on them."""


def saved_states(output_dir: Path) -> list[Path]:
    """Complete training states of a run, the oldest first."""
    folder = output_dir / "state"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if STATE_NAME.fullmatch(path.name))


def latest_state(output_dir: Path) -> Path | None:
    """Return the newest complete training state of a run, or None."""
    return max(saved_states(output_dir), default=None)


def latest_sound_state(output_dir: Path) -> Path | None:
    """Return the newest training state that is as it was written, or None if there is none at all.

    Raises:
        ValueError: if all states are damaged.
    """
    damages: list[str] = []
    for path in reversed(saved_states(output_dir)):
        damage = find_damage(path)
        if damage is None:
            if damages:
                logger.warning("damaged training state: %s; going on from %s", "; ".join(damages), path)
            return path
        damages.append(f"{path} ({damage})")
    if damages:
        raise ValueError(
            f"training state: expected one that is as it was written, got {'; '.join(damages)}; restore one from a "
            f"copy, or delete {output_dir / 'state'} to train anew"
        )
    return None


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a training state, in words, or None."""
    try:
        if not (folder / DIGESTS_NAME).exists():  # a state of a version that wrote none
            for path in [folder / "shared.json", *folder.glob("process-*.json")]:
                read_tree(path.with_suffix(""))
            return None
        lines = (folder / DIGESTS_NAME).read_text(encoding="utf-8").splitlines()
        digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if missing := sorted(digests.keys() ^ set(_file_names(folder))):
            return f"{missing[0]} is missing there or in {DIGESTS_NAME}"
        changed = [name for name, digest in digests.items() if _digest(folder / name) != digest]
        return f"{changed[0]} is not as it was written" if changed else None
    except PermissionError:
        raise
    except (ValueError, OSError) as error:
        return str(error)


def save_state(
    output_dir: Path, step: int, shared: dict[str, Any], own: dict[str, Any], keep: int, accelerator: Accelerator
) -> Path:
    """Write a training state, then delete all but the newest.

    Called on every process. The state appears under its name only once it lies on the disk whole: renaming it is the
    commit. What a killed process leaves behind is never taken for a state.

    Args:
        output_dir: folder of the run, seen by all processes.
        step: updates done.
        shared: tree that is the same on all processes; the first one's is written.
        own: tree of this process.
        keep: number of newest states kept.
        accelerator: knows the processes.

    Returns:
        folder of the state.

    Raises:
        OSError: if it cannot be written; the states before it stay.
    """
    folder = output_dir / "state" / f"step-{step:08d}"
    writing = folder.with_name(WRITING + folder.name)
    try:
        if accelerator.is_main_process:
            remove_leftovers(output_dir)
            writing.mkdir(parents=True)
        accelerator.wait_for_everyone()
        write_tree(writing / f"process-{accelerator.process_index:05d}", own)
        if accelerator.is_main_process:
            write_tree(writing / "shared", {"step": step, "processes": accelerator.num_processes, **shared})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_digests(writing)
            _sync(writing)
            os.replace(writing, folder)
            _sync(folder.parent)
            delete_states(saved_states(output_dir)[:-keep])
    except (OSError, SafetensorError) as error:
        if accelerator.num_processes == 1:  # else another one may still be writing there; the next start deletes it
            delete(writing)
        raise OSError(
            f"training state: {writing} cannot be written ({error}); make room or rights and start again, the last "
            f"training state is {latest_state(output_dir) or 'none yet'}"
        ) from None
    accelerator.wait_for_everyone()
    return folder


def load_state(folder: Path, recipe: Recipe, accelerator: Accelerator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the shared tree and this process' own one.

    Raises:
        ValueError: if the state is damaged, or belongs to another recipe or number of processes.
    """
    shared = read_tree(folder / "shared")
    if shared["processes"] != accelerator.num_processes:
        raise ValueError(
            f"processes: expected {shared['processes']}, the number that wrote {folder}, got "
            f"{accelerator.num_processes}; random states cannot be split: launch with --num_processes "
            f"{shared['processes']} or use another run.output_dir"
        )
    check_same_training(shared["recipe"], recipe, folder)
    return shared, read_tree(folder / f"process-{accelerator.process_index:05d}")


def check_same_training(saved: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Refuse to continue a run under settings that alter the training."""
    before, now = _flat(saved), _flat(recipe_settings(recipe))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changes = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if not _free_to_change(key)]
    if changes:
        raise ValueError(
            f"recipe: expected the settings of the interrupted run in {folder}, got other ones ({'; '.join(changes)}); "
            f"set them back, or train anew in another run.output_dir (run.init_from can start from its weights)"
        )


def _free_to_change(key: str) -> bool:
    return key in FREE_TO_CHANGE or key.startswith(FREE_SECTIONS)


def remove_leftovers(output_dir: Path) -> None:
    """Delete what killed processes left half written or half deleted."""
    for prefix in (WRITING, DELETING):
        for path in (output_dir / "state").glob(f"{prefix}*"):
            delete(path)


def delete_states(states: list[Path]) -> None:
    """Delete training states, none of which ever looks complete while it is half deleted."""
    for path in states:
        deleting = path.with_name(DELETING + path.name)
        os.replace(path, deleting)
        delete(deleting)


def write_tree(path: Path, tree: Any) -> None:
    """Write a tree of dicts, lists, tuples, tensors and JSON values to `path`.json and `path`.safetensors."""
    tensors: dict[str, Tensor] = {}
    structure = _pack(tree, "", tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(structure), encoding="utf-8")
    _sync(path.with_suffix(".safetensors"))
    _sync(path.with_suffix(".json"))


def read_tree(path: Path) -> Any:
    """Read what `write_tree` wrote; tensors come to the CPU.

    Raises:
        ValueError: if the files are missing or damaged.
    """
    try:
        tensors = load_file(path.with_suffix(".safetensors"))
        tree = _unpack(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), tensors)
        if not isinstance(tree, dict):
            raise ValueError(f"expected a mapping, got {type(tree).__name__}")
        return tree
    except PermissionError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"training state: {path.parent} is damaged: {path.name} cannot be read ({type(error).__name__}: {error}); "
            f"delete that folder"
        ) from None


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy, as safetensors refuses tensors that share memory (tied weights).
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        # Pairs, because JSON would turn keys that are numbers into strings.
        return {"dict": [[key, _pack(entry, f"{name}/{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(entry, f"{name}/{index}", tensors) for index, entry in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"training state: expected tensors and JSON values, got {type(value).__name__} at {name}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(entry, tensors) for key, entry in content}
    entries = [_unpack(entry, tensors) for entry in content]
    return tuple(entries) if kind == "tuple" else entries


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}".lstrip("."))
    return flat


def _sync(path: Path) -> None:
    """Makes sure that a file, or a folder's list of names, outlives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_digests(folder: Path) -> None:
    path = folder / DIGESTS_NAME
    path.write_text("".join(f"{_digest(folder / name)}  {name}\n" for name in _file_names(folder)), encoding="utf-8")
    _sync(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
