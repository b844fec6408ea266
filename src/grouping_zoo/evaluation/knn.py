"""Classification of images by the most similar training images.

Shape legend: N training images, M test images, D feature width, L classes, k neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from grouping_zoo.evaluation.metrics.classification import check_labels

SIMILARITIES_AT_ONCE = 2**26  # 256 MiB of float32


@torch.no_grad()
def nearest_by_cosine(bank: Tensor, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Find the rows of `bank` (N, D) that are most similar to each row of `queries` (M, D).

    Args:
        bank: (N, D), of any norm.
        queries: (M, D), of any norm.
        neighbours: how many; no more than N are given.

    Returns:
        cosines float32 and row numbers int64, each (M, min(neighbours, N)), the most similar first.
    """
    rows, columns = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1).T
    at_once = max(1, SIMILARITIES_AT_ONCE // len(bank))
    found = [(some @ columns).topk(min(neighbours, len(bank)), dim=1) for some in rows.split(at_once)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


@torch.no_grad()
def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Tensor:
    """Return the votes of the nearest training images by cosine, each with weight exp(cosine / temperature).

    Caron et al. (2021), Emerging Properties in Self-Supervised Vision Transformers, section 4.1; after Wu et al.
    (2018), Eq. 7.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64.
        test_features: (M, D).
        neighbours: how many vote; no more than there are training images.
        temperature: the smaller, the more the nearest ones count.
        num_classes: L; one more than the largest training label if omitted.

    Returns:
        (M, L) float32, each row divided by the weight of its nearest neighbour.

    Raises:
        ValueError: on empty or unfitting features and labels, or a setting out of its range.
    """
    check_features(train_features, test_features)
    check_labels("train_labels", train_labels, len(train_features), num_classes)
    if neighbours < 1 or temperature <= 0:
        raise ValueError(
            f"neighbours, temperature: expected at least 1 and more than 0, got {neighbours} and {temperature}"
        )
    classes = num_classes or int(train_labels.max()) + 1
    cosine, nearest = nearest_by_cosine(train_features, test_features, neighbours)  # (M, k) each
    # Less the largest: the same order of classes, and no overflow at a low temperature.
    weight = ((cosine - cosine[:, :1]) / temperature).exp()
    votes = weight.new_zeros(len(nearest), classes)
    votes.scatter_add_(1, train_labels.to(nearest.device)[nearest], weight)
    return votes


def check_features(train: Tensor, test: Tensor) -> None:
    """Check features of training and test images.

    Raises:
        ValueError: if they are not (N, D) and (M, D), or empty.
    """
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or not len(train) or not len(test):
        raise ValueError(
            f"features: expected (N, D) of training and (M, D) of test images, none of them empty, got "
            f"{tuple(train.shape)} and {tuple(test.shape)}"
        )
