"""`grouping-zoo eval`: figures of a checkpoint beside the untrained model."""

import argparse
import math
from pathlib import Path
from typing import Literal

from grouping_zoo.cli.files import all_or_nothing, as_json
from grouping_zoo.cli.parsing import add_device_argument, add_label_arguments, count
from grouping_zoo.version import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="NAME_OR_DIR", help="checkpoint folder, packaged or hub name")
    parser.add_argument("--data", choices=("scenes", "digits"), default="scenes", help="held-out scenes (%(default)s)")
    parser.add_argument("--images", type=count, default=500, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and the untrained model (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, and every setting, here")
    add_label_arguments(parser)
    add_device_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the figures, and writes them if asked."""
    import torch

    from grouping_zoo.cli.checkpoints import check_text, open_model
    from grouping_zoo.evaluation.scenes import all_background_on_scenes, evaluate_checkpoint_on_scenes

    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise ValueError(f"--json: expected a file in a folder that exists, got {options.json}; choose another one")
    objects: Literal["shapes", "digits"] = "digits" if options.data == "digits" else "shapes"
    model, processor = open_model(options.model, options.device)
    check_text(options.model, model, processor)
    torch.manual_seed(options.seed)
    untrained = type(model)(model.config).eval().to(options.device)
    results = {
        column: evaluate_checkpoint_on_scenes(
            one,
            processor,
            images=options.images,
            seed=options.seed,
            objects=objects,
            threshold=options.threshold,
            masks=options.masks,
            progress=True,
        )
        for column, one in (("checkpoint", model), ("untrained", untrained))
    }
    switches = results["checkpoint"]["switches"]
    size = switches["image_size"]
    figures = {column: _defined(result["figures"]) for column, result in results.items()}
    figures["all background"] = _defined(
        all_background_on_scenes(options.images, options.seed, objects, (size[0], size[1]))
    )
    _print_figures(figures)
    print(
        f"{options.model}, {options.data}: {options.images} held-out images of {size[0]}x{size[1]} pixels, "
        f"seed {options.seed}; threshold {switches['background_threshold']}, {switches['masks']} masks, "
        f"prompts: {' | '.join(switches['templates'])}"
    )
    if options.json is not None:
        record = {"model": options.model, "version": __version__, "switches": switches, "figures": figures}
        with all_or_nothing(options.json.parent) as folder:
            (folder / options.json.name).write_text(as_json(record), encoding="utf-8")


def _defined(figures: dict[str, float]) -> dict[str, float]:
    """Without those of classes that occur in neither truth nor prediction."""
    return {key: value for key, value in figures.items() if not math.isnan(value)}


def _print_figures(figures: dict[str, dict[str, float]]) -> None:
    titles = {
        "classification": "classification, %",
        "miou": "mean IoU, %",
        "pixel_accuracy": "pixel accuracy, %",
        "rand_index": "adjusted Rand index",
    }
    per_class = {key: None for row in figures.values() for key in row if key.startswith("iou/")}
    titles |= {key: f"  IoU {key.removeprefix('iou/')}, %" for key in per_class}
    width = max(map(len, titles.values()))
    print(" " * width, *(f"{column:>15}" for column in figures))
    for key, title in titles.items():
        digits = 3 if key == "rand_index" else 1
        cells = (f"{row[key]:.{digits}f}" if key in row else "-" for row in figures.values())
        print(f"{title:<{width}}", *(f"{cell:>15}" for cell in cells))
