"""Agreement of segments with true regions, as pure functions of two label maps of one image.

Labels are names only: any integers, in any order, with gaps. Pixels of the true label `ignore_index` are left out, as
if the image did not have them. Scores are in per cent, entropies in bits or nats as said.

Shape legend: (H, W) image, P predicted segments, R true regions, V levels, B batch, A heads, N tokens, M groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

LabelMap = np.ndarray | Tensor


class Contingency(NamedTuple):
    """`counts` (P, R) int64: pixels in each segment and region; `regions` (R,): the true labels, ascending."""

    counts: np.ndarray
    regions: np.ndarray


class Covering(NamedTuple):
    """Segmentation covering in both directions, in per cent."""

    of_truth: float
    of_prediction: float


class VariationOfInformation(NamedTuple):
    """Conditional entropies in bits: `split` is H(prediction | truth), `merged` is H(truth | prediction)."""

    split: float
    merged: float


class Overlaps(NamedTuple):
    """`iou` (V, R): the best one of each true region with any segment of a level; `area` (R,): pixels."""

    iou: np.ndarray
    area: np.ndarray


def label_array(name: str, labels: LabelMap) -> np.ndarray:
    """Return an integer label map (H, W) in numpy.

    Raises:
        ValueError: on another shape or kind of number.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "iub" or not array.size:
        raise ValueError(f"{name}: expected integer labels (H, W), got {array.dtype} of shape {array.shape}")
    return array


def contingency(prediction: LabelMap, truth: LabelMap, ignore_index: int | None = None) -> Contingency:
    """Count the pixels that each segment shares with each true region.

    Raises:
        ValueError: if shapes differ, or no pixel has a true label.
    """
    predicted, true = label_array("prediction", prediction), label_array("truth", truth)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction: expected labels of the truth's shape {true.shape}, got {predicted.shape}")
    labelled = np.ones_like(true, dtype=bool) if ignore_index is None else true != ignore_index
    if not labelled.any():
        raise ValueError(f"truth: expected at least one labelled pixel, got only {ignore_index}; skip such an image")
    segments, segment = np.unique(predicted[labelled], return_inverse=True)
    regions, region = np.unique(true[labelled], return_inverse=True)
    counts = np.bincount(segment * len(regions) + region, minlength=len(segments) * len(regions))
    return Contingency(counts.reshape(len(segments), len(regions)), regions)


def segmentation_covering(prediction: LabelMap, truth: LabelMap, ignore_index: int | None = None) -> Covering:
    """Return the mean over one map's pixels of their region's best intersection over union with one of the other map.

    Arbelaez et al. (2011), Contour Detection and Hierarchical Image Segmentation, Eq. 8.
    """
    counts = contingency(prediction, truth, ignore_index).counts
    iou = _iou(counts)  # (P, R)
    of_truth = (counts.sum(axis=0) * iou.max(axis=0)).sum() / counts.sum()
    of_prediction = (counts.sum(axis=1) * iou.max(axis=1)).sum() / counts.sum()
    return Covering(100 * float(of_truth), 100 * float(of_prediction))


def adjusted_rand_index(prediction: LabelMap, truth: LabelMap, ignore_index: int | None = None) -> float:
    """Return the agreement about which pairs of pixels belong together, in per cent: 100 the same partition, 0 chance.

    Hubert and Arabie (1985), Comparing Partitions.
    """
    contingency(prediction, truth, ignore_index)  # checks both maps
    predicted, true = label_array("prediction", prediction), label_array("truth", truth)
    labelled = np.ones_like(true, dtype=bool) if ignore_index is None else true != ignore_index
    return 100 * float(adjusted_rand_score(true[labelled], predicted[labelled]))


def variation_of_information(
    prediction: LabelMap, truth: LabelMap, ignore_index: int | None = None
) -> VariationOfInformation:
    """Return how much one map leaves open about the other; 0 for the same map.

    Meila (2005), Comparing Clusterings: An Axiomatic View.
    """
    counts = contingency(prediction, truth, ignore_index).counts
    shared = counts > 0
    fraction = counts[shared] / counts.sum()
    # Ratios of counts, not differences of entropies: the same map gives exactly 0.
    split = (fraction * np.log2((counts.sum(axis=0, keepdims=True) / np.maximum(counts, 1))[shared])).sum()
    merged = (fraction * np.log2((counts.sum(axis=1, keepdims=True) / np.maximum(counts, 1))[shared])).sum()
    return VariationOfInformation(float(split), float(merged))


def best_overlaps(
    levels: Sequence[LabelMap], truth: LabelMap, *, ignore_index: int | None = None, background: int | None = None
) -> Overlaps:
    """Find the best segment of each level for each true region.

    Args:
        levels: label maps (H, W) of a hierarchy, in any order.
        truth: label map (H, W); all pixels of a label are one region.
        ignore_index: true label of pixels that are left out.
        background: true label that is no region to find, though segments that spill into it lose by it.

    Raises:
        ValueError: without a level, if shapes differ, or no region remains.
    """
    if not levels:
        raise ValueError("levels: expected at least one label map, got none")
    found = [contingency(level, truth, ignore_index) for level in levels]
    wanted = np.ones(len(found[0].regions), dtype=bool) if background is None else found[0].regions != background
    if not wanted.any():
        raise ValueError(f"truth: expected at least one region beside the background {background}; skip such an image")
    iou = np.stack([_iou(level.counts).max(axis=0) for level in found])  # (V, R)
    return Overlaps(iou[:, wanted], found[0].counts.sum(axis=0)[wanted])


def region_scores(iou: np.ndarray, area: np.ndarray) -> dict[str, float]:
    """Return scores of the overlaps (R,) of an image's true regions with what was found for each.

    Returns:
        in per cent: "covering", the mean of the intersection over union, and "covering_f1", that of the F1-score, both
        weighted by area; "region_f1", the F1-score's mean over regions, in which small parts count like large ones.
    """
    f1 = 2 * iou / (1 + iou)  # of the same two sets
    weighted = {"covering": iou, "covering_f1": f1}
    scores = {name: 100 * float((area * score).sum() / area.sum()) for name, score in weighted.items()}
    return {**scores, "region_f1": 100 * float(f1.mean())}


def assignment_entropies(assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Return how evenly the groups of an image are used, and how undecided its tokens are.

    PGT (2023), section 4.2 and A.2.1: a collapsed grouping has a marginal entropy of 0, a decided one a conditional
    entropy of 0; neither exceeds log M, and the conditional one never the marginal one.

    Args:
        assignment: (B, A, N, M), rows sum to 1.

    Returns:
        the entropies of p(c) and of p(c | x), in nats, each (B, A); p(c) is the mean of p(c | x) over an image's
        tokens, because groups of different images need have nothing in common.
    """
    probability = assignment.float()
    marginal = torch.special.entr(probability.mean(dim=2)).sum(dim=-1)
    conditional = torch.special.entr(probability).sum(dim=-1).mean(dim=-1)
    return marginal, conditional


def _iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of every segment with every region: (P, R) -> (P, R)."""
    return counts / (counts.sum(axis=0, keepdims=True) + counts.sum(axis=1, keepdims=True) - counts)
