"""Features of made-up classes."""

import torch
from torch import Tensor


def blobs(images: int, seed: int, classes: int = 4, width: int = 6, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features around one centre a class; the centres are the same for every seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    return centres[labels] + spread * torch.randn(images, width, generator=generator), labels
