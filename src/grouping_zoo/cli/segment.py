"""`grouping-zoo segment`: photos to pictures of their groups, label maps and records."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from grouping_zoo.cli.files import all_or_nothing, as_json, check_folder
from grouping_zoo.cli.parsing import add_device_argument, add_label_arguments, count, counts, whole
from grouping_zoo.version import __version__

DEFAULT_MODEL = "groupvit_nano_scenes"


class Finding(NamedTuple):
    """What was found in one photo.

    Attributes:
        record: as plain data.
        words: for people.
        endings: of the pictures to look at; the first one's is that to look at first.
        save: writes the pictures, given the path that their endings follow.
    """

    record: dict[str, Any]
    words: str
    endings: Sequence[str]
    save: Callable[[Path], None]


class PhotoReader(Protocol):
    """What a kind of model makes of photos.

    Attributes:
        settings: every setting that changes what it finds.
        endings: matches what the names of its pictures end with.
    """

    settings: dict[str, Any]
    endings: re.Pattern[str]

    def __call__(self, photo: Image.Image) -> Finding:
        """Segments a photo."""
        ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, or folders of them")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder, packaged or hub name (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where files go (%(default)s)")
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
    groups.add_argument("--clusters", type=counts, metavar="N,N,...", help="CAST: how many clusters each level has")
    groups.add_argument("--groups", type=count, metavar="N", help="PGT: how many groups")
    groups.add_argument("--layer", type=whole, metavar="N", help="PGT: the layer whose groups are shown")
    groups.add_argument("--head", type=whole, metavar="N", help="PGT: the head whose groups are shown; default: all")
    parser.epilog = (
        "Makes of photo.jpg, with text: photo_groups.png, photo_overlay.png (with a legend), photo_labels.png (0 "
        "background, 1 the first class, ...). Without text: photo_groups.png (the photo and its levels, fine to "
        "coarse; a group's colour is a shade of its parent's) and photo_level1_labels.png, ...; of VT also "
        "photo_attention.png. Always photo.json (shares and every setting). Pictures have at most 2048 pixels a side, "
        "labels those of the photo; photos of more than 100 megapixels are scaled down to that."
    )


def run(options: argparse.Namespace) -> None:
    """Segments the photos one after the other; those that cannot be read are reported at the end."""
    from tqdm import tqdm

    from grouping_zoo.data.images import CorruptImages, open_image

    paths = _photos(options.images, options.out)
    reader = _reader(options)
    command = {"model": options.model, "device": options.device, "version": __version__, "settings": reader.settings}
    corrupt = CorruptImages()
    named = dict(zip(paths, _output_names(paths, options.out, reader.endings), strict=True))
    for path in tqdm(paths, desc="segment", unit="image", disable=None if len(paths) > 1 else True):
        try:
            photo = open_image(path)
        except (ValueError, OSError) as error:
            corrupt.skip(str(path), error)
            continue
        corrupt.count_read()
        found = reader(photo)
        del photo  # may be large, and the next one is read before this name is bound again
        name = named[path]
        with all_or_nothing(options.out) as folder:
            found.save(folder / name)
            record = {"image": path.name} | found.record | command
            (folder / f"{name}.json").write_text(as_json(record), encoding="utf-8")
        first, *others = (f"{name}{ending}" for ending in found.endings)
        tqdm.write(f"{path}: {found.words} -> {', '.join([str(options.out / first), *others])}")
    _report_skipped(corrupt, {str(Path(item)) for item in options.images})


def _reader(options: argparse.Namespace) -> PhotoReader:
    """Opens the model; what it makes of photos is told by whether it has a text encoder."""
    from grouping_zoo.cli.checkpoints import has_text, open_model
    from grouping_zoo.cli.segment_by_groups import GroupsReader
    from grouping_zoo.cli.segment_by_text import TextReader, check_text_options

    check_text_options(options)
    model, processor = open_model(options.model, options.device)
    if has_text(model, processor):
        return TextReader(options, model, processor)
    return GroupsReader(options, model, processor)


def _photos(items: Sequence[str], out: Path) -> list[Path]:
    """The images to read, each once; what an earlier run wrote into `out` is none of them."""
    from grouping_zoo.data.images import list_images

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


def _output_names(paths: Sequence[Path], out: Path, endings: re.Pattern[str]) -> list[str]:
    """A name for each image's files: its stem, with a number where an earlier one has it already."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # file systems may not tell A from a
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    for path in paths:
        ending = endings.search(path.name)
        if ending and path.resolve().parent == out.resolve() and path.name[: ending.start()].casefold() in taken:
            raise ValueError(f"--out: {out / path.name} would overwrite an image; choose another folder")
    return names


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
