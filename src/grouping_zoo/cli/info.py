"""`grouping-zoo info`: architecture, size, groups and classes of one model, and how it is opened."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from grouping_zoo.hf.checkpoint_folder import find_checkpoint, fitting_auto_class, zoo_models
from grouping_zoo.inference.opening import has_text, open_model
from grouping_zoo.inference.zero_shot import prompt_templates

SHOWN_CLASSES = 30
METRICS_HEADING = "| figure | value |"
METRIC_ROW = re.compile(r"\| *([^|]+?) *\| *(-?\d[^| ]*) *\|")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="NAME_OR_DIR", help="checkpoint folder, packaged or hub name, or architecture")


def run(options: argparse.Namespace) -> None:
    """Print what a checkpoint or an architecture is, and how it is opened."""
    if options.model in zoo_models():
        try:
            find_checkpoint(options.model)
        except ValueError:  # an architecture without weights
            return _print_architecture(options.model)
    _print_checkpoint(options.model, find_checkpoint(options.model))


def _print_architecture(name: str) -> None:
    model: Any = timm.create_model(name).eval()
    shape = model.pretrained_cfg["input_size"]
    _print_table(
        {
            "architecture": name,
            "parameters": f"{_parameters(model):,}",
            "input": f"{shape[1]}x{shape[2]} pixels; other sizes work too",
            "groups": _levels(model, shape),
            "weights": "none in the package",
            "timm": f'import grouping_zoo, timm; timm.create_model("{name}")',
        }
    )


def _print_checkpoint(name: str, source: str) -> None:
    model, processor = open_model(name, "cpu")
    network, text = model.model, has_text(model, processor)
    image_processor = processor.image_processor if text else processor
    weights = Path(source) / "model.safetensors"
    at_home = weights.is_file()
    door = f"local-dir:{source}" if at_home else f"hf-hub:{source}"
    shape = model.config.pretrained_cfg["input_size"]
    parts = ", ".join(f"{part} {_parameters(child):,}" for part, child in network.named_children())
    towers = f": {parts}" if text else ""
    auto = fitting_auto_class(type(model).__name__).__name__
    classes = ' --classes "cat, coffee cup"' if text else ""
    _print_table(
        {
            "checkpoint": name,
            "architecture": model.config.architecture,
            "parameters": f"{_parameters(model):,}{towers}",
            "input": f"{shape[1]}x{shape[2]} pixels; other sizes work too; "
            f"mean {_numbers(image_processor.image_mean)}, std {_numbers(image_processor.image_std)}",
            "groups": _levels(network, shape),
        }
        | (_text_rows(model.config) if text else _class_rows(model))
        | _metric_rows(Path(source))
        | {
            "weights": f"{weights} ({weights.stat().st_size / 1e6:.1f} MB)" if at_home else f"{source} on the hub",
            "timm": f'import grouping_zoo, timm; timm.create_model("{door}", pretrained=True)',
            "transformers": f'import grouping_zoo, transformers; transformers.{auto}.from_pretrained("{source}")',
            "command line": f"grouping-zoo segment photo.jpg --model {name}{classes}",
        }
    )


def _text_rows(config: Any) -> dict[str, str]:
    return {
        "classes": ", ".join(config.class_names or []) or "none of its own: give --classes",
        "threshold": str(config.background_threshold),
        "prompts": " | ".join(prompt_templates(config)),
    }


def _class_rows(model: Any) -> dict[str, str]:
    if "For" not in type(model).__name__:
        return {"classes": "none: its answer is the image's feature"}
    names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    more = f", ... ({len(names)})" if len(names) > SHOWN_CLASSES else ""
    return {"classes": ", ".join(names[:SHOWN_CLASSES]) + more}


def _metric_rows(folder: Path) -> dict[str, str]:
    """Metrics in the model card's table; those of single classes are left to the card."""
    card = folder / "README.md"
    _, _, table = card.read_text(encoding="utf-8").partition(METRICS_HEADING) if card.is_file() else ("", "", "")
    metrics = [f"{name.replace('_', ' ')} {value}" for name, value in METRIC_ROW.findall(table) if "/" not in name]
    return {"figures": ", ".join(metrics)} if metrics else {}


def _levels(model: Any, input_size: Sequence[int]) -> str:
    try:
        with torch.no_grad():
            grouping = model.forward_grouping(torch.zeros(1, *input_size))
    except ValueError as error:  # some variants make none, such as a feature pyramid for comparison
        return f"none ({error})"
    tokens, *groups = (str(grouping.num_groups(level)) for level in range(grouping.num_levels))
    heads = grouping.assignments[0].shape[1]
    each = f" in each of {heads} heads" if heads > 1 else ""
    return f"{tokens} tokens -> {' -> '.join(groups)}{each}"


def _print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:<{width}}  {value}")


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
