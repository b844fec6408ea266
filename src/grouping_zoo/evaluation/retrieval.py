"""Semantic segmentation by retrieval: each segment takes the label of the training segments most similar to it.

CAST (2022), "Semantic segmentation: segment retrieval": the majority label of the 20 nearest training segments.
Sharma (2023), section 5.4.1, Eq. 50, 51: the mean of the nearest segments' soft labels.

Shape legend: B images, S segments, D feature width, L classes, (H, W) image.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from grouping_zoo.evaluation.recognition import nearest_by_cosine


class Segments(NamedTuple):
    """`labels` (B, H, W) int64: the segment of each pixel, in [0, S); `features` (B, S, D) of the segments."""

    labels: Tensor
    features: Tensor


class SegmentRetrieval:
    """A segmentation to be fitted to labelled images: give it to `evaluate_segmentation` or `evaluate_boundaries`.

    Args:
        find_segments: images (B, C, H, W) -> their segments.
        num_classes: L.
        neighbours: how many training segments decide.
        soft: whether a training segment stands for its classes by their share of its pixels (Eq. 50), instead of for
            the one that most of its pixels have.
        max_per_class: keep only the first so many training segments of each class; the thesis keeps 1000.
        ignore_index: true label of pixels that do not count.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(
        self,
        find_segments: Callable[[Tensor], Segments],
        num_classes: int,
        *,
        neighbours: int = 20,
        soft: bool = False,
        max_per_class: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        if neighbours < 1 or num_classes < 1:
            raise ValueError(f"neighbours, num_classes: expected at least 1, got {neighbours} and {num_classes}")
        if max_per_class is not None and max_per_class < 1:
            raise ValueError(f"max_per_class: expected at least 1, or None for all, got {max_per_class}")
        self.find_segments = find_segments
        self.num_classes = num_classes
        self.neighbours = neighbours
        self.soft = soft
        self.max_per_class = max_per_class
        self.ignore_index = ignore_index
        self.features = torch.empty(0, 0)  # (N, D)
        self.classes = torch.empty(0, num_classes)  # (N, L), rows sum to 1

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], progress: bool = False) -> "SegmentRetrieval":
        """Collects the labelled segments of the training images, in place of those collected before.

        Args:
            batches: pairs of images and true labels (B, H, W).
            progress: show a progress bar.

        Raises:
            ValueError: if there is no labelled segment, or labels or shapes do not fit.
        """
        features, classes = [], []
        kept = torch.zeros(self.num_classes, dtype=torch.int64)
        for images, truth in tqdm(batches, desc="segments", unit="batch", disable=not progress, leave=False):
            segments = self.find_segments(images)
            shares = self.class_shares(segments.labels.cpu(), truth.cpu(), segments.features.shape[1])  # (B, S, L)
            wanted = shares.sum(dim=2) > 0  # (B, S): has a labelled pixel
            some, some_features = shares[wanted], segments.features.float().cpu()[wanted]
            majority = F.one_hot(some.argmax(dim=1), self.num_classes)  # (n, L)
            if self.max_per_class is not None:
                within = ((majority.cumsum(dim=0) + kept) * majority).sum(dim=1) <= self.max_per_class
                some, some_features, majority = some[within], some_features[within], majority[within]
                kept += majority.sum(dim=0)
            features.append(some_features)
            classes.append(some if self.soft else majority.float())
        if not sum(map(len, features)):
            raise ValueError("training set: expected at least one labelled segment, got none; is the split empty?")
        self.features, self.classes = torch.cat(features), torch.cat(classes)
        return self

    def class_shares(self, labels: Tensor, truth: Tensor, num_segments: int) -> Tensor:
        """Share of each class among the labelled pixels of each segment.

        Args:
            labels: (B, H, W) int64.
            truth: (B, H, W).
            num_segments: S.

        Returns:
            (B, S, L) float32; rows sum to 1, or to 0 for a segment without labelled pixel.
        """
        if labels.shape != truth.shape:
            raise ValueError(
                f"find_segments: expected labels of the truth's shape {tuple(truth.shape)}, got {tuple(labels.shape)}"
            )
        truth = truth.long()
        valid = torch.ones_like(truth, dtype=torch.bool) if self.ignore_index is None else truth != self.ignore_index
        known = truth[valid]
        if len(known) and (int(known.min()) < 0 or int(known.max()) >= self.num_classes):
            raise ValueError(
                f"truth: expected labels 0 to {self.num_classes - 1}, got {int(known.min())} to {int(known.max())}; "
                f"does the number of classes fit, and is ignore_index set?"
            )
        image = torch.arange(len(labels))[:, None, None].expand_as(labels)
        cells = (image * num_segments + labels)[valid] * self.num_classes + known
        counts = torch.bincount(cells, minlength=len(labels) * num_segments * self.num_classes).float()
        counts = counts.view(len(labels), num_segments, self.num_classes)
        return counts / counts.sum(dim=2, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H, W) int64 class of each pixel.

        Raises:
            ValueError: before `fit`.
        """
        segments = self.find_segments(images)
        winner = self.segment_classes(segments.features, self.neighbours)
        labels = segments.labels.to(winner.device)
        return winner.gather(1, labels.flatten(1)).view(labels.shape)

    @torch.no_grad()
    def segment_classes(self, features: Tensor, neighbours: int) -> Tensor:
        """The class of each segment by so many training segments: (B, S, D) -> (B, S) int64.

        Raises:
            ValueError: before `fit`.
        """
        if not len(self.features):
            raise ValueError("SegmentRetrieval: expected training segments, got none; call `fit` first")
        queries = features.to(self.features.device)
        _, nearest = nearest_by_cosine(self.features, queries.flatten(0, 1), neighbours)  # (B * S, k)
        return self.classes[nearest].mean(dim=1).argmax(dim=1).view(queries.shape[:2])
