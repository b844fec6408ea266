"""What a task is, and what it is given."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from grouping_zoo.evaluation.distributed import Processes
from grouping_zoo.evaluation.feature_cache import cached_features, folder_fingerprint
from grouping_zoo.evaluation.tasks.data import EvaluationImages, EvaluationSet, Part
from grouping_zoo.evaluation.tasks.subject import Subject

BATCH_SIZE = 32
SHOWN_IMAGES = 6

View = Literal["class", "centre", "whole"]
"""What of an image is seen: "class", as for recognition, scenes with one object; "centre", the centre of image and
masks; "whole", all of the image with its masks at their own size."""
Result = TypeVar("Result")


class Task(Protocol):
    """One kind of judgement.

    Attributes:
        name: what the user calls it.
        needs: what the data must know of their images; one of them is enough.
    """

    name: str

    @property
    def needs(self) -> tuple[str, ...]:
        """See above."""
        ...

    def fits(self, subject: Subject) -> bool:
        """Whether the model can do it."""
        ...

    def run(self, context: "Context") -> dict[str, float]:
        """The figures, in per cent unless their name says otherwise."""
        ...


@dataclass(kw_only=True)
class Context:
    """A model, the images to judge it on, and where it is done.

    Args:
        subject: the model.
        data: the images.
        processes: that share the work.
        size: (height, width) that the model sees.
        settings: of zero-shot segmentation, in place of the checkpoint's own; see `ZeroShotSegmenter`.
        presets: name of a task -> name of the settings that it trains by, in place of its usual ones.
        cache: folder for image features, which are then computed once; None to compute them in every run.
        workers: processes that read images, for each process.
        progress: show progress bars.

    Attributes:
        skipped: the images that could not be read, and why.
        pictures: name -> function that draws it; what the tasks have to show beside figures.
    """

    subject: Subject
    data: EvaluationSet
    processes: Processes
    size: tuple[int, int]
    settings: dict[str, Any] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None
    workers: int = 0
    progress: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Callable[[], Image.Image]] = field(default_factory=dict)
    _features: dict[Part, dict[str, Tensor]] = field(default_factory=dict)

    def results(
        self, function: Callable[[dict[str, Any]], Result], description: str, part: Part = "test", view: View = "centre"
    ) -> Iterator[Result]:
        """What a function gives for every batch of images, in their order, whichever process computed it.

        Args:
            function: see `Processes.shared`.
            description: of the progress bar.
            part: of the data.
            view: what of an image is seen.

        Raises:
            ValueError: if there is no image, or too many cannot be read.
        """
        images = self.images(part, view)
        # Whole images of stored sets differ in size.
        batch_size = 1 if view == "whole" and not self.data.is_built_in else BATCH_SIZE
        seen = 0
        for result, unreadable in self.processes.shared(
            images,
            function,
            batch_size=batch_size,
            workers=self.workers,
            description=description,
            progress=self.progress,
        ):
            for name, reason in unreadable:
                self.skipped[name] = reason
            if result is not None:
                seen += 1
                yield result
        if not seen:
            raise ValueError(f"--data: expected images that can be read in {self.data.spec}, got none; check the split")

    def images(self, part: Part, view: View) -> EvaluationImages:
        """The images of a part as the model sees them."""
        subject, data = self.subject, self.data
        source = data.source(part, self.size, single=view == "class")
        return EvaluationImages(
            source,
            data.order(source, part),
            self.size,
            subject.tensors,
            whole=view == "whole",
            crop_share=self._crop_share(view),
            resampling=Image.Resampling[subject.description.get("interpolation", "bicubic").upper()],
        )

    def features(self, part: Part) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,) of a part's images: computed once, or never if the cache holds them."""
        if part not in self._features:
            self._features[part] = self._compute_features(part) if self.cache is None else self._cached(part)
        return self._features[part]["features"], self._features[part]["labels"]

    def shown(self, batch: dict[str, Any]) -> Tensor:
        """Those of a batch's images that pictures show, (n, 3, H, W) uint8."""
        rows = batch["pixel_values"][batch["index"] < SHOWN_IMAGES]
        tensors = self.subject.tensors
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (tensors.mean, tensors.std))
        return ((rows * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _crop_share(self, view: View) -> float:
        """timm's: only where photos are recognised, scenes are made at the network's size."""
        recognised = view == "class" and not self.data.is_built_in
        return self.subject.description.get("crop_pct") or 1.0 if recognised else 1.0

    def _compute_features(self, part: Part) -> dict[str, Tensor]:
        def compute(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return self.subject.call(self.subject.features, batch).float().cpu(), batch["label"]

        found = list(self.results(compute, "features", part, "class"))
        features, labels = (torch.cat(values) for values in zip(*found, strict=True))
        return {"features": features, "labels": labels}

    def _cached(self, part: Part) -> dict[str, Tensor]:
        """Through the cache; the first process tells all whether the features must be computed."""
        assert self.cache is not None
        subject, view = self.subject, self.images(part, "class")
        key: dict[str, Any] = dict(
            model=subject.network,
            data=self._data_key(part),
            preprocessing=dict(
                size=list(view.size),
                crop_share=view.crop_share,
                resampling=view.resampling.name,
                **{name: str(value) for name, value in vars(view.tensors).items()},
            ),
        )
        kept = None
        if self.processes.is_first:
            try:
                kept = cached_features(self.cache, _not_kept, **key)
            except LookupError:
                kept = None
        kept = self.processes.of_first(kept)
        if kept is not None:
            return kept
        computed = self._compute_features(part)
        # What could not be read may be readable next time.
        if self.processes.is_first and not self.skipped:
            cached_features(self.cache, lambda: computed, **key)
        return computed

    def _data_key(self, part: Part) -> dict[str, Any]:
        data = self.data
        split = data.split if part == "test" else data.train_split
        key: dict[str, Any] = dict(spec=data.spec, part=part, split=split, count=data.count(part), seed=data.seed)
        folder = Path(data.spec.partition(":")[2])
        return key | ({"files": folder_fingerprint(folder)} if ":" in data.spec and folder.is_dir() else {})


def already_found(found: Any) -> Any:
    """The predict function for an evaluator that is given predictions, made by all processes, in place of images."""
    return found


def _not_kept() -> dict[str, Tensor]:
    raise LookupError
