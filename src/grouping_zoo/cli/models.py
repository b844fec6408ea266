"""`grouping-zoo list` and `grouping-zoo info`: which models there are, and what one is."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN_CLASSES = 30
FIGURES_HEADING = "| figure | value |"
FIGURE_ROW = re.compile(r"\| *([^|]+?) *\| *(-?\d[^| ]*) *\|")


def list_models(options: argparse.Namespace) -> None:
    """Prints the architectures and the packaged checkpoints."""
    import timm
    import torch

    from grouping_zoo.hf.checkpoint_folder import packaged_checkpoints, zoo_models

    architectures, checkpoints = zoo_models(), packaged_checkpoints()
    width = max(map(len, [*architectures, *checkpoints]))
    print("Architectures: import grouping_zoo, timm; timm.create_model(NAME)")
    for name in architectures:
        with torch.device("meta"):  # shapes alone, which is quick
            model: Any = timm.create_model(name)
        _, height, side = model.pretrained_cfg["input_size"]
        print(f"  {name:<{width}}  {_millions(_parameters(model))} parameters, {height}x{side} pixels")
    print("Checkpoints in the package: grouping-zoo info NAME, grouping-zoo segment IMAGE --model NAME")
    for name, folder in checkpoints.items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes = config.get("class_names") or []
        named = f"; {len(classes)} classes: {', '.join(classes)}" if classes else ""
        print(f"  {name:<{width}}  {config.get('architecture')}{named}")
    if not checkpoints:
        print("  none")


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `info`."""
    parser.add_argument("model", metavar="NAME_OR_DIR", help="checkpoint folder, packaged or hub name, or architecture")


def info(options: argparse.Namespace) -> None:
    """Prints what a checkpoint or an architecture is, and how it is opened."""
    from grouping_zoo.hf.checkpoint_folder import find_checkpoint, zoo_models

    if options.model in zoo_models():
        try:
            find_checkpoint(options.model)
        except ValueError:  # an architecture without weights
            return _print_architecture(options.model)
    _print_checkpoint(options.model, find_checkpoint(options.model))


def _print_architecture(name: str) -> None:
    import timm

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
    from grouping_zoo.cli.checkpoints import has_text, open_model
    from grouping_zoo.hf.checkpoint_folder import fitting_auto_class

    model, processor = open_model(name, "cpu")
    network, text = model.model, has_text(model, processor)
    image_processor = processor.image_processor if text else processor
    weights = Path(source) / "model.safetensors"
    at_home = weights.is_file()
    door = f"local-dir:{source}" if at_home else f"hf-hub:{source}"
    shape = model.config.pretrained_cfg["input_size"]
    parts = ", ".join(f"{part} {_parameters(child):,}" for part, child in network.named_children()) if text else ""
    auto = fitting_auto_class(type(model).__name__).__name__
    command = f"grouping-zoo segment photo.jpg --model {name}" + ' --classes "cat, coffee cup"' * text
    _print_table(
        {
            "checkpoint": name,
            "architecture": model.config.architecture,
            "parameters": f"{_parameters(model):,}" + f": {parts}" * text,
            "input": f"{shape[1]}x{shape[2]} pixels; other sizes work too; "
            f"mean {_numbers(image_processor.image_mean)}, std {_numbers(image_processor.image_std)}",
            "groups": _levels(network, shape),
        }
        | (_text_rows(model.config) if text else _class_rows(model))
        | _figure_rows(Path(source))
        | {
            "weights": f"{weights} ({weights.stat().st_size / 1e6:.1f} MB)" if at_home else f"{source} on the hub",
            "timm": f'import grouping_zoo, timm; timm.create_model("{door}", pretrained=True)',
            "transformers": f'import grouping_zoo, transformers; transformers.{auto}.from_pretrained("{source}")',
            "command line": command,
        }
    )


def _text_rows(config: Any) -> dict[str, str]:
    from grouping_zoo.evaluation.scenes import prompt_templates

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


def _figure_rows(folder: Path) -> dict[str, str]:
    """The figures that the model card's table states; those of single classes are left to the card."""
    card = folder / "README.md"
    _, _, table = card.read_text(encoding="utf-8").partition(FIGURES_HEADING) if card.is_file() else ("", "", "")
    figures = [f"{name.replace('_', ' ')} {value}" for name, value in FIGURE_ROW.findall(table) if "/" not in name]
    return {"figures": ", ".join(figures)} if figures else {}


def _levels(model: Any, input_size: Sequence[int]) -> str:
    import torch

    try:
        with torch.no_grad():
            grouping = model.forward_grouping(torch.zeros(1, *input_size))
    except ValueError as error:  # some variants make none, such as a feature pyramid for comparison
        return f"none ({error})"
    tokens, *groups = (str(grouping.num_groups(level)) for level in range(grouping.num_levels))
    heads = grouping.assignments[0].shape[1]
    return f"{tokens} tokens -> " + " -> ".join(groups) + f" in each of {heads} heads" * (heads > 1)


def _print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:<{width}}  {value}")


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _millions(count: int) -> str:
    return f"{count / 1e6:5.1f} M"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
