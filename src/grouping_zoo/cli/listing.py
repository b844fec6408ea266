"""`grouping-zoo list`: the architectures, and the checkpoints that come with the package."""

import argparse
import json
from typing import Any

import timm
import torch

from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints, zoo_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: there are none."""


def run(options: argparse.Namespace) -> None:
    """Print the architectures and the packaged checkpoints."""
    architectures, checkpoints = zoo_models(), packaged_checkpoints()
    width = max(map(len, [*architectures, *checkpoints]))
    print("Architectures: import grouping_zoo, timm; timm.create_model(NAME)")
    for name in architectures:
        with torch.device("meta"):  # shapes alone, which is quick
            model: Any = timm.create_model(name)
        _, height, side = model.pretrained_cfg["input_size"]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"  {name:<{width}}  {parameters / 1e6:5.1f} M parameters, {height}x{side} pixels")
    print("Checkpoints in the package: grouping-zoo info NAME, grouping-zoo segment IMAGE --model NAME")
    for name, folder in checkpoints.items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes = config.get("class_names") or []
        named = f"; {len(classes)} classes: {', '.join(classes)}" if classes else ""
        print(f"  {name:<{width}}  {config.get('architecture')}{named}")
    if not checkpoints:
        print("  none")
