"""The `grouping-zoo` command."""

import argparse
import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from grouping_zoo.user_errors import report_user_errors
from grouping_zoo.version import __version__

if TYPE_CHECKING:
    from grouping_zoo.viz.photo_segmentation import PhotoSegmentation, PhotoSegmenter

DEFAULT_MODEL = "groupvit_nano_scenes"
INTERRUPTED_EXIT_CODE = 130
PICTURES = GROUPS, OVERLAY, LABELS = "_groups.png", "_overlay.png", "_labels.png"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; exit code 2 on a user's mistake, 130 on an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with report_user_errors(), _quiet_interruption():
        if words[:1] == ["train"]:  # has a command line of its own
            from grouping_zoo.engine.__main__ import main as train

            return train(words[1:])
        options = _parser().parse_args(words or ["--help"])
        _silence_libraries()
        options.run(options)


@contextlib.contextmanager
def _quiet_interruption() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None


def _silence_libraries() -> None:
    """Leaves the output to the command: no loading bars, advice or warnings of the libraries below."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("timm", "huggingface_hub", "grouping_zoo"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


# --- the command line -----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="grouping-zoo", description="Grouping vision models on the command line.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    command("list", _list, "Show the architectures and the checkpoints that come with the package.")
    info = command("info", _info, "Describe a checkpoint or an architecture.")
    info.add_argument("model", metavar="NAME_OR_DIR", help="checkpoint folder, packaged or hub name, or architecture")
    _add_segment(command("segment", _segment, "Group and label the pixels of photos."))
    commands.add_parser("train", help="Train by a recipe; see `grouping-zoo train --help`.", add_help=False)
    _add_eval(command("eval", _eval, "Zero-shot figures of a checkpoint on held-out scenes."))
    return parser


def _add_segment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, or folders of them")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder, packaged or hub name (%(default)s)")
    parser.add_argument(
        "--classes", metavar="NAMES", help='e.g. "cat, coffee cup"; "cat; kitten" is one class; default: the model\'s'
    )
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where files go (%(default)s)")
    parser.add_argument("--size", type=_count, metavar="N", help="shorter side that the model sees; default: its own")
    parser.add_argument("--window", type=_count, metavar="N", help="side of a sliding window; default: none")
    parser.add_argument("--stride", type=_count, metavar="N", help="step of the window; default: half of it")
    _add_shared(parser)
    parser.epilog = (
        "Makes of photo.jpg: photo_groups.png, photo_overlay.png (with a legend), photo_labels.png (0 background, "
        "1 the first class, ...) and photo.json (shares, scores and every setting). Pictures have at most 2048 pixels "
        "a side, labels those of the photo; photos of more than 100 megapixels are scaled down to that."
    )


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME_OR_DIR", help="checkpoint folder, packaged or hub name")
    parser.add_argument("--data", choices=("scenes", "digits"), default="scenes", help="held-out scenes (%(default)s)")
    parser.add_argument("--images", type=_count, default=500, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and the untrained model (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, and every setting, here")
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold", type=_share, metavar="T", help="below this score a pixel is background; default: the model's"
    )
    parser.add_argument(
        "--masks", choices=("hard", "soft"), help="pixels belong to one group or to all; default: the model's, hard"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


# --- list, info -----------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> None:
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
        print(f"  {name:<{width}}  {config.get('architecture')}; {len(classes)} classes: {', '.join(classes)}")
    if not checkpoints:
        print("  none")


def _info(options: argparse.Namespace) -> None:
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
    from grouping_zoo.evaluation.scenes import prompt_templates

    model, processor = _open(name, "cpu")
    config, network = model.config, model.model
    shape = config.pretrained_cfg["input_size"]
    parts = {part: _parameters(child) for part, child in network.named_children()}
    image_processor = processor.image_processor
    weights = Path(source) / "model.safetensors"
    at_home = weights.is_file()
    door = f"local-dir:{source}" if at_home else f"hf-hub:{source}"
    _print_table(
        {
            "checkpoint": name,
            "architecture": config.architecture,
            "parameters": f"{_parameters(model):,}: " + ", ".join(f"{part} {n:,}" for part, n in parts.items()),
            "input": f"{shape[1]}x{shape[2]} pixels; other sizes work too; "
            f"mean {_numbers(image_processor.image_mean)}, std {_numbers(image_processor.image_std)}",
            "groups": _levels(network, shape),
            "classes": ", ".join(config.class_names or []) or "none of its own: give --classes",
            "threshold": str(config.background_threshold),
            "prompts": " | ".join(prompt_templates(config)),
            "weights": f"{weights} ({weights.stat().st_size / 1e6:.1f} MB)" if at_home else f"{source} on the hub",
            "timm": f'import grouping_zoo, timm; timm.create_model("{door}", pretrained=True)',
            "transformers": f'import grouping_zoo, transformers; transformers.AutoModel.from_pretrained("{source}")',
            "command line": f'grouping-zoo segment photo.jpg --model {name} --classes "cat, coffee cup"',
        }
    )


def _levels(model: Any, input_size: Sequence[int]) -> str:
    import torch

    with torch.no_grad():
        grouping = model.forward_grouping(torch.zeros(1, *input_size))
    tokens, *groups = (str(grouping.num_groups(level)) for level in range(grouping.num_levels))
    return f"{tokens} tokens -> " + " -> ".join(groups)


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


def _open(name: str, device: str) -> tuple[Any, Any]:
    """A checkpoint with an image and a text tower, on a device, and its processor."""
    import torch
    from safetensors import SafetensorError

    from grouping_zoo.hf.checkpoint_folder import open_checkpoint
    from grouping_zoo.models.image_text import ImageTextModel

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: expected a device of this machine, got {device!r} ({reason}); try cpu") from None
    try:
        model, processor = open_checkpoint(name)
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights are damaged ({error}); fetch or train them again") from None
    if not isinstance(getattr(model, "model", None), ImageTextModel) or getattr(processor, "tokenizer", None) is None:
        raise ValueError(
            f"{name}: {type(model).__name__} has no text encoder; choose a GroupViT checkpoint: grouping-zoo list"
        )
    network: Any = model  # transformers' `to` is a wrapper that type checkers cannot call
    return network.to(device), processor


# --- segment --------------------------------------------------------------------------------------------------------


def _segment(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from grouping_zoo.data.images import CorruptImages, open_image

    if options.stride and not options.window:
        raise ValueError("--stride: expected only with --window, got it alone; add --window")
    paths = _photos(options.images, options.out)
    classes = _class_names(options.classes)
    segmenter, settings, class_names = _segmenter(options, classes)
    command = {"model": options.model, "device": options.device, "version": __version__, "settings": settings}
    corrupt = CorruptImages()
    named = dict(zip(paths, _output_names(paths, options.out), strict=True))
    for path in tqdm(paths, desc="segment", unit="image", disable=None if len(paths) > 1 else True):
        try:
            photo = open_image(path)
        except (ValueError, OSError) as error:
            corrupt.skip(str(path), error)
            continue
        corrupt.count_read()
        segmentation = segmenter(photo)
        del photo  # may be large, and the next one is read before this name is bound again
        target = options.out / named[path]
        _save(target, segmentation, class_names, _record(path, segmentation, class_names) | command)
        tqdm.write(_finding(path, segmentation, class_names, target))
    _report_skipped(corrupt, {str(Path(item)) for item in options.images})


def _photos(items: Sequence[str], out: Path) -> list[Path]:
    """The images to read, each once; what an earlier run wrote into `out` is none of them."""
    from grouping_zoo.data.images import list_images

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {out}; choose another name")
    found: dict[Path, Path] = {}
    for item in map(Path, items):
        if item.is_dir() and out.is_dir() and item.samefile(out):
            raise ValueError(f"--out: expected another folder than that of the images, got {out}; choose a new one")
        images = list_images(item)
        if item.is_dir():
            images = [image for image in images if out.resolve() not in image.resolve().parents]
        found |= {image.resolve(): image for image in images}
    if not found:
        raise ValueError(f"images: expected some outside --out {out}, got none in {', '.join(items)}; check the path")
    return list(found.values())


def _output_names(paths: Sequence[Path], out: Path) -> list[str]:
    """A name for each image's files: its stem, with a number where an earlier one has it already."""
    names: list[str] = []
    taken: set[str] = set()
    sources = {path.resolve() for path in paths}
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # file systems may not tell A from a
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
        for suffix in PICTURES:
            if (out / f"{name}{suffix}").resolve() in sources:
                raise ValueError(f"--out: {out / name}{suffix} would overwrite an image; choose another folder")
    return names


