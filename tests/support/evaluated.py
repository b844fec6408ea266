"""Models and surroundings that the tests of the evaluation share."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel, network_model
from grouping_zoo.inference.zero_shot import prompt_templates, segmenter_settings

CPU = torch.device("cpu")
SCENES = EvaluationSet(images=7, train_images=20)


class ClassInCorner(nn.Module):
    """Reads the class of an image, which shows it as the grey of all its pixels."""

    pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3}  # noqa: RUF012

    def __init__(self, names: tuple[str, ...], shown: tuple[str, ...]) -> None:
        super().__init__()
        self.num_classes = len(names)
        self.pretrained_cfg = {**type(self).pretrained_cfg, "label_names": names}
        self.outputs = torch.tensor([names.index(name) for name in shown])
        self.calls = 0

    def forward_features(self, x: Tensor) -> Tensor:
        self.calls += 1
        number = (x.mean(dim=(1, 2, 3)) * 255 / 20).round().long()
        return nn.functional.one_hot(number.clamp(max=len(self.outputs) - 1), len(self.outputs)).float()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        scores = torch.zeros(len(x), self.num_classes)
        return x if pre_logits else scores.index_copy(1, self.outputs, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def model_of(network: Any, name: str = "made") -> EvaluatedModel:
    return network_model(name, network, CPU)


def context_of(model: EvaluatedModel, data: EvaluationSet = SCENES, **settings: Any) -> EvaluationContext:
    given = dict(model=model, data=data, ranks=Ranks(), size=model.image_size)
    if model.towers is not None:
        config = model.model.config
        zero_shot = segmenter_settings(config, background_threshold=0.01) | {"templates": prompt_templates(config)}
        given["zero_shot"] = zero_shot
    return EvaluationContext(**(given | settings))


def grey_folder(folder: Path, names: tuple[str, ...], each: int = 3) -> Path:
    """DIR/train and DIR/val, where the images of class number n have the grey 20 n."""
    for split in ("train", "val"):
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for copy in range(each):
                Image.new("RGB", (40, 36), (20 * number,) * 3).save(folder / split / name / f"{copy}.png")
    return folder


def voc_folder(folder: Path, masks: list[np.ndarray], seed: int = 0) -> Path:
    """A validation split in VOC's layout: images of noise with these masks."""
    generator = np.random.default_rng(seed)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = generator.integers(255, size=(*mask.shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{number}.jpg")
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{number}.png")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{n}\n" for n in range(len(masks))))
    return folder


class Together(Ranks):
    """One of several processes, here a thread."""

    def __init__(self, rank: int, count: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__()
        self.rank, self.count = rank, count
        self.barrier, self.board = barrier, board

    def _gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(60)
        found = list(self.board)
        self.barrier.wait(60)
        return found


def in_processes(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What each of several processes, here threads, gives."""
    barrier, board, found = threading.Barrier(count), [None] * count, [None] * count

    def run(rank: int) -> None:
        found[rank] = work(Together(rank, count, barrier, board))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found
