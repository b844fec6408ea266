"""Colors of a hierarchy: a group's color is a shade of its parent's."""

from collections.abc import Sequence

import numpy as np
from skimage.color import lab2rgb, rgb2lab

from grouping_zoo.viz.palette import palette

FIRST_HUE, HUE_STEP = 70, 137.508  # degrees; the golden angle keeps any number of hues apart
CHROMA = 58
MIDDLE_LIGHTNESS, YELLOW_LIFT = 62, 11  # yellow is lighter than the middle, blue darker, or they would look dirty
FIRST_SPREAD, SPREAD_KEPT = 22, 0.72  # lightness by which children differ from their parent, and less each level down
TWIST = 0.35  # degrees of hue that a step of lightness brings along
LIGHTNESS = (22, 95)


def nested_colors(parents: Sequence[np.ndarray], areas: np.ndarray) -> list[np.ndarray]:
    """Colors of every level's groups.

    The coarsest groups have a hue each, and their descendants shades of it: a group that is its parent's only child on
    the image has the parent's color, several children are darker and lighter than it. Of a single assignment there is
    no hierarchy to tell, and its groups have the colors of `palette`. The largest group has the first color.

    Args:
        parents: for each level but the coarsest, the group of the next level that each group belongs to.
        areas: (N_0,) pixels of each group of the finest level. Groups without pixels take no part.

    Returns:
        for each level, the coarsest included, (N_l, 3) uint8.
    """
    sizes = [np.asarray(areas)]
    for level, parent in enumerate(parents):
        coarser = parents[level + 1].size if level + 1 < len(parents) else int(parent.max()) + 1
        sizes.append(np.bincount(parent, weights=sizes[-1], minlength=coarser))
    order = np.argsort(-sizes[-1], kind="stable")
    colors = [np.empty((len(order), 3))]  # CIELAB
    colors[0][order] = _hues(len(order)) if len(parents) > 1 else rgb2lab(palette(len(order) + 1)[None, 1:] / 255)[0]
    spread = float(FIRST_SPREAD)
    for parent, size in zip(reversed(parents), reversed(sizes[:-1]), strict=True):
        colors.append(_shades(colors[-1], parent, size > 0, spread))
        spread *= SPREAD_KEPT
    return [np.round(255 * lab2rgb(lab[None])[0].clip(0, 1)).astype(np.uint8) for lab in reversed(colors)]


def _hues(count: int) -> np.ndarray:
    """(N, 3) CIELAB: colors of different hue and much the same lightness, which is left to the shades."""
    angle = np.deg2rad(FIRST_HUE + HUE_STEP * np.arange(count))
    yellowness = np.cos(angle - np.deg2rad(100))
    return np.stack(
        [MIDDLE_LIGHTNESS + YELLOW_LIFT * yellowness, CHROMA * np.cos(angle), CHROMA * np.sin(angle)], axis=1
    )


def _shades(parent_colors: np.ndarray, parent: np.ndarray, seen: np.ndarray, spread: float) -> np.ndarray:
    """(N, 3) CIELAB: children spread evenly over the lightness around their parent's, with a little of the hue."""
    steps = np.zeros(len(parent))
    for group in np.unique(parent[seen]):
        children = np.flatnonzero((parent == group) & seen)
        steps[children] = spread * (2 * (np.arange(len(children)) + 0.5) / len(children) - 1)
    lab = parent_colors[parent].copy()
    angle = np.deg2rad(TWIST * steps)
    a, b = lab[:, 1].copy(), lab[:, 2].copy()
    lab[:, 0] = (lab[:, 0] + steps).clip(*LIGHTNESS)
    lab[:, 1], lab[:, 2] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return lab
