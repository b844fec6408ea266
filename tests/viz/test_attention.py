"""Attention maps over a photo."""

import numpy as np
from PIL import Image

from grouping_zoo.viz.attention import attention_figure
from grouping_zoo.viz.contact_sheet import GAP


def test_attention_figure_is_brightest_where_a_token_looks() -> None:
    maps = np.zeros((2, 8, 8))
    maps[0, 1, 6] = 0.3
    maps[1] = 0.1  # looks everywhere alike
    figure = np.asarray(attention_figure(Image.new("RGB", (320, 320)), maps)).astype(int).sum(axis=-1)
    panels = figure[GAP : GAP + 400]
    width = (figure.shape[1] - GAP) // 3
    first = panels[:, GAP + width : 2 * width]
    row, column = np.unravel_index(first.argmax(), first.shape)
    assert row / first.shape[0] < 0.4
    assert column / first.shape[1] > 0.6
    assert panels[:, GAP + 2 * width : 3 * width].max() < first.max() / 2
