"""Panels on a sheet."""

import numpy as np
import pytest
from PIL import Image

from grouping_zoo.viz.contact_sheet import FIGURE_SIDE, GAP, Panel, contact_sheet


@pytest.mark.parametrize("photo_size", [(300, 200), (1, 1), (64, 64), (2000, 100), (3, 900), (100, 2000)])
@pytest.mark.parametrize("count", [1, 2, 6, 17])
def test_a_sheet_shows_every_panel_whole_and_stays_in_bounds(count: int, photo_size: tuple[int, int]) -> None:
    colors = [(200, 10 + 10 * number, 40) for number in range(count)]
    sizes = []

    def panel(number: int) -> Panel:
        def draw(size: tuple[int, int]) -> Image.Image:
            sizes.append(size)
            return Image.new("RGB", size, colors[number])

        return Panel(draw, f"{number} groups", "level")

    sheet = contact_sheet([panel(number) for number in range(count)], photo_size)
    pixels = np.asarray(sheet)
    assert len(set(sizes)) == 1
    counts = {color: count for count, color in sheet.getcolors(maxcolors=1000)}
    assert all(counts[color] == sizes[0][0] * sizes[0][1] for color in colors)
    assert max(sheet.size) <= FIGURE_SIDE
    assert (pixels[:, -GAP:] == 255).all(), "nothing runs over the edge"
    assert (pixels[-2:] == 255).all()
    assert (25, 25, 28) in counts, "there are words"


def test_a_sheet_is_about_as_wide_as_a_screen() -> None:
    panel = Panel(lambda size: Image.new("RGB", size), "group")
    for photo_size, low, high in (((300, 200), 1, 2.2), ((200, 200), 1, 2.2), ((200, 600), 0.8, 2.5)):
        for count in (3, 5, 6, 7, 17):
            sheet = contact_sheet([panel] * count, photo_size)
            assert low < sheet.width / sheet.height < high or count < 5, (photo_size, count)
