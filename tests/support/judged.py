"""Models and surroundings that the tests of the evaluation share."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from grouping_zoo.evaluation.distributed import Processes
from grouping_zoo.evaluation.tasks.context import Context
from grouping_zoo.evaluation.tasks.data import EvaluationSet
from grouping_zoo.evaluation.tasks.subject import Subject

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


def subject_of(network: Any, name: str = "made") -> Subject:
    return Subject(name=name, model=network, network=network, processor=None, device=CPU)


def context_of(subject: Subject, data: EvaluationSet = SCENES, **settings: Any) -> Context:
    given = dict(subject=subject, data=data, processes=Processes(), size=subject.image_size)
    return Context(**(given | settings))


class Together(Processes):
    """One of several processes, here a thread."""

    def __init__(self, number: int, count: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__()
        self.number, self.count = number, count
        self.barrier, self.board = barrier, board

    def _gathered(self, value: Any) -> list[Any]:
        self.board[self.number] = value
        self.barrier.wait(10)
        found = list(self.board)
        self.barrier.wait(10)
        return found
