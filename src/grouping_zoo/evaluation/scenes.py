"""Zero-shot figures on the held-out built-in scenes, for a network in training and for a checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from grouping_zoo.data.scenes import Scenes
from grouping_zoo.data.tokenization import make_tokenize
from grouping_zoo.evaluation.segmentation import evaluate_segmentation, evaluate_zero_shot_scenes
from grouping_zoo.inference.zero_shot import (
    BACKGROUND,
    DEFAULT_TEMPLATES,
    ZeroShotSegmenter,
    class_embeddings,
    classify,
    prompt_templates,
    segmenter_settings,
)
from grouping_zoo.models.image_text import ImageTextModel

BATCH_SIZE = 32


def scene_batches(
    scenes: Scenes,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Batches as `grouping_zoo.evaluation.segmentation.evaluate_zero_shot_scenes` takes them.

    Args:
        scenes: what to read, in its order.
        mean: of each channel, for images in [0, 1].
        std: likewise.
        device: of the images; the truth stays on the CPU.
        progress: show a progress bar.

    Yields:
        `images` (B, 3, H, W) float32 normalised, `mask` and `instances` (B, H, W) int64, `present` (B, L) bool.
    """
    mean_, std_ = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))
    starts = range(0, len(scenes), BATCH_SIZE)
    for start in tqdm(starts, desc="scenes", unit="batch", disable=None if progress else True, leave=False):
        batch = [scenes[index] for index in range(start, min(start + BATCH_SIZE, len(scenes)))]
        images = torch.from_numpy(np.stack([scene.image for scene in batch])).permute(0, 3, 1, 2) / 255
        present = torch.zeros(len(batch), len(scenes.class_names), dtype=torch.bool)
        for row, scene in zip(present, batch, strict=True):
            row[list(scene.classes)] = True
        yield {
            "images": ((images - mean_) / std_).to(device),
            "mask": torch.from_numpy(np.stack([scene.mask for scene in batch])).long(),
            "instances": torch.from_numpy(np.stack([scene.instances for scene in batch])).long(),
            "present": present,
        }


@torch.no_grad()
def evaluate_on_scenes(
    model: ImageTextModel,
    tokenize: Callable[[list[str]], Tensor],
    *,
    images: int = 500,
    seed: int = 0,
    objects: Literal["shapes", "digits"] = "shapes",
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    progress: bool = False,
    **segmenter_settings: Any,
) -> dict[str, float]:
    """Zero-shot classification, segmentation and grouping of held-out scenes.

    Args:
        model: the two towers, in evaluation mode.
        tokenize: texts to ids (n, T) int64.
        images: number of scenes, from the validation split.
        seed: of the scenes.
        objects: which scenes, see `Scenes`.
        image_size: of the scenes; the vision tower's own input size if omitted.
        mean: of the channels; the vision tower's own if omitted.
        std: likewise.
        class_names: other words for the scenes' classes, in their order, "ball; sphere" for several.
        templates: prompts, see `class_embeddings`.
        progress: show a progress bar.
        **segmenter_settings: settings of `ZeroShotSegmenter`, e.g. `background_threshold`.

    Returns:
        see `evaluate_zero_shot_scenes`: per cent, but for the adjusted Rand index of the coarsest groups.

    Raises:
        ValueError: if `class_names` are not as many as the scenes' classes, or another setting is out of its range.
    """
    description = model.vision.pretrained_cfg
    scenes = Scenes("validation", images, image_size or tuple(description["input_size"][1:]), seed, objects)
    names = list(class_names or scenes.class_names)
    if len(names) != len(scenes.class_names):
        raise ValueError(
            f"class_names: expected one for each of {', '.join(scenes.class_names)}, got {len(names)}: "
            f"{', '.join(names)}; leave them out to take these"
        )
    text = class_embeddings(model, tokenize, names, templates)
    segment = ZeroShotSegmenter(model=model, text=text, **segmenter_settings)
    batches = scene_batches(scenes, mean or description["mean"], std or description["std"], text.device, progress)
    return evaluate_zero_shot_scenes(
        lambda pixels: classify(model, pixels, text),
        segment,
        lambda pixels: most_probable_groups(model, pixels),
        batches,
        list(scenes.class_names),
    )


def most_probable_groups(model: ImageTextModel, pixel_values: Tensor) -> Tensor:
    """The coarsest group of each pixel, as zero-shot segmentation takes it: (B, 3, H, W) -> (B, H, W) int64."""
    height, width = pixel_values.shape[-2:]
    return model.forward_grouping(pixel_values).probabilities(-1, (height, width)).argmax(dim=1)


def evaluate_checkpoint_on_scenes(
    model: Any,
    processor: Any,
    *,
    images: int = 500,
    seed: int = 0,
    objects: Literal["shapes", "digits"] = "shapes",
    threshold: float | None = None,
    masks: Literal["hard", "soft"] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """`evaluate_on_scenes` with a checkpoint's own preprocessing, prompts and settings.

    Args:
        model: a transformers class with two towers, from `open_checkpoint`.
        processor: its processor.
        images: number of scenes.
        seed: of the scenes.
        objects: which scenes.
        threshold: background threshold, instead of the checkpoint's own.
        masks: likewise, see `ZeroShotSegmenter`.
        progress: show a progress bar.

    Returns:
        "figures", and "switches": every setting that changes them.
    """
    config, image_processor = model.config, processor.image_processor
    height, width = config.pretrained_cfg["input_size"][1:]
    switches: dict[str, Any] = dict(
        images=images,
        seed=seed,
        objects=objects,
        image_size=(height, width),
        mean=list(image_processor.image_mean),
        std=list(image_processor.image_std),
        templates=prompt_templates(config),
        **segmenter_settings(config, background_threshold=threshold, masks=masks),
    )
    figures = evaluate_on_scenes(model.model, make_tokenize(processor.tokenizer), **switches, progress=progress)
    return {"figures": figures, "switches": switches}


def all_background_on_scenes(
    images: int, seed: int, objects: Literal["shapes", "digits"], image_size: int | tuple[int, int]
) -> dict[str, float]:
    """Figures of a prediction that calls every pixel background: the least a segmentation has to beat.

    Returns:
        what `evaluate_segmentation` returns, and "rand_index", which is 0 for a single group.
    """
    scenes = Scenes("validation", images, image_size, seed, objects)
    batches = ((b["images"], b["mask"]) for b in scene_batches(scenes, (0, 0, 0), (1, 1, 1)))
    figures = evaluate_segmentation(
        lambda pixels: torch.full_like(pixels[:, 0], BACKGROUND, dtype=torch.int64),
        batches,
        ["background", *scenes.class_names],
    )
    return {"rand_index": 0.0, **figures}
