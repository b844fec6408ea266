"""A legend below a figure."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT_INK = (255, 255, 255), (25, 25, 28), (110, 110, 118)
MIN_WIDTH = 420  # a narrow figure is put on a wider sheet
LONGEST_NAME = 40
FONT_SIZES = (15, 44)


class LegendEntry(NamedTuple):
    """One line: a color, what it stands for, and a remark."""

    color: tuple[int, int, int]
    name: str
    remark: str


def with_legend(figure: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """The figure on a sheet with its legend below, in as many rows as needed; words grow with the figure."""
    size = min(max(figure.width // 40, FONT_SIZES[0]), FONT_SIZES[1])
    font, gap = lettering(size), size // 2
    width = max(figure.width, MIN_WIDTH)
    texts = [(_shortened(entry.name), entry.remark) for entry in entries]
    widths = [round(size + gap + font.getlength(name) + gap + font.getlength(remark)) for name, remark in texts]
    places = _flow(widths, width - 2 * size, 2 * size)
    row_height = round(1.7 * size)
    rows = 1 + max((row for row, _ in places), default=0)
    sheet = Image.new("RGB", (width, figure.height + rows * row_height + size), PAPER)
    sheet.paste(figure, ((width - figure.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for entry, (name, remark), (row, left) in zip(entries, texts, places, strict=True):
        x = size + left
        middle = figure.height + size // 2 + round((row + 0.5) * row_height)
        draw.rectangle((x, middle - size // 2, x + size, middle + size // 2), fill=entry.color)
        draw.text((x + size + gap, middle), name, INK, font, anchor="lm")
        remark_x = x + size + gap + font.getlength(name) + gap
        draw.text((remark_x, middle), remark, FAINT_INK, font, anchor="lm")
    return sheet


def _flow(widths: Sequence[int], line: int, gap: int) -> list[tuple[int, int]]:
    """(row, left edge) of pieces set one after the other in lines of a width; one that is too wide has its own."""
    places, row, left = [], 0, 0
    for width in widths:
        if left and left + width > line:
            row, left = row + 1, 0
        places.append((row, left))
        left += width + gap
    return places


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"


@lru_cache(maxsize=8)
def lettering(size: int) -> ImageFont.FreeTypeFont:
    """The font of all figures, its letters `size` pixels high."""
    # matplotlib's DejaVu has far more scripts than Pillow's own font.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
