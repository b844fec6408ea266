"""Surroundings of a task: a model, the data, and the processes that share the work."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from grouping_zoo.data.evaluation_dataset import EvaluationDataset
from grouping_zoo.evaluation.data import EvaluationSet, Split
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel
from grouping_zoo.evaluation.feature_cache import FeatureCache, feature_key, folder_fingerprint

BATCH_SIZE = 32
EXAMPLE_IMAGES = 6

CropMode = Literal["classification", "center", "whole"]
"""Part of an image that the model sees: "classification", the centre by the model's crop_pct, of scenes with one
object; "center", the centre of image and masks; "whole", all of the image with its masks at their own size."""
Result = TypeVar("Result")


@dataclass(kw_only=True)
class EvaluationContext:
    """A model, the images to evaluate it on, and where it is done.

    Args:
        model: the model.
        data: the images.
        ranks: the processes that share the work.
        size: (height, width) that the model sees.
        zero_shot: settings of `ZeroShotSegmenter`, and "templates", the prompts.
        metrics: further metrics that are asked for by name; see `EXTRA_METRICS`.
        presets: name of a task -> name of the settings that it trains by, in place of its usual ones.
        cache: folder for image features, which are then computed once; None to compute them in every run.
        workers: processes that read images, for each process.
        progress: show progress bars.

    Attributes:
        skipped: the images that could not be read, and why.
        plots: name -> function that draws it; what the tasks have to show beside numbers.
    """

    model: EvaluatedModel
    data: EvaluationSet
    ranks: Ranks
    size: tuple[int, int]
    zero_shot: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None
    workers: int = 0
    progress: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    plots: dict[str, Callable[[], Image.Image]] = field(default_factory=dict)
    _features: dict[Split, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def results(
        self,
        function: Callable[[dict[str, Any]], Result],
        description: str,
        split: Split = "test",
        crop: CropMode = "center",
    ) -> Iterator[Result]:
        """Call a function with every batch of images, and yield its results in their order on every process.

        Args:
            function: see `Ranks.map_batches`; what is costly belongs into it, as processes share it.
            description: of the progress bar.
            split: of the data.
            crop: part of an image that the model sees.

        Raises:
            ValueError: if there is no image, or too many cannot be read.
        """
        # Whole images of stored sets differ in size.
        batch_size = 1 if crop == "whole" and not self.data.is_built_in else BATCH_SIZE
        seen = 0
        for result, unreadable in self.ranks.map_batches(
            function,
            self.images(split, crop),
            batch_size=batch_size,
            workers=self.workers,
            description=description,
            progress=self.progress,
        ):
            self.skipped |= {image.name: image.reason for image in unreadable}
            if result is not None:
                seen += 1
                yield result
        if not seen:
            raise ValueError(f"data: expected images that can be read in {self.data.spec}, got none; check the split")

    def images(self, split: Split, crop: CropMode) -> EvaluationDataset:
        """Return the images of a split as the model sees them."""
        model, data = self.model, self.data
        source = data.source(split, self.size, single=crop == "classification")
        transform = replace(model.inputs, image_size=self.size)
        if crop != "classification" or data.is_built_in:  # scenes are made at the network's size
            transform = replace(transform, crop_pct=1.0, crop_mode="center")
        return EvaluationDataset(source, data.order(source, split), transform, whole=crop == "whole")

    def features(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and labels (N,) of a split's images, computed once, or never if the cache has them."""
        if split not in self._features:
            self._features[split] = self._cached_features(split)
        return self._features[split]["features"], self._features[split]["labels"]

    def example_images(self, batch: dict[str, Any]) -> Tensor:
        """Return those of a batch's images that plots show, (n, 3, H, W) uint8."""
        rows = batch["pixel_values"][batch["index"] < EXAMPLE_IMAGES]
        inputs = self.model.inputs
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (inputs.mean, inputs.std))
        return ((rows * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _cached_features(self, split: Split) -> dict[str, Tensor]:
        """Read features from the cache, or compute and keep them; the main process tells all what is to be done."""
        if self.cache is None:
            return self._compute_features(split)
        cache, key = FeatureCache(self.cache), self._feature_key(split)
        kept = self.ranks.from_main(cache.get(key) if self.ranks.is_main else None)
        if kept is not None:
            return kept
        computed = self._compute_features(split)
        # What could not be read may be readable next time.
        if self.ranks.is_main and not self.skipped:
            cache.put(key, computed)
        return computed

    def _compute_features(self, split: Split) -> dict[str, Tensor]:
        def compute(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return self.model.features(batch).float().cpu(), batch["label"]

        features, labels = zip(*self.results(compute, "features", split, "classification"), strict=True)
        return {"features": torch.cat(features), "labels": torch.cat(labels)}

    def _feature_key(self, split: Split) -> str:
        images, data = self.images(split, "classification"), self.data
        described: dict[str, Any] = dict(
            spec=data.spec,
            split=data.split if split == "test" else data.train_split,
            count=data.count(split),
            seed=data.seed,
        )
        folder = Path(data.spec.partition(":")[2])
        if ":" in data.spec and folder.is_dir():
            described["files"] = folder_fingerprint(folder)
        preprocessing = dict(
            **images.transform.settings(),
            call_args={name: str(value) for name, value in self.model.call_args.items()},
        )
        return feature_key(self.model.network, described, preprocessing)
