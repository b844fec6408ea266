"""Several figures of one photo on a sheet, each with a title below."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from grouping_zoo.viz.legend import FAINT_INK, INK, PAPER, lettering

FIGURE_SIDE = 2048  # longest side of a figure
SHEET_ASPECT = 1.6  # width over height that a sheet comes near to
MIN_LONGER_SIDE, MIN_SHORTER_SIDE = 128, 24  # of a panel; very long photos are widened
LETTER_SIZES = (13, 26)
GAP = 16
MAX_COLUMNS = 12  # more would be too narrow for their words


class Panel(NamedTuple):
    """An image, drawn at the (width, height) that the sheet has for it, and the words below it.

    Attributes:
        draw: returns the RGB image of that size.
        title: name of the panel.
        remark: words in a fainter color beside the title.
    """

    draw: Callable[[tuple[int, int]], Image.Image]
    title: str
    remark: str = ""


def contact_sheet(panels: Sequence[Panel], photo_size: tuple[int, int]) -> Image.Image:
    """The panels row by row, in as many columns as bring the sheet near to `SHEET_ASPECT`.

    Args:
        panels: at least one.
        photo_size: (width, height) of the photo.

    Returns:
        A sheet of at most `FIGURE_SIDE` pixels a side, unless the panels are so many that they would be too small.
    """
    columns = _columns(len(panels), photo_size)
    rows = -(-len(panels) // columns)
    width, height = _panel_size(columns, rows, photo_size)
    size = min(max(width // 24, LETTER_SIZES[0]), LETTER_SIZES[1])
    font = lettering(size)
    words = max(font.getlength(f"{panel.title}  {panel.remark}") for panel in panels)
    cell = max(width, math.ceil(words))
    row_height = height + 2 * size + GAP
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, rows * row_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        left, top = GAP + number % columns * (cell + GAP), GAP + number // columns * row_height
        sheet.paste(panel.draw((width, height)), (left + (cell - width) // 2, top))
        middle = top + height + size
        start = left + (cell - font.getlength(f"{panel.title}  {panel.remark}".rstrip())) / 2
        draw.text((start, middle), panel.title, INK, font, anchor="lm")
        draw.text((start + font.getlength(f"{panel.title}  "), middle), panel.remark, FAINT_INK, font, anchor="lm")
    return sheet


def _columns(count: int, photo_size: tuple[int, int]) -> int:
    """The number of columns whose sheet is nearest to `SHEET_ASPECT`; a full last row is worth some of that."""
    aspect = photo_size[0] / photo_size[1]

    def badness(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * aspect / rows / SHEET_ASPECT)) + (rows * columns - count) / count

    return min(range(1, min(count, MAX_COLUMNS) + 1), key=badness)


def _panel_size(columns: int, rows: int, photo_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a panel, so that all of them fit into the sheet."""
    sheet = FIGURE_SIDE - GAP
    room = (sheet / columns - GAP, sheet / rows - GAP - 2 * LETTER_SIZES[1])
    fitting = min(available / side for available, side in zip(room, photo_size, strict=True))
    scale = max(fitting, MIN_LONGER_SIDE / max(photo_size))
    return max(MIN_SHORTER_SIDE, int(scale * photo_size[0])), max(MIN_SHORTER_SIDE, int(scale * photo_size[1]))
