"""Photos in any form to RGB images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from grouping_zoo.inference.photos import load_photo, photo_name

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "photo",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS.astype(np.uint16) * 257,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        np.concatenate([PIXELS, np.full((5, 7, 1), 255, dtype=np.uint8)], axis=2),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        (torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255).requires_grad_(),
    ],
)
def test_the_same_photo_in_every_form(photo: Any) -> None:
    image = load_photo(photo)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("text", [False, True])
def test_a_path(tmp_path: Path, text: bool) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    np.testing.assert_array_equal(np.asarray(load_photo(str(path) if text else path)), PIXELS)
    assert photo_name(str(path) if text else path) == "a.png"
    assert photo_name(PIXELS) is None


@pytest.mark.parametrize("grey", [PIXELS[..., 0], PIXELS[..., :1], torch.from_numpy(PIXELS[..., 0])[None]])
def test_grey_photos_become_rgb(grey: Any) -> None:
    np.testing.assert_array_equal(np.asarray(load_photo(grey)), PIXELS[..., :1].repeat(3, axis=2))
    mask = np.asarray(load_photo(PIXELS[..., 0] > 127))
    np.testing.assert_array_equal(mask[..., 0], 255 * (PIXELS[..., 0] > 127))


def test_an_image_of_pillow_is_turned_upright_and_laid_on_white_like_a_file(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        turned = load_photo(opened)
    assert turned.size == (2, 4)
    assert turned.getpixel((0, 0)) == (255, 255, 255)
    assert turned.tobytes() == load_photo(tmp_path / "a.png").tobytes()


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (PIXELS.astype(np.int64), "uint8, uint16, bool, or float from 0 to 1, got int64 from"),
        (PIXELS.astype(np.float32), "got float32 from .*; convert them"),
        (np.full((4, 4, 3), np.nan), "float from 0 to 1, got float64"),
        (np.zeros((3, 4, 5), dtype=np.uint8), r"\(H, W, 3\) or \(H, W, 4\), .* got shape \(3, 4, 5\)"),
        (torch.zeros(2, 3, 4, 4), r"got shape \(2, 3, 4, 4\); of a batch give list\(images\)"),
        (torch.zeros(5, 4, 3), r"got shape \(5, 4, 3\)"),
        (np.zeros((0, 4), dtype=np.uint8), r"got shape \(0, 4\)"),
        (5, "expected a path, an image of Pillow, an array, a tensor or a list of them, got int"),
    ],
)
def test_what_is_no_photo_is_refused(photo: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"image: .*{words}"):
        load_photo(photo)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(ValueError, match=r"fifo\.png: expected a readable image, got: a folder, pipe or device"):
        load_photo(tmp_path / "fifo.png")
    with pytest.raises(FileNotFoundError, match="check the path"):
        load_photo(tmp_path / "none.png")