def _class_names(text: str | None) -> list[str] | None:
    """The classes asked for; None for the model's own."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip(" ;")]
    if not names:
        raise ValueError('--classes: expected at least one class name, got none; give for example "cat, coffee cup"')
    lowered = [name.casefold() for name in names]
    twice = sorted({name for name in lowered if lowered.count(name) > 1})
    if twice:
        raise ValueError(f"--classes: expected different names, got {', '.join(twice)} more than once; leave one out")
    if "background" in lowered:
        raise ValueError("--classes: background is what reaches no class; leave it out, and set --threshold instead")
    return names


def _segmenter(
    options: argparse.Namespace, classes: list[str] | None
) -> tuple["PhotoSegmenter", dict[str, Any], list[str]]:
    """What segments, every setting that changes what it finds, and the names of the classes."""
    from grouping_zoo.data.tokenization import make_tokenize
    from grouping_zoo.evaluation.scenes import prompt_templates, segmenter_settings
    from grouping_zoo.evaluation.zero_shot import ZeroShotSegmenter, class_embeddings
    from grouping_zoo.viz.photo_segmentation import PhotoSegmenter

    model, processor = _open(options.model, options.device)
    config = model.config
    own = list(config.class_names or [])
    names = classes or own
    if not names:
        raise ValueError(f'--classes: {options.model} has no classes of its own; give for example "cat, coffee cup"')
    foreign = [name for name in names if own and name not in own]
    if foreign:
        print(
            f"note: {options.model} was made for {', '.join(own)}; what it finds of {', '.join(foreign)} may be wrong",
            file=sys.stderr,
        )
    templates = prompt_templates(config)
    chosen = dict(
        background_threshold=options.threshold, masks=options.masks, window=options.window, stride=options.stride
    )
    settings = segmenter_settings(config, **chosen)
    text = class_embeddings(model.model, make_tokenize(processor.tokenizer), names, templates)
    segmenter = ZeroShotSegmenter(model=model.model, text=text, **settings)
    size = options.size or min(config.pretrained_cfg["input_size"][1:])
    settings |= {"stride": segmenter.stride, "size": size, "prompts": templates}
    return PhotoSegmenter(segmenter=segmenter, image_processor=processor.image_processor, size=size), settings, names


def _record(path: Path, found: "PhotoSegmentation", class_names: Sequence[str]) -> dict[str, Any]:
    """What was found, as plain data."""
    background, *shares = found.shares()
    classes = zip(class_names, shares, found.scores, found.probabilities, strict=True)
    return {
        "image": path.name,
        "image_size": {"width": found.full_size[0], "height": found.full_size[1]},
        "working_size": {"width": found.working_size[0], "height": found.working_size[1]},
        "background": {"index": 0, "share": round(background, 6)},
        "classes": [
            {
                "index": index,
                "name": name,
                "share": round(share, 6),
                "score": round(score, 6),
                "image_probability": round(probability, 6),
            }
            for index, (name, share, score, probability) in enumerate(classes, start=1)
        ],
        "groups": {"per_level": found.group_counts, "seen": found.groups_seen},
    }


def _save(target: Path, found: "PhotoSegmentation", class_names: Sequence[str], record: dict[str, Any]) -> None:
    from grouping_zoo.viz.pictures import groups_picture, overlay_picture, save_label_png

    shown = ["background", *(name.split(";")[0].strip() for name in class_names)]
    with _all_or_nothing(target.parent) as folder:
        groups_picture(found.picture, found.groups).save(folder / f"{target.name}{GROUPS}")
        overlay_picture(found.picture, found.labels, shown).save(folder / f"{target.name}{OVERLAY}")
        save_label_png(found.full_labels(), folder / f"{target.name}{LABELS}")
        (folder / f"{target.name}.json").write_text(_as_json(record), encoding="utf-8")


def _as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextlib.contextmanager
def _all_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when all is written, and vanish on an error."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        for file in sorted(Path(unfinished).iterdir()):
            os.replace(file, folder / file.name)


def _finding(path: Path, found: "PhotoSegmentation", class_names: Sequence[str], target: Path) -> str:
    from grouping_zoo.viz.pictures import percent

    shares = dict(zip(["background", *class_names], found.shares(), strict=True))
    background = shares.pop("background")
    seen = sorted((name for name, share in shares.items() if share), key=lambda name: -shares[name])
    parts = [f"{name} {percent(shares[name])}" for name in seen]
    parts += [f"background {percent(background)}"] * (background > 0)
    groups = "1 group" if found.groups_seen == 1 else f"{found.groups_seen} groups"
    return f"{path}: {', '.join(parts)}; {groups} -> {target}{OVERLAY}, {target.name}{GROUPS}"


def _report_skipped(corrupt: Any, given: set[str]) -> None:
    """Names the images that could not be read; an error if one was asked for by its own name, or none is left."""
    if not corrupt.reasons:
        return
    count = f"{len(corrupt)} of {corrupt.read + len(corrupt)} images could not be read"
    if not corrupt.read or given & corrupt.reasons.keys():
        reasons = list(corrupt.reasons.values())
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise ValueError(f"{count}: {'; '.join(reasons[:3])}{more}" if len(reasons) > 1 or corrupt.read else reasons[0])
    print(f"skipped: {count}", *(f"  {reason}" for reason in corrupt.reasons.values()), sep="\n", file=sys.stderr)


# --- eval -----------------------------------------------------------------------------------------------------------


def _eval(options: argparse.Namespace) -> None:
    import torch

    from grouping_zoo.evaluation.scenes import all_background_on_scenes, evaluate_checkpoint_on_scenes

    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise ValueError(f"--json: expected a file in a folder that exists, got {options.json}; choose another one")
    objects: Literal["shapes", "digits"] = "digits" if options.data == "digits" else "shapes"
    model, processor = _open(options.model, options.device)
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
        with _all_or_nothing(options.json.parent) as folder:
            (folder / options.json.name).write_text(_as_json(record), encoding="utf-8")


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


if __name__ == "__main__":
    main()
