"""Photos of any size to classes, named by text, and to groups."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from grouping_zoo.data.tokenization import make_tokenize
from grouping_zoo.inference.photos import network_input
from grouping_zoo.inference.resizing import MIN_SIDE, argmax_resized, network_size
from grouping_zoo.inference.result import NamedSegmentation, Origin
from grouping_zoo.inference.zero_shot import ZeroShotSegmenter, class_embeddings, prompt_templates, segmenter_settings
from grouping_zoo.label_maps import resize_labels

MAX_TOKENS = 65536  # patches in one pass: attention over more takes hours


class TextSegmenter:
    """Zero-shot segmentation of photos at their own aspect ratio and size.

    The shorter side is resized to `size` for the network. Labels are brought back to the preview's size bilinearly,
    where the largest wins.

    Args:
        model: of transformers, with two towers, on its device, in evaluation mode.
        processor: its image processor and tokenizer in one.
        class_names: see `class_list`; at least one.
        size: the photo's shorter side for the network in pixels.
        overrides: settings of `ZeroShotSegmenter` that are not the checkpoint's own, where not None.

    Raises:
        ValueError: for a size smaller than a patch, or a setting out of range.
    """

    def __init__(
        self, model: Any, processor: Any, class_names: Sequence[str], size: int, overrides: dict[str, Any]
    ) -> None:
        vision = model.model.vision
        self.patch_size: int = vision.feature_info[-1]["reduction"]
        # Very long photos are widened for what the network takes beside the pixels: superpixels of a line are none.
        self.min_side = MIN_SIDE if vision.input_names else 1
        if size < self.patch_size:
            raise ValueError(
                f"size: expected at least the model's patch of {self.patch_size} pixels, got {size}; raise size"
            )
        templates = prompt_templates(model.config)
        settings = segmenter_settings(model.config, **overrides)
        text = class_embeddings(model.model, make_tokenize(processor.tokenizer), class_names, templates)
        self.segmenter = ZeroShotSegmenter(model=model.model, text=text, **settings)
        self.class_names = list(class_names)
        self.image_processor = processor.image_processor
        self.size = size
        self.settings = settings | {"stride": self.segmenter.stride, "size": size, "prompts": templates}

    @torch.no_grad()
    def __call__(self, photo: Image.Image, origin: Origin) -> NamedSegmentation:
        """Segment an RGB photo.

        Raises:
            ValueError: if the network would have to look at too many patches at once.
        """
        width, height = (max(side, self.min_side) for side in network_size(photo.size, self.size))
        size = (width, height)
        self._check_tokens(size)
        preview, _, tensors = network_input(photo, size, self.image_processor, self.segmenter.text.device)
        found = self.segmenter.segment(**tensors)
        groups = found.grouping.probabilities(-1, size[::-1])[0]  # (S, height, width)
        labels = self.segmenter.labels(found.scores)[0]
        return NamedSegmentation(
            image=photo,
            preview=preview,
            network_size=size,
            grouping=found.grouping.to("cpu"),
            origin=origin,
            class_names=self.class_names,
            class_map=resize_labels(labels.cpu().numpy(), preview.size),
            group_map=argmax_resized(groups.cpu(), preview.size),
            scores=found.scores[0].flatten(1).max(dim=1).values.tolist(),
            probabilities=found.probabilities[0].tolist(),
        )

    def _check_tokens(self, size: tuple[int, int]) -> None:
        tokens = -(-size[0] // self.patch_size) * -(-size[1] // self.patch_size)
        if tokens > MAX_TOKENS:
            raise ValueError(
                f"size: expected at most {MAX_TOKENS} patches a photo, got {tokens} with the shorter side at "
                f"{self.size} pixels; lower size"
            )


def class_list(classes: str | Sequence[str] | None) -> list[str]:
    """Check the class names that a user gives.

    Args:
        classes: names, or one text with commas between them; several names of one class as "cat; kitten". None for
            the model's own.

    Returns:
        The names without surrounding blanks; none for None.

    Raises:
        ValueError: if there is no name, a name twice, or one that stands for no class.
    """
    if classes is None:
        return []
    given = classes.split(",") if isinstance(classes, str) else classes
    names = [name.strip() for name in given if name.strip(" ;")]
    if not names:
        raise ValueError('classes: expected at least one class name, got none; give for example "cat, coffee cup"')
    for name in names:
        if name != name.encode(errors="ignore").decode():  # as of an argument in another encoding than the terminal's
            raise ValueError(f"classes: expected names that are UTF-8, got {name!r}; check the terminal's encoding")
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in folded if folded.count(name) > 1})
    if twice:
        raise ValueError(f"classes: expected different names, got {', '.join(twice)} more than once; leave one out")
    if "background" in folded:
        raise ValueError("classes: background is what reaches no class; leave it out, and set threshold instead")
    return names
