"""Images on the screen."""

import matplotlib.pyplot as plt
from PIL import Image

DOTS_PER_INCH = 100


def show_image(image: Image.Image) -> None:
    """Show an image by matplotlib at its own size, without axes."""
    figure = plt.figure(figsize=(image.width / DOTS_PER_INCH, image.height / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image)
    axes.set_axis_off()
    plt.show()
