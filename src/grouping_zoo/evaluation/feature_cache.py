"""Features that were computed once: kept in a folder, found again by weights, data and preprocessing."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def cached_features(
    folder: Path,
    compute: Callable[[], dict[str, Tensor]],
    *,
    model: nn.Module,
    data: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Reads the tensors that `compute` once gave for the same key, or computes and keeps them.

    Args:
        folder: of the cache; made if missing. One file a key, FEATURES_KEY.safetensors, which may be deleted any time.
        compute: the tensors, e.g. features (N, D) and labels (N,).
        model: whose features they are.
        data: everything that the images depend on: source, split, length, seed; for files also their
            `folder_fingerprint`. Values of JSON.
        preprocessing: everything that is done to the images, and arguments of the model: size, crop, mean, number of
            groups. Values of JSON.

    Returns:
        the tensors, on the CPU.

    Raises:
        ValueError: if a description is not of JSON values, or a kept file is damaged.
    """
    path = folder / f"features_{feature_key(model, data, preprocessing)}.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"feature cache: {path} is damaged ({error}); delete it") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
    folder.mkdir(parents=True, exist_ok=True)
    # Under its name only when complete: an interrupted run, or another at the same time, leaves no half file.
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        save_file(tensors, Path(unfinished) / path.name)
        os.replace(Path(unfinished) / path.name, path)
    return tensors


def feature_key(model: nn.Module, data: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> str:
    """A name for features, which changes with any weight, setting, or description; see `cached_features`."""
    try:
        description = json.dumps([data, preprocessing], sort_keys=True)
    except TypeError as error:
        raise ValueError(f"data, preprocessing: expected values of JSON, got others: {error}") from error
    digest = hashlib.sha256(description.encode())
    # The written-out network tells apart two architectures with the same weights.
    digest.update(f"{type(model).__qualname__} {model}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {value.dtype} {tuple(tensor.shape)}".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def folder_fingerprint(folder: Path) -> str:
    """A name for the files in a folder and below, which changes with their names, sizes and times of change.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected an existing one, got {folder}")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
