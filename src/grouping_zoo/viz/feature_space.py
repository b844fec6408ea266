"""Plot of features on a plane by t-SNE."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from sklearn.manifold import TSNE

from grouping_zoo.viz.examples import LEGEND_CLASSES
from grouping_zoo.viz.legend import PAPER, LegendEntry, with_legend
from grouping_zoo.viz.palette import palette

PERPLEXITY = 30.0  # the usual one
MIN_POINTS = 4  # fewer have no neighbourhoods to keep
SIDE, MARGIN, RADIUS = 720, 24, 5
FINENESS = 3  # drawn so many times as large, for smooth edges


def neighbour_map(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places on a plane by t-SNE: what points the same way lies together.

    van der Maaten and Hinton (2008), Visualizing Data using t-SNE; used by Sharma (2023), section 5.12.2.

    Args:
        features: (N, D) float, of any norm.
        seed: of the places at the start, where it is needed.

    Returns:
        (N, 2) float32.

    Raises:
        ValueError: for less than `MIN_POINTS` features.
    """
    if len(features) < MIN_POINTS:
        raise ValueError(f"features: expected at least {MIN_POINTS} to place, got {len(features)}")
    # Distances of unit vectors are those of their cosines.
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    varied = min(units.shape) > 1 and units.std(axis=0).max() > 1e-6  # else there are no principal components
    method = TSNE(
        perplexity=min(PERPLEXITY, (len(units) - 1) / 3), init="pca" if varied else "random", random_state=seed
    )
    return method.fit_transform(units.astype(np.float32))


def feature_space_plot(features: np.ndarray, classes: np.ndarray, names: Sequence[str], seed: int = 0) -> Image.Image:
    """A dot for each feature, in the color of its class.

    Args:
        features: (N, D) float, see `neighbour_map`.
        classes: (N,) int64 in [0, number of names).
        names: of the classes, whose colors are those of `palette`.
        seed: see `neighbour_map`.

    Returns:
        RGB, with the classes that occur and their numbers of dots in a legend below.
    """
    places = neighbour_map(features, seed)
    low, high = places.min(axis=0), places.max(axis=0)
    room = SIDE - 2 * MARGIN
    centres = FINENESS * (MARGIN + room * (0.5 + (places - (low + high) / 2) / max(float((high - low).max()), 1e-12)))
    colors, counts = palette(len(names)).tolist(), np.bincount(classes, minlength=len(names))
    sheet = Image.new("RGB", (FINENESS * SIDE, FINENESS * SIDE), PAPER)
    draw, reach = ImageDraw.Draw(sheet), FINENESS * RADIUS
    for dot in np.argsort(-counts[classes], kind="stable"):  # rare classes on top
        x, y = centres[dot].tolist()
        box = (x - reach, y - reach, x + reach, y + reach)
        draw.ellipse(box, tuple(colors[classes[dot]]), PAPER, FINENESS)
    entries = [
        LegendEntry(tuple(colors[label]), names[label], str(counts[label]))
        for label in np.flatnonzero(counts)[:LEGEND_CLASSES]
    ]
    return with_legend(sheet.resize((SIDE, SIDE), Image.Resampling.BOX), entries)
