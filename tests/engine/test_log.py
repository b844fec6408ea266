import json
import logging
import math
import os
from pathlib import Path

import pytest

from grouping_zoo.engine.log import TrainingLog, finite_or_none
from toy_task import log_lines


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_undefined_values_are_null(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl", 0)
    log.write(1, {"loss": 0.5, "iou": math.nan, "ratio": math.inf, "least": -math.inf, "missing": None})
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse_constant) == {
        "step": 1,
        "loss": 0.5,
        "iou": None,
        "ratio": None,
        "least": None,
        "missing": None,
    }
    assert finite_or_none({"a": 1.0, "b": math.nan}) == {"a": 1.0, "b": None}


@pytest.mark.parametrize(
    "line", [b"\n", b"not JSON\n", b"\xff\xfe\n", b'{"loss": 1}\n', b"[1]\n", b"null\n", b"[" * 100_000 + b"\n"]
)
def test_a_damaged_line_is_left_out_and_told(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    with caplog.at_level(logging.WARNING):
        TrainingLog(path, 2).write(3, {"loss": 1.0})
    assert log_lines(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: left out line 2, which is no log line"]
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl", 0)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OSError, match=r"log\.jsonl: expected to write to it, got Is a directory"):
        log.write(1, {})
