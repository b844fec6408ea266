"""The training log: one JSON object a line, one line a logged step."""

import json
import os
from pathlib import Path


class TrainingLog:
    """Appends to `log.jsonl`.

    Args:
        path: file, made if need be.
        step: updates done; lines of later steps, written before an interruption, are cut.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # A killed process may have left half a last line.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = path.with_suffix(".writing")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
        self.path = path

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a line, on the disk when this returns: a training state never outlives the log that led to it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())
