"""How well the segments of a hierarchy cover the true regions of a set of images."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor
from tqdm import tqdm

from grouping_zoo.evaluation.grouping_metrics import LabelMap, best_overlaps, region_figures
from grouping_zoo.grouping import Grouping


def hierarchy_labels(grouping: Grouping, size: tuple[int, int]) -> list[Tensor]:
    """Label maps (B, H, W) of all levels, fine to coarse, the tokens on the image first."""
    return [grouping.labels(level, size) for level in range(grouping.num_levels)]


def evaluate_hierarchy(
    predict_levels: Callable[[Tensor], Sequence[LabelMap]],
    images_and_masks: Iterable[tuple[Tensor, LabelMap]],
    *,
    ignore_index: int | None = None,
    background: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Region covering of each level of a hierarchy and of all together; see `grouping_metrics.region_covering`.

    Args:
        predict_levels: images (B, C, H, W) -> label maps (B, H, W), fine to coarse; see `hierarchy_labels`.
        images_and_masks: batches of images and the true regions' label maps (B, H, W). Only one batch is held at a
            time; images of different sizes come in batches of one.
        ignore_index: true label of pixels that do not count.
        background: true label that is no region to find, though segments that spill into it lose by it.
        progress: show a progress bar.

    Returns:
        means over images: "covering", "covering_f1", "region_f1" over the hierarchy (the best segment of any level),
        the same of each level as "covering/LEVEL" with 0 for the finest, all in per cent; "segments/LEVEL", how many
        there are; "images", how many counted, which are those that have a region.

    Raises:
        ValueError: if no image has a region, or shapes or numbers of levels differ.
    """
    totals: dict[str, float] = defaultdict(float)
    counted, depth = 0, None
    for images, masks in tqdm(images_and_masks, desc="hierarchy", unit="batch", disable=not progress, leave=False):
        levels = [_array(level) for level in predict_levels(images)]
        truths = _array(masks)
        if any(level.shape != truths.shape for level in levels):
            raise ValueError(
                f"predict_levels: expected label maps of the masks' shape {truths.shape}, got "
                f"{[level.shape for level in levels]}"
            )
        if depth not in (None, len(levels)):
            raise ValueError(f"predict_levels: expected {depth} levels as for the images before, got {len(levels)}")
        depth = len(levels)
        for row, truth in enumerate(truths):
            if np.isin(truth, [label for label in (ignore_index, background) if label is not None]).all():
                continue
            figures = _image_figures([level[row] for level in levels], truth, ignore_index, background)
            counted += 1
            for name, value in figures.items():
                totals[name] += value
    if not counted:
        raise ValueError("images_and_masks: expected at least one image with a true region; is the split empty?")
    return {**{name: total / counted for name, total in totals.items()}, "images": float(counted)}


def _image_figures(
    levels: list[np.ndarray], truth: np.ndarray, ignore_index: int | None, background: int | None
) -> dict[str, float]:
    overlaps = best_overlaps(levels, truth, ignore_index=ignore_index, background=background)
    figures = region_figures(overlaps.iou.max(axis=0), overlaps.area)
    for number, level in enumerate(levels):
        of_level = region_figures(overlaps.iou[number], overlaps.area)
        figures.update({f"{name}/{number}": value for name, value in of_level.items()})
        figures[f"segments/{number}"] = float(len(np.unique(level)))
    return figures


def _array(labels: LabelMap) -> np.ndarray:
    return labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
