"""Images beside their label maps, found and true, row by row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from grouping_zoo.label_maps import resize_labels
from grouping_zoo.viz.legend import INK, PAPER, LegendEntry, lettering, with_legend
from grouping_zoo.viz.overlays import tinted
from grouping_zoo.viz.palette import palette

HEIGHT = 160  # of an image on the sheet
GAP = 8
LETTERS = 15
LEGEND_CLASSES = 40


class Example(NamedTuple):
    """`image` (H, W, 3) uint8, and label maps (h, w) by title; labels beyond the names are shown as background."""

    image: np.ndarray
    labels: Mapping[str, np.ndarray]


def examples_figure(examples: Sequence[Example], names: Sequence[str]) -> Image.Image:
    """A row for each example: the image, then each of its label maps over the image.

    Args:
        examples: at least one, all with the same titles.
        names: of the labels, whose colors are those of `palette`.

    Returns:
        RGB, with the classes that occur in a legend below.
    """
    rows = [_row(example, len(names)) for example in examples]
    titles = ["image", *examples[0].labels]
    widths = [max(row[column].width for row in rows) for column in range(len(titles))]
    sheet = Image.new(
        "RGB", (sum(widths) + GAP * (len(widths) + 1), 2 * LETTERS + len(rows) * (HEIGHT + GAP) + GAP), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), lettering(LETTERS)
    left = GAP
    for column, title in enumerate(titles):
        draw.text((left, LETTERS), title, INK, font, anchor="lm")
        for number, row in enumerate(rows):
            sheet.paste(row[column], (left, 2 * LETTERS + number * (HEIGHT + GAP)))
        left += widths[column] + GAP
    return with_legend(sheet, _entries(examples, names))


def _row(example: Example, count: int) -> list[Image.Image]:
    image = Image.fromarray(example.image)
    image = image.resize((max(1, round(HEIGHT * image.width / image.height)), HEIGHT), Image.Resampling.BICUBIC)
    colors = palette(count)
    return [image, *(tinted(image, _known(map_, count, image.size), colors) for map_ in example.labels.values())]


def _known(labels: np.ndarray, count: int, size: tuple[int, int]) -> np.ndarray:
    return resize_labels(np.where((labels >= 0) & (labels < count), labels, 0), size)


def _entries(examples: Sequence[Example], names: Sequence[str]) -> list[LegendEntry]:
    seen = np.unique(np.concatenate([np.unique(map_) for example in examples for map_ in example.labels.values()]))
    known = [int(label) for label in seen if 0 <= label < len(names)][:LEGEND_CLASSES]
    colors = palette(len(names)).tolist()
    return [LegendEntry(tuple(colors[label]), names[label], "") for label in known]
