"""Label maps at other sizes. A size is (width, height), as of Pillow's images; a map is (height, width)."""

import numpy as np


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map with smoother outlines than the nearest neighbour gives.

    Every label's own map is interpolated bilinearly and the largest wins, of equal ones the lowest label. Only the
    labels of the four cells around a pixel can win there, so the cost does not grow with the number of labels.

    Args:
        labels: (h, w) integers.
        size: (width, height) of the result.

    Returns:
        (height, width), of the labels' dtype.
    """
    top, bottom, low = _neighbours(labels.shape[0], size[1])
    left, right, near = _neighbours(labels.shape[1], size[0])
    cells = [labels[rows[:, None], columns] for rows in (top, bottom) for columns in (left, right)]
    resized = cells[0]
    # The four cells of most pixels have one label.
    row, column = np.nonzero((cells[1] != resized) | (cells[2] != resized) | (cells[3] != resized))
    low, near = low[row], near[column]  # (M,) of the other pixels
    weights = [(1 - low) * (1 - near), (1 - low) * near, low * (1 - near), low * near]
    corners = [(cell[row, column], weight) for cell, weight in zip(cells, weights, strict=True)]
    chosen, best = corners[0][0].copy(), np.full(len(row), -1.0, dtype=np.float32)
    for candidate, _ in corners:
        total = sum((weight * (label == candidate) for label, weight in corners), np.zeros_like(best))
        better = (total > best) | ((total == best) & (candidate < chosen))
        chosen[better] = candidate[better]
        best[better] = total[better]
    resized[row, column] = chosen
    return resized


def resize_labels_nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map (h, w) to (height, width) by the nearest neighbour."""
    rows = np.arange(size[1]) * labels.shape[0] // size[1]
    columns = np.arange(size[0]) * labels.shape[1] // size[0]
    return labels[rows[:, None], columns]


def _neighbours(cells: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `out` pixels along a side the two cells around its centre, and the second one's weight."""
    centres = np.clip((np.arange(out) + 0.5) * cells / out - 0.5, 0, cells - 1)
    first = np.floor(centres).astype(np.int64)
    return first, np.minimum(first + 1, cells - 1), (centres - first).astype(np.float32)
