"""Figure-ground segmentation by attention: the tokens that the image's feature looks at most, against the objects.

Caron et al. (2021), Emerging Properties in Self-Supervised Vision Transformers, section 4.2.2; CAST, Table 3.

Shape legend: B images, A heads, N tokens, (H, W) image.
"""

from typing import ClassVar

import torch
from torch import Tensor

from grouping_zoo.evaluation.metrics.base import ImageMeanMetric, Quantity, Scores


def most_attended(attention: Tensor, mass: float = 0.6) -> Tensor:
    """Return the fewest tokens that together hold the given fraction of each row's attention.

    Args:
        attention: (..., N), not negative; it need not sum to 1.
        mass: fraction to keep.

    Returns:
        (..., N) bool; at least one token each.

    Raises:
        ValueError: if `mass` is not a fraction.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass: expected a fraction above 0, at most 1, got {mass}")
    sorted_, order = attention.double().sort(dim=-1, descending=True, stable=True)
    before = sorted_.cumsum(dim=-1) - sorted_
    # The margin of rounding: a token after which the fraction is just reached is the last one.
    kept = before < (mass - 1e-9) * sorted_.sum(dim=-1, keepdim=True)
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def jaccard(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of masks (..., H, W) bool in per cent, 100 if both are empty: (...)."""
    both = (prediction & truth).flatten(-2).sum(dim=-1).double()
    either = (prediction | truth).flatten(-2).sum(dim=-1).double()
    return 100 * torch.where(either > 0, both / either.clamp(min=1), 1.0)


def foreground_masks(attention: Tensor, token_map: Tensor, mass: float = 0.6) -> Tensor:
    """Return the pixels of the most attended tokens, of each head.

    Args:
        attention: (B, A, N) of the image's feature to the tokens.
        token_map: (B, H, W) int64: the token of each pixel, in [0, N).
        mass: see `most_attended`.

    Returns:
        (B, A, H, W) bool.
    """
    index = token_map.flatten(1)[:, None].expand(-1, attention.shape[1], -1)  # (B, A, H * W)
    return most_attended(attention, mass).gather(2, index).unflatten(2, tuple(token_map.shape[1:]))


class FigureGroundMetric(ImageMeanMetric):
    """Jaccard index of attention masks with the objects, of predictions (B, A, H, W) bool, in per cent.

    "jaccard" is that of each image's best head, which is the papers' number; "jaccard_one_head" of the head that is
    best over the set.

    Args:
        ignore_index: true label of pixels that do not count.
        background: true label of what is no object.
    """

    quantities: ClassVar = {
        "jaccard": Quantity("Jaccard, each image's best head"),
        "jaccard_one_head": Quantity("Jaccard, best head"),
    }
    requirement = "an object"

    def __init__(self, ignore_index: int | None = None, background: int | None = None) -> None:
        super().__init__(ignore_index)
        self.background = background

    def score(self, prediction: Tensor, truth: Tensor) -> Scores:
        """See `ImageMeanMetric`; nothing for an image without object."""
        if prediction.shape[1:] != truth.shape:
            raise ValueError(
                f"prediction: expected masks of the truth's shape {tuple(truth.shape)}, got "
                f"{tuple(prediction.shape[1:])}"
            )
        labels = [label for label in (self.ignore_index, self.background) if label is not None]
        counted = torch.ones_like(truth, dtype=torch.bool) if self.ignore_index is None else truth != self.ignore_index
        objects = ~torch.isin(truth, torch.tensor(labels, dtype=truth.dtype))
        if not objects.any():
            return {}
        heads = jaccard(prediction & counted, objects.expand_as(prediction))  # (A,)
        return {"jaccard": float(heads.max()), **{f"head/{n}": float(value) for n, value in enumerate(heads)}}

    def compute(self) -> dict[str, float]:
        """See `Metric`."""
        means = super().compute()
        best = means.pop("jaccard")
        return {"jaccard": best, "jaccard_one_head": max(means.values())}
