"""The training log: one JSON object a line, one line a logged step."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


class TrainingLog:
    """Log of a run, appended to `log.jsonl`.

    Args:
        path: file, made if missing.
        step: updates done; lines of later steps, written before an interruption, are cut.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        steps = [_step_of(line) for line in lines]
        for number, (line, found) in enumerate(zip(lines, steps, strict=True), 1):
            if found is None and line.endswith(b"\n"):  # a killed process may have left half a last line
                logger.warning("%s: left out line %d, which is no log line", path, number)
        kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
        temporary = path.with_suffix(".writing")
        temporary.write_bytes(b"".join(kept))
        os.replace(temporary, path)
        self.path = path

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a line, which is on the disk on return: a training state never outlives the log that led to it.

        Args:
            step: updates done.
            values: to log; what is not finite is written as null, as JSON has no NaN.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite_or_none(values)}, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(f"{self.path}: expected to write to it, got {error.strerror}; make room or rights") from None


def finite_or_none(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """The values with None for NaN and infinity: a metric that is undefined, e.g. a mean over nothing."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def _step_of(line: bytes) -> int | None:
    """The step of a whole log line; None of anything else."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
