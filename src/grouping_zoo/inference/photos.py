"""Photos in any form to RGB images, and these to the tensors that a network takes."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from grouping_zoo.data.images import as_rgb, open_image
from grouping_zoo.inference.resizing import reduce_photo

Photo = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
CHANNELS = (1, 3, 4)


def load_photo(photo: Photo) -> Image.Image:
    """The photo as it is meant to be seen: upright, transparency on white, 8 bits a channel.

    Args:
        photo: a path; an image of Pillow; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a tensor (H, W),
            (1, H, W), (3, H, W) or (4, H, W). Values are uint8, uint16 up to 65535, bool, or float from 0 to 1.

    Returns:
        An RGB image.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read as an image.
    """
    if isinstance(photo, str | os.PathLike):
        return open_image(photo)
    if isinstance(photo, Image.Image):
        return as_rgb(photo)
    if isinstance(photo, Tensor):
        values = photo.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # NumPy has no bfloat16
        return _from_array((values.permute(1, 2, 0) if values.ndim == 3 else values).numpy(), tuple(photo.shape))
    if isinstance(photo, np.ndarray):
        return _from_array(photo, photo.shape)
    raise ValueError(
        f"image: expected a path, an image of Pillow, an array, a tensor or a list of them, got {type(photo).__name__}"
    )


def photo_name(photo: Photo) -> str | None:
    """File name of a photo that was given as a path."""
    return Path(photo).name if isinstance(photo, str | os.PathLike) else None


def _from_array(array: np.ndarray, shape: tuple[int, ...]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or 0 in array.shape:
        raise ValueError(
            "image: expected an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (H, W), (3, H, W) or (4, H, W), "
            f"got shape {shape}; of a batch give list(images)"
        )
    pixels = _to_uint8(array)
    return as_rgb(Image.fromarray(pixels[..., 0] if array.ndim == 3 and channels == 1 else pixels))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and 0 <= array.min() <= array.max() <= 1:  # False of NaN too
        return np.round(255 * array.astype(np.float32)).astype(np.uint8)
    if array.dtype == np.uint16:
        return np.round(array / np.float32(257)).astype(np.uint8)
    if array.dtype == bool:
        return 255 * array.astype(np.uint8)
    if array.dtype == np.uint8:
        return array
    raise ValueError(
        f"image: expected values uint8, uint16, bool, or float from 0 to 1, got {array.dtype} from {array.min()} to "
        f"{array.max()}; convert them, and do not normalise them"
    )


class NetworkInput(NamedTuple):
    """A photo as a network takes it.

    Attributes:
        preview: the photo with at most `FIGURE_SIDE` pixels a side.
        size: (width, height) that the network sees.
        tensors: keyword arguments of the network, `pixel_values` (1, 3, height, width) among them.
    """

    preview: Image.Image
    size: tuple[int, int]
    tensors: dict[str, Tensor]


def network_input(photo: Image.Image, size: tuple[int, int], image_processor: Any, device: Any) -> NetworkInput:
    """Prepare the whole photo by a checkpoint's own preprocessing.

    Args:
        photo: RGB.
        size: (width, height) that the network sees.
        image_processor: of transformers; its resampling, range, mean and std are taken.
        device: of the tensors.
    """
    preview = reduce_photo(photo)
    width, height = size
    inputs = image_processor(
        images=preview,
        size={"height": height, "width": width},
        do_resize=True,
        do_center_crop=False,
        return_tensors="pt",
    )
    return NetworkInput(preview, size, {key: value.to(device) for key, value in inputs.items()})
