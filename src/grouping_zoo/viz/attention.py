"""Attention maps of a network's tokens over a photo."""

import matplotlib
import numpy as np
from PIL import Image

from grouping_zoo.viz.contact_sheet import Panel, contact_sheet

COLOR_MAP = "inferno"
COLOR_WEIGHT = 0.75


def attention_figure(image: Image.Image, maps: np.ndarray) -> Image.Image:
    """The image, and each token's attention over it, scaled from its own minimum (dark) to its maximum (bright).

    Args:
        image: RGB.
        maps: (L, h, w), any scale.
    """
    panels = [Panel(lambda size: image.resize(size, Image.Resampling.LANCZOS), "photo")]
    panels += [_token(image, one, number) for number, one in enumerate(maps)]
    return contact_sheet(panels, image.size)


def _token(image: Image.Image, attention: np.ndarray, number: int) -> Panel:
    def draw(size: tuple[int, int]) -> Image.Image:
        low, high = float(attention.min()), float(attention.max())
        scaled = Image.fromarray(((attention - low) / max(high - low, 1e-12)).astype(np.float32))
        smooth = np.asarray(scaled.resize(size, Image.Resampling.BILINEAR))  # (h, w)
        heat = 255 * matplotlib.colormaps[COLOR_MAP](smooth)[..., :3]
        grey = np.asarray(image.resize(size, Image.Resampling.LANCZOS).convert("L"), dtype=np.float32)[..., None]
        return Image.fromarray((COLOR_WEIGHT * heat + (1 - COLOR_WEIGHT) * grey).astype(np.uint8))

    return Panel(draw, f"token {number}")
