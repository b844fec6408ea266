"""Figure-ground segmentation by attention: the tokens that the image's feature looks at most, against the objects.

Caron et al. (2021), Emerging Properties in Self-Supervised Vision Transformers, section 4.2.2; CAST, Table 3.

Shape legend: B images, A heads, N tokens, (H, W) image.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm


def most_attended(attention: Tensor, mass: float = 0.6) -> Tensor:
    """The fewest tokens that together hold the given share of each row's attention.

    Args:
        attention: (..., N), not negative; it need not sum to 1.
        mass: share to keep.

    Returns:
        (..., N) bool; at least one token each.

    Raises:
        ValueError: if `mass` is not a share.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass: expected a share above 0, at most 1, got {mass}")
    sorted_, order = attention.double().sort(dim=-1, descending=True, stable=True)
    before = sorted_.cumsum(dim=-1) - sorted_
    # The margin of rounding: a token after which the share is just reached is the last one.
    kept = before < (mass - 1e-9) * sorted_.sum(dim=-1, keepdim=True)
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def jaccard(prediction: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks (..., H, W) bool in per cent, 100 where both are empty: float64 (...)."""
    both = (prediction & truth).flatten(-2).sum(dim=-1).double()
    either = (prediction | truth).flatten(-2).sum(dim=-1).double()
    return 100 * torch.where(either > 0, both / either.clamp(min=1), 1.0)


def foreground_masks(attention: Tensor, token_map: Tensor, mass: float = 0.6) -> Tensor:
    """Pixels of the most attended tokens, of each head.

    Args:
        attention: (B, A, N) of the image's feature to the tokens.
        token_map: (B, H, W) int64: the token of each pixel, in [0, N).
        mass: see `most_attended`.

    Returns:
        (B, A, H, W) bool.
    """
    index = token_map.flatten(1)[:, None].expand(-1, attention.shape[1], -1)  # (B, A, H * W)
    return most_attended(attention, mass).gather(2, index).unflatten(2, tuple(token_map.shape[1:]))


def evaluate_figure_ground(
    attend: Callable[[Tensor], tuple[Tensor, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    mass: float = 0.6,
    background: int = 0,
    ignore_index: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Jaccard index of attention masks with the objects.

    Args:
        attend: images (B, C, H, W) -> attention (B, A, N) and token map (B, H, W), see `foreground_masks`.
        batches: pairs of images and true labels (B, H, W); every label but the background's is an object.
        mass: share of the attention to keep.
        background: its true label.
        ignore_index: true label of pixels that do not count.
        progress: show a progress bar.

    Returns:
        means over the images that have an object, in per cent: "jaccard" of each image's best head, which is the
        papers' figure; "jaccard_one_head" of the head that is best over the set; "images", how many counted.

    Raises:
        ValueError: if no image has an object, or shapes differ.
    """
    heads: list[Tensor] = []
    for images, masks in tqdm(batches, desc="figure-ground", unit="batch", disable=not progress, leave=False):
        attention, token_map = attend(images)
        if token_map.shape != masks.shape:
            raise ValueError(
                f"attend: expected a token map of the truth's shape {tuple(masks.shape)}, got {tuple(token_map.shape)}"
            )
        predicted = foreground_masks(attention, token_map, mass).cpu()  # (B, A, H, W)
        truth = masks.cpu()[:, None]
        counts = torch.ones_like(truth, dtype=torch.bool) if ignore_index is None else truth != ignore_index
        objects = (truth != background) & counts
        scores = jaccard(predicted & counts, objects)  # (B, A)
        heads.extend(scores[objects.flatten(1).any(dim=1)])
    if not heads:
        raise ValueError("evaluation set: expected at least one image with an object, got none; is the split empty?")
    table = torch.stack(heads).numpy()  # (images, A)
    return {
        "jaccard": float(np.mean(table.max(axis=1))),
        "jaccard_one_head": float(table.mean(axis=0).max()),
        "images": float(len(table)),
    }
