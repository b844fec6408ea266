"""Plots of metrics: confusion of classes, bars of each class, curves."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

DOTS_PER_INCH = 120
MAX_WRITTEN = 20  # classes of a confusion matrix whose numbers can still be read
MOST_TICKS = 12  # up to so many places of points are each named
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito's


def confusion_plot(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Confusion matrix: in each row, percentages of a true class' images by the class that was found.

    Args:
        counts: (L, L), rows are true classes, columns what was found.
        names: of the L classes.
    """
    totals = counts.sum(axis=1, keepdims=True)
    percentages = 100 * counts / np.maximum(totals, 1)
    side = min(max(4.0, 1.5 + 0.45 * len(names)), 14.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(percentages, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= MAX_WRITTEN:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if percentages[row, column] > 55 else "black"
            axes.text(column, row, f"{percentages[row, column]:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlabel("found")
    axes.set_ylabel("true, % of its images")
    return _drawn(figure)


def bar_plot(columns: Mapping[str, Mapping[str, float]], label: str) -> Image.Image:
    """Bar plot with a bar for each class and column, the classes in the order of the first column's values.

    Args:
        columns: what is compared -> class -> value; a class that is missing in a column has no bar there.
        label: of the values.
    """
    first = next(iter(columns.values()))
    names = sorted({name: None for values in columns.values() for name in values}, key=lambda n: -first.get(n, -np.inf))
    thickness = 0.8 / len(columns)
    figure = Figure(figsize=(7, max(2.5, 1 + len(names) * (0.14 + 0.12 * len(columns)))), layout="constrained")
    axes = figure.add_subplot()
    for number, (column, values) in enumerate(columns.items()):
        places = np.arange(len(names)) + (number + 0.5) * thickness - 0.4
        lengths = [values.get(name, np.nan) for name in names]
        axes.barh(places, lengths, thickness, label=column, color=COLORS[number % len(COLORS)])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _drawn(figure)


def curve_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, *, logarithmic: bool = False
) -> Image.Image:
    """Line plot of several curves.

    Args:
        curves: name -> points (x, y).
        x_label: what x is.
        y_label: what y is.
        logarithmic: scale of x.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, "o-", label=name, color=COLORS[number % len(COLORS)])
    if logarithmic:
        axes.set_xscale("log")
    places = sorted({x for points in curves.values() for x, _ in points})
    if len(places) <= MOST_TICKS:  # layers, group counts: nothing lies between them
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()
    elif logarithmic:
        axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _drawn(figure)


def _drawn(figure: Figure) -> Image.Image:
    # Not by pyplot, which keeps every figure and would need a display's settings.
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS_PER_INCH, format="png", bbox_inches="tight")
    return Image.open(buffer).convert("RGB")
