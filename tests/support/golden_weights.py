"""Made-up weights and a real photo: the same key and shape give the same values on any machine."""

import json
import math
import zlib
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def made_up_weights(manifest_name: str) -> dict[str, Tensor]:
    """A checkpoint in its official format: float32 tensors for the keys and shapes of `golden/MANIFEST_NAME`."""
    manifest: dict[str, list[int]] = json.loads((GOLDEN / manifest_name).read_text())
    return {key: _made_up_tensor(key, shape) for key, shape in manifest.items()}


def _made_up_tensor(key: str, shape: list[int]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("logit_scale"):
        return torch.tensor(2.6593)
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif key.endswith(("running_mean", "bias")):
        x = 0.05 * x
    elif len(shape) == 1:
        x = 1 + 0.1 * x
    elif any(part in key for part in ("pos_embed", "token", "positional")):
        x = 0.3 * x
    else:
        x = x / math.sqrt(math.prod(shape[1:]))
    return torch.tensor(x, dtype=torch.float32)


def photo(name: str, size: int) -> Tensor:
    """A photo that scikit-image ships, resized by area and normalised: (1, 3, size, size) float32."""
    image = cv2.resize(getattr(skimage.data, name)()[..., :3], (size, size), interpolation=cv2.INTER_AREA)
    x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
