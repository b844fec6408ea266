"""Semantic segmentation by retrieval: each segment takes the label of the training segments most similar to it.

CAST (2022), "Semantic segmentation: segment retrieval": the majority label of the 20 nearest training segments.
Sharma (2023), section 5.4.1, Eq. 50, 51: the mean of the nearest segments' soft labels.

Shape legend: B images, S segments, D feature width, L classes, (H, W) image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grouping_zoo.evaluation.knn import nearest_by_cosine


class Segments(NamedTuple):
    """`labels` (B, H, W) int64: the segment of each pixel, in [0, S); `features` (B, S, D) of the segments."""

    labels: Tensor
    features: Tensor


class SegmentRetrieval:
    """A classifier of segments by the labelled segments of training images.

    Args:
        num_classes: L.
        neighbours: how many training segments decide.
        soft: whether a training segment stands for its classes by their fraction of its pixels (Eq. 50), instead of for
            the one that most of its pixels have.
        max_per_class: keep only the first so many training segments of each class; the thesis keeps 1000.
        ignore_index: true label of pixels that do not count.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(
        self,
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
        self.num_classes = num_classes
        self.neighbours = neighbours
        self.soft = soft
        self.max_per_class = max_per_class
        self.ignore_index = ignore_index
        self._kept = torch.zeros(num_classes, dtype=torch.int64)
        self._features: list[Tensor] = []  # each (n, D)
        self._classes: list[Tensor] = []  # each (n, L), rows sum to 1

    def update(self, segments: Segments, truth: Tensor) -> None:
        """Keep the labelled segments of training images.

        Args:
            segments: of B images.
            truth: true labels (B, H, W).

        Raises:
            ValueError: if labels or shapes do not fit.
        """
        fractions = self.class_fractions(segments, truth)  # (B, S, L)
        wanted = fractions.sum(dim=2) > 0  # (B, S): has a labelled pixel
        some, features = fractions[wanted], segments.features.float().cpu()[wanted]
        majority = F.one_hot(some.argmax(dim=1), self.num_classes)  # (n, L)
        if self.max_per_class is not None:
            within = ((majority.cumsum(dim=0) + self._kept) * majority).sum(dim=1) <= self.max_per_class
            some, features, majority = some[within], features[within], majority[within]
            self._kept += majority.sum(dim=0)
        self._features.append(features)
        self._classes.append(some if self.soft else majority.float())

    def bank(self) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and classes (N, L) of the training segments.

        Raises:
            ValueError: if there are none.
        """
        if not sum(map(len, self._features)):
            raise ValueError("training set: expected at least one labelled segment, got none; is the split empty?")
        # Joined once, however often it is asked for.
        self._features, self._classes = [torch.cat(self._features)], [torch.cat(self._classes)]
        return self._features[0], self._classes[0]

    def class_fractions(self, segments: Segments, truth: Tensor) -> Tensor:
        """Return the fraction of each class among the labelled pixels of each segment.

        Args:
            segments: of B images.
            truth: true labels (B, H, W).

        Returns:
            (B, S, L) float32; rows sum to 1, or to 0 for a segment without labelled pixel.
        """
        labels, truth, num_segments = segments.labels.cpu(), truth.cpu().long(), segments.features.shape[1]
        if labels.shape != truth.shape:
            raise ValueError(
                f"segments: expected labels of the truth's shape {tuple(truth.shape)}, got {tuple(labels.shape)}"
            )
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

    def classify(self, segments: Segments, neighbours: int | None = None) -> Tensor:
        """Return the class of each pixel, (B, H, W) int64, by so many training segments in place of the usual number.

        Raises:
            ValueError: before any `update`.
        """
        features, classes = self.bank()
        queries = segments.features.to(features.device)
        _, nearest = nearest_by_cosine(features, queries.flatten(0, 1), neighbours or self.neighbours)  # (B * S, k)
        winner = classes[nearest].mean(dim=1).argmax(dim=1).view(queries.shape[:2])  # (B, S)
        labels = segments.labels.to(winner.device)
        return winner.gather(1, labels.flatten(1)).view(labels.shape)
