"""Reads official checkpoints, which are pickled."""

import argparse
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

ENTRIES = ("state_dict", "model")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an official file, without running any code that it may carry.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist; check the path")
    try:
        # DeiT-style files hold their command line beside the tensors; the class only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path}: holds more than tensors ({found[1] if found else 'unknown objects'}), and reading that may run "
            "its code; save its 'state_dict' or 'model' entry alone, where you trust the file: "
            "torch.save({'state_dict': checkpoint['state_dict']}, path)"
        ) from None
    return next((loaded[entry] for entry in ENTRIES if entry in loaded), loaded)
