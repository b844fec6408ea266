"""A cache of image features in a folder, keyed by weights, data and preprocessing."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class FeatureCache:
    """A folder of tensors, one file FEATURES_KEY.safetensors a key (see `feature_key`), each of which may be deleted.

    Args:
        folder: made with the first `put`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what is kept under a key, on the CPU; None if nothing is.

        Raises:
            ValueError: if the file is damaged.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"feature cache: {path} is damaged ({error}); delete it") from error

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Under its name only when complete: an interrupted run, or another at the same time, leaves no half file.
        with tempfile.TemporaryDirectory(dir=self.folder) as unfinished:
            path = Path(unfinished) / self._path(key).name
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
            os.replace(path, self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"features_{key}.safetensors"


def feature_key(model: nn.Module, data: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> str:
    """Return a name for features, which changes with any weight, setting, or description.

    Args:
        model: whose features they are.
        data: everything that the images depend on: source, split, length, seed; for files also their
            `folder_fingerprint`. Values of JSON.
        preprocessing: everything that is done to the images, and arguments of the model: size, crop, mean, number of
            groups. Values of JSON.

    Raises:
        ValueError: if a description is not of JSON values.
    """
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
    """Return a name for the files in a folder and below, which changes with their names, sizes and times of change.

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
