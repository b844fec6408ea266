"""Small files that claim much: each is refused in one line, in a process that may not take the memory they ask for."""

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from grouping_zoo.data import limits

ALLOWED = 2**30  # bytes beside what the imported libraries take

# Opens the files named on standard input, one a line as KIND PATH, with limited address space.
OPENER = """
import resource, sys
from pathlib import Path
import grouping_zoo.data.sets
from grouping_zoo.data.captioned import captioned_folder
from grouping_zoo.data.images import open_image
from grouping_zoo.data.sets import open_set
from grouping_zoo.data.sets.label_maps import read_pixels

DOORS = {
    "image": lambda path: open_image(path),
    "mask": lambda path: read_pixels(path, ("L",)),
    "coco": lambda path: next(iter(open_set(f"coco-object:{path}"))),
    "captions": lambda path: captioned_folder(path)[0],
}
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + %d, size + %d))
for line in sys.stdin:
    kind, _, path = line.strip().partition(" ")
    try:
        DOORS[kind](path)
        print("accepted")
    except (ValueError, FileNotFoundError) as error:
        print("refused:", " ".join(str(error).split()))
    except BaseException as error:
        print("failed:", type(error).__name__, error)
"""


def png(width: int, height: int, color_type: int, depth: int = 8) -> bytes:
    """A PNG whose header claims a size, with some rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    rows = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    """A WebP whose header claims a canvas."""
    canvas = b"\x00" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int) -> bytes:
    """A GIF of 1x1 pixels on a screen of another size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00\x3b"


def tiff(width: int, height: int, bits: int, sample_format: int) -> bytes:
    """An uncompressed TIFF that claims a size."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 4, height), (279, 4, width * height * bits // 8 % 2**32), (339, 3, sample_format)]
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def write_coco(folder: Path, height: int, width: int, segmentation: object) -> Path:
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    (folder / "val2017/a.jpg").write_bytes(png(6, 4, 2))
    image = {"id": 1, "file_name": "a.jpg", "height": height, "width": width}
    content = {"images": [image], "annotations": [{"image_id": 1, "category_id": 1, "segmentation": segmentation}]}
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(content))
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return folder


def write_captions(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(png(6, 4, 2))
    (folder / name).write_text(text)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_files_that_claim_much_are_refused_in_little_memory(tmp_path: Path) -> None:
    images = {
        "rgba.png": png(22000, 22000, 6),
        "deep.png": png(22000, 22000, 0, 16),
        "grey.png": png(60000, 60000, 0),
        "a.webp": webp(16383, 16383),
        "a.gif": gif(22000, 22000),
        "float.tif": tiff(20000, 20000, 32, 3),
        "integer.tif": tiff(2**31 - 1, 2**31 - 1, 32, 2),
        "a.bmp": bmp(30000, 30000),
        "a.ppm": b"P6 40000 40000 255\n",
        "a.pgm": b"P5 40000 40000 65535\n",
    }
    lines = []
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
        lines.append(f"image {tmp_path / name}")
    (tmp_path / "mask.png").write_bytes(png(12000, 12000, 0))
    lines.append(f"mask {tmp_path / 'mask.png'}")
    regions = {
        "large": (10**5, 10**5, [[0, 0, 1, 0, 1, 1]]),
        "runs": (4, 6, {"size": [10**5, 10**5], "counts": [10**10]}),
        "packed": (4, 6, {"size": [10**5, 10**5], "counts": "o" * 50}),
        "nested": (4, 6, None),
    }
    for name, (height, width, segmentation) in regions.items():
        lines.append(f"coco {write_coco(tmp_path / name, height, width, segmentation)}")
    for split in ("train", "val"):
        (tmp_path / f"nested/annotations/instances_{split}2017.json").write_text("[" * 10**6)
    long = "ball " * 10**6
    row = json.dumps({"file_name": "a.png", "text": long})
    lines += [
        f"captions {write_captions(tmp_path / 'csv', 'metadata.csv', f'file_name,caption{chr(10)}a.png,{long}')}",
        f"captions {write_captions(tmp_path / 'deep', 'metadata.jsonl', '[' * 10**6)}",
        f"captions {write_captions(tmp_path / 'json', 'metadata.jsonl', row)}",
        f"captions {write_captions(tmp_path / 'huge', 'metadata.csv', '')}",
    ]
    with (tmp_path / "huge/metadata.csv").open("r+b") as file:
        file.truncate(limits.MAX_TABLE_BYTES + 1)  # sparse
    run = subprocess.run(
        [sys.executable, "-c", OPENER % (ALLOWED, ALLOWED)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answers = dict(zip(lines, run.stdout.splitlines(), strict=True))
    wrong = {line: answer for line, answer in answers.items() if not answer.startswith("refused: ")}
    assert not wrong
    assert not any(re.search("MemoryError|memory", answer) for answer in answers.values()), answers


def test_the_page_on_limits_states_them() -> None:
    page = (Path(__file__).parents[2] / "docs/limits.md").read_text(encoding="utf-8")
    for name, value in vars(limits).items():
        if name.startswith("MAX_"):
            assert f"`{name}` | {value:,}" in page, name
