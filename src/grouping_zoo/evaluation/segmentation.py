"""Mean IoU and classification figures of a predict function over labelled images."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.clustering import AdjustedRandScore
from tqdm import tqdm


def evaluate_segmentation(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    class_names: Sequence[str],
    *,
    ignore_index: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Intersection over union of predicted and true labels, over all pixels of the set.

    Args:
        predict: images (B, C, H, W) -> labels (B, H, W) int64 in [0, number of classes).
        batches: pairs of images and true labels (B, H, W).
        class_names: of every label, background included.
        ignore_index: true label that does not count.
        progress: show a progress bar.

    Returns:
        "miou" over the classes that occur in truth or prediction, "pixel_accuracy", and "iou/NAME" of each class, in
        per cent.

    Raises:
        ValueError: if there is no image, or shapes differ.
    """
    per_class = MulticlassJaccardIndex(
        len(class_names), average="none", ignore_index=ignore_index, validate_args=False, zero_division=float("nan")
    )
    correct = counted = 0
    for images, truth in tqdm(batches, desc="segmentation", disable=not progress, leave=False):
        prediction = predict(images).cpu()
        truth = truth.cpu().to(torch.int64)
        if prediction.shape != truth.shape:
            raise ValueError(
                f"predict: expected labels of the truth's shape {tuple(truth.shape)}, got {tuple(prediction.shape)}"
            )
        per_class.update(prediction, truth)
        valid = truth != ignore_index if ignore_index is not None else torch.ones_like(truth, dtype=torch.bool)
        correct += int((prediction == truth)[valid].sum())
        counted += int(valid.sum())
    if not counted:
        raise ValueError("evaluation set: expected at least one labelled pixel, got none; is the split empty?")
    iou = 100 * per_class.compute()
    named = {f"iou/{name}": float(value) for name, value in zip(class_names, iou, strict=True)}
    return {"miou": float(iou.nanmean()), "pixel_accuracy": 100 * correct / counted, **named}


def mean_adjusted_rand_index(groups: Tensor, truth: Tensor) -> float:
    """Mean adjusted Rand index of label maps (B, H, W) against true regions; 1 is the same partition, 0 is chance."""
    metric = AdjustedRandScore()
    scores = [float(metric(g.flatten(), t.flatten())) for g, t in zip(groups.cpu(), truth.cpu(), strict=True)]
    return sum(scores) / len(scores)


def present_class_accuracy(probabilities: Tensor, present: Tensor) -> float:
    """Share of images whose most probable class is one of those present, in per cent.

    Args:
        probabilities: (B, L).
        present: (B, L) bool.
    """
    best = probabilities.argmax(dim=1, keepdim=True)
    return 100 * float(present.gather(1, best).float().mean())


def evaluate_zero_shot_scenes(
    classify: Callable[[Tensor], Tensor],
    segment: Callable[[Tensor], Tensor],
    group: Callable[[Tensor], Tensor],
    batches: Iterable[dict[str, Any]],
    class_names: Sequence[str],
    progress: bool = False,
) -> dict[str, float]:
    """All zero-shot figures on scenes with masks, in one pass over the images.

    Args:
        classify: images -> class probabilities (B, L).
        segment: images -> labels (B, H, W), 0 for background.
        group: images -> group labels (B, H, W).
        batches: dictionaries of `images` (B, C, H, W), `mask` and `instances` (B, H, W) and `present` (B, L) bool.
        class_names: the L classes, without background.
        progress: show a progress bar.

    Returns:
        "classification" (see `present_class_accuracy`), "rand_index" of the groups against the instances, and what
        `evaluate_segmentation` returns.
    """
    hits, rand, images_seen = 0.0, 0.0, 0

    def labelled() -> Iterable[tuple[Tensor, Tensor]]:
        nonlocal hits, rand, images_seen
        for batch in batches:
            images = batch["images"]
            hits += len(images) * present_class_accuracy(classify(images).cpu(), batch["present"])
            rand += len(images) * mean_adjusted_rand_index(group(images), batch["instances"])
            images_seen += len(images)
            yield images, batch["mask"]

    figures = evaluate_segmentation(segment, labelled(), ["background", *class_names], progress=progress)
    return {"classification": hits / images_seen, "rand_index": rand / images_seen, **figures}
