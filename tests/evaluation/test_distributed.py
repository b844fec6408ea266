import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluated import in_processes
from grouping_zoo.data.images import Unreadable
from grouping_zoo.evaluation.distributed import Ranks


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any] | Unreadable:
        return Unreadable(f"image {index}", "torn") if index % 5 == 3 else {"number": index}


@pytest.mark.parametrize("count", [1, 4, 9, 17])
def test_several_processes_yield_what_one_does(count: int) -> None:
    def results(ranks: Ranks) -> list[Any]:
        return list(ranks.map_batches(lambda batch: batch["number"].tolist(), Numbers(count), batch_size=2))

    alone = results(Ranks())
    flat = [number for numbers, _ in alone if numbers for number in numbers]
    assert flat == [number for number in range(count) if number % 5 != 3]
    assert [one.name for _, torn in alone for one in torn] == [f"image {n}" for n in range(count) if n % 5 == 3]
    for processes in (2, 3):
        assert in_processes(processes, results) == [alone] * processes


def test_no_more_than_one_batch_is_held() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def compute(batch: dict[str, Any]) -> Tensor:
        assert sum(ref() is not None for ref in alive) <= 1, "the one before, which the loop still holds"
        found = batch["number"].clone()
        alive.append(weakref.ref(found))
        return found

    for _ in Ranks().map_batches(compute, Numbers(17), batch_size=2):
        pass
    assert len(alive) == 9
