"""Image files of any kind to 8-bit RGB, and what happens to those that cannot be read."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from grouping_zoo.data.limits import DECODER_BYTES, MAX_DECODING_BYTES, MAX_PIXELS, OTHER_DECODER_BYTES

# Of Pillow's formats those of photos and of label maps. Others, such as EPS, would start a program to draw them.
_WANTED = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)  # some need libraries that Pillow may be built without
EXTENSIONS = frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)
LOSSLESS = ("BMP", "GIF", "PNG", "PPM", "TIFF")

# EXIF orientation -> what turns the stored image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
GREY_DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey value, as cameras and scanners have them
ROWS = 256  # of a grey image that are scaled at once

logger = logging.getLogger(__name__)
Key = TypeVar("Key")
Sample = TypeVar("Sample")
_pillow_limit = threading.Lock()


def open_image(
    path_or_file: str | PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Read an image file as it is meant to be seen; see `as_rgb`.

    Args:
        path_or_file: a path or a binary file.
        max_pixels: larger images are scaled down to at most this many pixels; JPEG while it is decoded.
        name: what errors call the file; by default its path.

    Returns:
        an RGB image.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read as an image, or is too large to be decoded, see `grouping_zoo.data.limits`.
    """
    return open_with_orientation(path_or_file, max_pixels=max_pixels, name=name)[0]


def open_with_orientation(
    path_or_file: str | PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> tuple[Image.Image, int]:
    """Read an image like `open_image`, and the EXIF orientation, 1 to 8, that it is stored with."""
    name = name or str(path_or_file if isinstance(path_or_file, str | PathLike) else getattr(path_or_file, "name", "?"))
    try:
        if isinstance(path_or_file, str | PathLike):
            _check_regular_file(Path(path_or_file))
        with open_header(path_or_file) as image:
            if image.width * image.height > max_pixels:
                size = _reduced_size(image.size, max_pixels)
                image.draft(None, size)
                image.load()
                image.thumbnail(size, Image.Resampling.BOX, reducing_gap=None)
            return as_rgb(image), orientation_of(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"image {name}: expected a file, got none; check the path") from None
    # Decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error, zlib.error, IndexError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"image {name}: expected a readable image, got: {reason}; replace or remove the file"
        ) from error


