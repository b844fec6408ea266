"""Label maps as PNG files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grouping_zoo.viz.label_png import save_label_png


@pytest.mark.parametrize(("highest", "mode"), [(0, "P"), (255, "P"), (256, "I;16"), (65535, "I;16")])
def test_label_png_is_lossless(tmp_path: Path, highest: int, mode: str) -> None:
    labels = np.random.default_rng(0).integers(0, highest + 1, (17, 23))
    labels[0, 0] = highest
    save_label_png(labels, tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as png:
        assert png.mode == mode
        np.testing.assert_array_equal(np.asarray(png), labels)


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels: expected 0 to 65535, got 65536"):
        save_label_png(np.full((3, 4), 65536), tmp_path / "labels.png")
    assert not list(tmp_path.iterdir())
