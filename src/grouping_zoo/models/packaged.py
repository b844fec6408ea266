"""Where the checkpoints that come with the package lie."""

from pathlib import Path

PACKAGED = Path(__file__).resolve().parent.parent / "checkpoints"


def packaged_weights(name: str) -> dict[str, str]:
    """The `file` entry of a timm `default_cfg`: the weights of a packaged checkpoint, empty where there is none."""
    path = PACKAGED / name / "model.safetensors"
    return {"file": str(path)} if path.is_file() else {}