def open_header(path_or_file: str | PathLike[str] | IO[bytes], formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image file without decoding it.

    Raises:
        ValueError: if the decoder would need more than `MAX_DECODING_BYTES`.
        Exception: of any kind on a file that is no image, or of another format.
    """
    with _pillow_limit:  # Pillow's own limit is global, and stops at other sizes
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path_or_file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    most = MAX_DECODING_BYTES // DECODER_BYTES.get(image.format or "", OTHER_DECODER_BYTES)
    if image.width * image.height > most:
        image.close()
        raise ValueError(f"its {image.width}x{image.height} pixels are more than the limit of {most}")
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB as it is meant to be seen.

    The EXIF orientation is applied, transparency composited on white, 16-bit and float values are scaled to 8 bits
    (see `grey_to_8_bits`), and of an animation the first frame is taken.
    """
    image.load()
    orientation = orientation_of(image)
    rgb = _to_rgb(image)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 (upright) where it tells none."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1
    return found if found in UPRIGHT else 1


def grey_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale values of more than 8 bits to 8 bits.

    White is 1 for floats in [0, 1], and else the largest value of the smallest usual depth (8, 10, 12, 14 or 16 bits)
    that holds all values: 12-bit data often lie in 16-bit files. Values outside of 16 bits are stretched between
    their extremes.

    Args:
        values: integers or floats of any shape; what is not finite counts as 0.

    Returns:
        uint8 of the same shape.
    """
    low, high = _finite_extremes(values)
    if low < 0 or high >= 2 ** GREY_DEPTHS[-1]:
        black, white = low, high
    elif values.dtype.kind == "f" and high <= 1:
        black, white = 0.0, 1.0
    else:
        black, white = 0.0, float(next(2**bits - 1 for bits in GREY_DEPTHS if high < 2**bits))
    scaled = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), ROWS):  # floats of all of a large image at once would take gigabytes
        rows = np.nan_to_num(values[start : start + ROWS].astype(np.float64), posinf=0, neginf=0)
        scaled[start : start + ROWS] = np.round((rows - black) / max(white - black, 1e-12) * 255).clip(0, 255)
    return scaled


def _finite_extremes(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; what is not finite counts as 0."""
    lows, highs = [], []
    for start in range(0, len(values), ROWS):
        rows = values[start : start + ROWS]
        rows = np.nan_to_num(rows, posinf=0, neginf=0) if rows.dtype.kind == "f" else rows
        lows.append(float(rows.min()))
        highs.append(float(rows.max()))
    return min(lows), max(highs)


def _check_regular_file(path: Path) -> None:
    # Reading a pipe waits for somebody to write into it, which may be for ever.
    if path.exists() and not path.is_file():
        raise ValueError("a folder, pipe or device")


def _reduced_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    factor = (size[0] * size[1] / max_pixels) ** 0.5
    return max(1, int(size[0] / factor)), max(1, int(size[1] / factor))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(grey_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def list_images(folder_or_files: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    """List image files: those in a folder and its subfolders, by extension, or those named.

    Links are followed, except to a folder that they lie in. The files of a folder that are left out are counted in a
    warning.

    Args:
        folder_or_files: a folder, a file, or several of them.

    Returns:
        paths; those of a folder are sorted.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if there is no image at all.
    """
    named = [folder_or_files] if isinstance(folder_or_files, str | PathLike) else folder_or_files
    files: list[Path] = []
    for path in [Path(item) for item in named]:
        if not path.exists():
            raise FileNotFoundError(f"images: expected a folder or file, but {path} does not exist; check the path")
        files += images_in_folder(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(
            f"images: expected files ending in {', '.join(sorted(EXTENSIONS))}, got none in {folder_or_files}; "
            "check the path"
        )
    return files


def images_in_folder(folder: Path) -> list[Path]:
    """List the images in a folder and its subfolders, sorted; see `list_images`."""
    found = list(_walk(folder, ()))
    images = sorted(file for file in found if file.suffix.lower() in EXTENSIONS and file.is_file())
    if len(images) < len(found):
        taken = set(images)
        others = [file for file in found if file not in taken]
        counts = Counter(file.suffix.lower() or "none" for file in others)
        endings = ", ".join(f"{ending} {count}" for ending, count in counts.most_common(5))
        logger.warning(
            "%s: left out %d files that do not end like an image that can be read here (%s), such as %s",
            folder,
            len(others),
            endings,
            others[0],
        )
    return images


def _walk(folder: Path, inside: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files below a folder, without those whose name begins with a dot, which are other systems' companions."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in inside:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, (*inside, identity))
            else:
                yield folder / entry.name


class Unreadable(NamedTuple):
    """An image that cannot be read: its name and the reason."""

    name: str
    reason: str


class CorruptImages:
    """Count of the images that had to be skipped; too many of them stop the run.

    Args:
        max_fraction: largest fraction of corrupt images among all that were read.
        minimum_count: with fewer corrupt images than this nothing is stopped, however few were read.
    """

    def __init__(self, max_fraction: float = 0.05, minimum_count: int = 10) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_fraction: expected 0 to 1, got {max_fraction}; 0.05 skips up to 5 % of the files")
        self.max_fraction = max_fraction
        self.minimum_count = minimum_count
        self.read = 0
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def attempt(self, name: str, read: Callable[[Key], Sample], key: Key) -> Sample | Unreadable:
        """Return ``read(key)``, or name and reason, counted, if it fails with a ValueError or FileNotFoundError.

        Raises:
            ValueError: when there are too many of them.
        """
        try:
            sample = read(key)
        except (ValueError, FileNotFoundError) as error:
            self.skip(name, error)
            return Unreadable(name, str(error))
        self.count_read()
        return sample

    def count_read(self) -> None:
        """Note that an image was read."""
        self.read += 1

    def skip(self, name: str, error: Exception) -> None:
        """Note that an image was skipped; one that is met again counts once.

        Raises:
            ValueError: when there are too many of them; it tells the reason of the first one.
        """
        if name not in self.reasons:
            self.reasons[name] = str(error)
            logger.warning("skipped %s", error)
        total = self.read + len(self)
        if len(self) >= self.minimum_count and len(self) > self.max_fraction * total:
            names = list(self.reasons)
            raise ValueError(
                f"corrupt images: expected at most {self.max_fraction:.0%}, got {len(self)} of {total} "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); of the first: {self.reasons[names[0]]}"
            ) from error


def first_readable(read: Callable[[int], Sample | Unreadable], start: int, length: int, source: str) -> Sample:
    """Return the first sample that can be read, from position `start` on and around the end.

    Args:
        read: function of a position.
        start: the position that is wanted.
        length: number of positions.
        source: name of the source in the error.

    Raises:
        ValueError: if there is none; it tells why the wanted one cannot be read.
    """
    reason = ""
    for offset in range(length):
        sample = read((start + offset) % length)
        if not isinstance(sample, Unreadable):
            return sample
        reason = reason or sample.reason
    raise ValueError(f"{source}: expected readable images, but none of {length} is: {reason}")
