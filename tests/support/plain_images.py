"""Images for tests of figures."""

from PIL import Image


def grey_image(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def colors_in(picture: Image.Image) -> set[tuple[int, ...]]:
    colors = picture.getcolors(maxcolors=picture.width * picture.height)
    assert colors is not None
    return {color for _, color in colors if isinstance(color, tuple)}
