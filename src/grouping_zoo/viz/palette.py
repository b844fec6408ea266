"""Distinct colors for groups and classes, always the same ones."""

from functools import lru_cache

import numpy as np
from skimage.color import rgb2lab

BACKGROUND_COLOR = (38, 38, 42)
# Okabe and Ito's colors, which color-blind people tell apart too; black is left to the background.
FIRST_COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
DISTINCT_COLORS = 256  # further ones could not be told apart: the colors start again after the background
STEPS = np.linspace(0, 255, 12).round()
LIGHTNESS = (45, 92)  # neither lost against dark parts of a photo nor like paper
MIN_CHROMA = 25  # greys are for the background


def palette(count: int) -> np.ndarray:
    """Colors of `count` labels; more labels never change the colors of the first.

    Returns:
        (count, 3) uint8 RGB; the first is a dark grey, for the background.
    """
    distinct = _distinct_colors()
    index = np.arange(count)
    return distinct[np.where(index < len(distinct), index, 1 + (index - 1) % (len(distinct) - 1))]


@lru_cache(maxsize=1)
def _distinct_colors() -> np.ndarray:
    """The first colors, then always the one that is farthest, in CIELAB, from all before it."""
    chosen = [BACKGROUND_COLOR, *FIRST_COLORS]
    candidates = np.stack(np.meshgrid(STEPS, STEPS, STEPS, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(candidates / 255)
    vivid = (lab[:, 0] > LIGHTNESS[0]) & (lab[:, 0] < LIGHTNESS[1]) & (np.hypot(lab[:, 1], lab[:, 2]) > MIN_CHROMA)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen_lab = rgb2lab(np.array(chosen)[None] / 255)[0]
    distance = np.linalg.norm(lab[:, None] - chosen_lab[None], axis=-1).min(axis=1)
    colors = [np.array(color, dtype=np.float64) for color in chosen]
    while len(colors) < DISTINCT_COLORS:
        farthest = int(distance.argmax())
        colors.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=-1))
    return np.stack(colors).astype(np.uint8)
