"""The legend below a figure."""

import numpy as np

from grouping_zoo.viz.legend import LegendEntry, with_legend
from plain_images import colors_in, grey_image


def test_legend_takes_as_many_rows_as_its_words_need() -> None:
    figure = grey_image(500, 100)
    entries = [LegendEntry((index, 99, 77), f"class number {index} " + "x" * 30, "1 %") for index in range(30)]
    sheet = with_legend(figure, entries)
    swatches = {entry.color for entry in entries}
    assert swatches <= colors_in(sheet)
    right_margin = np.asarray(sheet)[100:, -8:]
    assert (right_margin == 255).all(), "nothing runs over the edge"
