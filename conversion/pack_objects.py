"""Pack a folder of object pictures into the files of the built-in data set `objects`.

    python conversion/pack_objects.py shared/data/objects src/grouping_zoo/data/sets/objects_data

The folder holds `names.json`, and for each style a folder with one RGBA picture a noun, cropped to its alpha. Each
style becomes one atlas: a WebP image of square cells, in the order of `names.json`, each picture in the middle of its
cell. Colors are compressed with loss, alpha without.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from grouping_zoo.data.sets.objects_pictures import ATLAS_COLUMNS, CELL, SIDE, STYLES

QUALITY = 85
OPAQUE_ENOUGH = 64  # of 255: below, the color of a pixel says little, and is taken from its neighbors


def fill_transparent(cell: np.ndarray) -> np.ndarray:
    """Give transparent pixels the color of the nearest opaque one, lest lossy compression bleeds black into edges."""
    rows, columns = ndimage.distance_transform_edt(
        cell[..., 3] < OPAQUE_ENOUGH, return_distances=False, return_indices=True
    )
    return np.concatenate([cell[rows, columns, :3], cell[..., 3:]], axis=-1)


def cell_of(path: Path) -> np.ndarray:
    """Return a picture in the middle of its cell, (CELL, CELL, 4) uint8, its longer side scaled to SIDE."""
    picture = Image.open(path).convert("RGBA")
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    cell = np.zeros((CELL, CELL, 4), dtype=np.uint8)
    top, left = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = np.asarray(picture)
    return fill_transparent(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    nouns = json.loads((arguments.source / "names.json").read_text(encoding="utf-8"))
    lines = ",\n".join(json.dumps(noun, ensure_ascii=False) for noun in nouns)
    (arguments.target / "nouns.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for style in STYLES:
        atlas = np.zeros((-(-len(nouns) // ATLAS_COLUMNS) * CELL, ATLAS_COLUMNS * CELL, 4), dtype=np.uint8)
        for number, noun in enumerate(nouns):
            row, column = (CELL * place for place in divmod(number, ATLAS_COLUMNS))
            file = arguments.source / style / f"{noun['name'].replace(' ', '_')}.webp"
            atlas[row : row + CELL, column : column + CELL] = cell_of(file)
        target = arguments.target / f"{style}.webp"
        Image.fromarray(atlas).save(target, quality=QUALITY, method=6, exact=True)
        print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
