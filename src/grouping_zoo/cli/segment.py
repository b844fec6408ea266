"""`grouping-zoo segment`: photos to figures of their groups, label maps and records."""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from grouping_zoo.cli.parsing import add_device_argument, add_label_arguments, count, counts, folder, whole
from grouping_zoo.data.images import list_images
from grouping_zoo.inference.result import IMAGE_SUFFIX
from grouping_zoo.inference.segmenter import DEFAULT_MODEL, Segmenter
from grouping_zoo.output_files import check_folder, output_stem

# Arguments of networks that have an option of their own; --set takes those of any network.
GROUPING_ARGS = ("num_clusters", "num_groups", "layer", "head")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, or folders of them")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="checkpoint folder, packaged or hub name (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=folder, default=Path("out"), metavar="DIR", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--size", type=count, metavar="N", help="shorter side that the model sees; default: its own")
    add_device_argument(parser)
    text = parser.add_argument_group("models with text (GroupViT)")
    text.add_argument(
        "--classes", metavar="NAMES", help='e.g. "cat, coffee cup"; "cat; kitten" is one class; default: the model\'s'
    )
    text.add_argument("--window", type=count, metavar="N", help="side of a sliding window; default: none")
    text.add_argument("--stride", type=count, metavar="N", help="step of the window; default: half of it")
    add_label_arguments(text)
    groups = parser.add_argument_group("models without text (CAST, PGT, VT)")
    groups.add_argument(
        "--level", type=whole, metavar="N", help="this level alone: 0 the finest, -1 the coarsest; default: all"
    )
    groups.add_argument(
        "--clusters", dest="num_clusters", type=counts, metavar="N,N,...", help="CAST: number of clusters of each level"
    )
    groups.add_argument("--groups", dest="num_groups", type=count, metavar="N", help="PGT: number of groups")
    groups.add_argument("--layer", type=whole, metavar="N", help="PGT: the layer whose groups are shown")
    groups.add_argument("--head", type=whole, metavar="N", help="PGT: the head whose groups are shown; default: all")
    groups.add_argument(
        "--set",
        dest="grouping_args",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of the network's grouping, e.g. num_iters=2; may be given several times",
    )
    parser.epilog = (
        "Makes of photo.jpg, with text: photo_groups.png, photo_overlay.png (with a legend), photo_labels.png (0 "
        "background, 1 the first class, ...). Without text: photo_groups.png (the photo and its levels, fine to "
        "coarse; a group's color is a shade of its parent's) and photo_level1_labels.png, ...; of VT also "
        "photo_attention.png. Always photo.json (fractions and every setting). Figures have at most 2048 pixels a "
        "side, labels those of the photo; photos of more than 100 megapixels are scaled down to that."
    )


def run(options: argparse.Namespace) -> None:
    """Segment the photos one after the other; those that cannot be segmented are reported at the end."""
    paths = _photos(options.images, options.out)
    stems = dict(zip(paths, _output_stems(paths, options.out), strict=True))
    own = {name: value for name in GROUPING_ARGS if (value := getattr(options, name)) is not None}
    segmenter = Segmenter(
        options.model,
        classes=options.classes,
        threshold=options.threshold,
        masks=options.masks,
        window=options.window,
        stride=options.stride,
        level=options.level,
        size=options.size,
        device=options.device,
        **own,
        **dict(options.grouping_args),
    )
    if segmenter.note:
        print(f"note: {segmenter.note}", file=sys.stderr)
    failures: dict[str, str] = {}
    for path in tqdm(paths, desc="segment", unit="image", disable=None if len(paths) > 1 else True):
        try:
            tqdm.write(_segment(segmenter, path, options.out, stems[path]))
        except (ValueError, FileNotFoundError) as error:  # of this image; a full disk, say, is one of all
            failures[str(path)] = str(error) if str(path) in str(error) else f"{path}: {error}"
    _report(failures, len(paths), {str(Path(item)) for item in options.images})


def _segment(segmenter: Segmenter, path: Path, out: Path, stem: str) -> str:
    """Segment and save a photo; the result, which may be large, is let go before the next photo is read."""
    result = segmenter(path)
    first, *others = result.save(out, stem)
    return f"{path}: {result.summary} -> {', '.join([str(first), *(other.name for other in others)])}"


def _setting(text: str) -> tuple[str, Any]:
    """An argument and its value, which is read as in a recipe."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as num_iters=2, got {text!r}") from None


def _photos(items: Sequence[str], out: Path) -> list[Path]:
    """The images to read, each once; what an earlier run wrote into `out` is none of them."""
    check_folder("--out", out)
    if not all(items):  # as a shell makes of a variable that is not set; a path would take it for the current folder
        raise ValueError("images: expected paths, got an empty one; give . for the current folder")
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


def _output_stems(paths: Sequence[Path], out: Path) -> list[str]:
    """A start of the names of each image's files: its own, with a number where an earlier one has it already."""
    stems: list[str] = []
    taken: set[str] = set()
    for path in paths:
        numbered = (output_stem(path.stem, number) for number in itertools.count(1))
        stem = next(stem for stem in numbered if stem.casefold() not in taken)  # file systems may not tell A from a
        taken.add(stem.casefold())
        stems.append(stem)
    for path in paths:
        suffix = IMAGE_SUFFIX.search(path.name)
        if suffix and path.resolve().parent == out.resolve() and path.name[: suffix.start()].casefold() in taken:
            raise ValueError(f"--out: {out / path.name} would overwrite an image; choose another folder")
    return stems


def _report(failures: Mapping[str, str], total: int, given: set[str]) -> None:
    """Name the images that could not be segmented; an error if one was asked for by its own name, or all failed."""
    if not failures:
        return
    failed = f"{len(failures)} of {total} images could not be segmented"
    reasons = list(failures.values())
    if len(failures) == total == 1:
        raise ValueError(reasons[0])
    if len(failures) == total or given & failures.keys():
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise ValueError(f"{failed}: {'; '.join(reasons[:3])}{more}")
    print(f"skipped: {failed}", *(f"  {reason}" for reason in reasons), sep="\n", file=sys.stderr)
