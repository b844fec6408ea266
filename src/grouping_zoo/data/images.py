"""Image files of any kind to 8-bit RGB, and what happens to those that cannot be read."""

import logging
import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 100_000_000  # larger images are scaled down
BOMB_PIXELS = 500_000_000  # larger images are refused

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

logger = logging.getLogger(__name__)
_pillow_limit = threading.Lock()


def open_image(
    path_or_file: str | PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Read an image file as it is meant to be seen.

    The EXIF orientation is applied, transparency composited on white, 16-bit and float values are scaled to 8 bits,
    and of an animation the first frame is taken.

    Args:
        path_or_file: a path or a binary file.
        max_pixels: larger images are scaled down to at most this many pixels; JPEG while it is decoded.
        name: what errors call the file; by default its path.

    Returns:
        An RGB image.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read as an image, or has more than 500 million pixels.
    """
    name = name or str(path_or_file if isinstance(path_or_file, str | PathLike) else getattr(path_or_file, "name", "?"))
    try:
        if isinstance(path_or_file, str | PathLike):
            _check_regular_file(Path(path_or_file))
        with _open(path_or_file) as image:
            pixels = image.width * image.height
            if pixels > BOMB_PIXELS:
                raise ValueError(f"its {image.width}x{image.height} pixels are more than the limit of {BOMB_PIXELS}")
            if pixels > max_pixels:
                size = _reduced_size(image.size, max_pixels)
                image.draft(None, size)
                image.load()
                image.thumbnail(size, Image.Resampling.BOX, reducing_gap=None)
            return as_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"image {name}: expected a file, got none; check the path") from None
    # Decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error, zlib.error, IndexError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"image {name}: expected a readable image, got: {reason}; replace or remove the file"
        ) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, upright, as `open_image` does."""
    image.load()
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _check_regular_file(path: Path) -> None:
    # Reading a pipe waits for somebody to write into it, which may be for ever.
    if path.exists() and not path.is_file():
        raise ValueError("a folder, pipe or device")


def _open(path_or_file: str | PathLike[str] | IO[bytes]) -> Image.Image:
    """Read an image's header, without Pillow's own limit: that one is global, and stops at other sizes."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path_or_file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reduced_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    factor = (size[0] * size[1] / max_pixels) ** 0.5
    return max(1, int(size[0] / factor)), max(1, int(size[1] / factor))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> Image.Image:
    """Scale grey values: 0 to 65535 where integers lie in it, 0 to 1 where floats do, else between the extremes."""
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535:
        scaled = values / np.float32(257)
    else:
        finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        low, high = (0.0, 1.0) if finite.min() >= 0 and finite.max() <= 1 else (finite.min(), finite.max())
        scaled = (finite - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def list_images(folder_or_files: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    """List image files: those in a folder and its subfolders, by extension, or those named.

    Args:
        folder_or_files: a folder, a file, or several of them.

    Returns:
        Paths; those of a folder are sorted.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if there is no image at all.
    """
    named = [folder_or_files] if isinstance(folder_or_files, str | PathLike) else folder_or_files
    files: list[Path] = []
    for path in [Path(item) for item in named]:
        if not path.exists():
            raise FileNotFoundError(f"images: expected a folder or file, but {path} does not exist; check the path")
        if path.is_dir():
            # Names with a leading dot are other systems' companions of the images, not images.
            found = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
            files += sorted(file for file in found if file.is_file())
        else:
            files.append(path)
    if not files:
        raise ValueError(
            f"images: expected files ending in {', '.join(sorted(EXTENSIONS))}, got none in {folder_or_files}; "
            "check the path"
        )
    return files


class CorruptImages:
    """Count of the files that had to be skipped; too many of them stop the run.

    Args:
        max_fraction: largest share of corrupt files among all that were read.
        minimum_count: with fewer corrupt files than this nothing is stopped, however few were read.
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

    def count_read(self) -> None:
        """Note that a file was read."""
        self.read += 1

    def skip(self, name: str, error: Exception) -> None:
        """Note that a file was skipped; a file that is met again counts once.

        Raises:
            ValueError: when there are too many of them.
        """
        if name not in self.reasons:
            self.reasons[name] = str(error)
            logger.warning("skipped %s", error)
        total = self.read + len(self)
        if len(self) >= self.minimum_count and len(self) > self.max_fraction * total:
            first = ", ".join(list(self.reasons)[:3])
            raise ValueError(
                f"corrupt images: expected at most {self.max_fraction:.0%}, got {len(self)} of {total} ({first}, ...); "
                "repair or remove them"
            ) from error
