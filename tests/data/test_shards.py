"""Shards with members of many kinds, damaged, or from other systems."""

import io
import itertools
import tarfile
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from grouping_zoo.data import files, shards
from grouping_zoo.data.captioned import shard_stream
from grouping_zoo.data.image_text import ImageTextStream, SampleMaker
from grouping_zoo.data.images import FORMATS, CorruptImages
from grouping_zoo.data.shards import read_shards


def encoded(kind: str, value: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, kind)
    return file.getvalue()


def write(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def captions(folder: Path, count: int, corrupt: CorruptImages | None = None) -> list[str]:
    """Captions of the first samples of a stream, as their one token."""
    texts: list[str] = []

    def tokenize(given: list[str]) -> torch.Tensor:
        texts.append(given[0])
        return torch.zeros(len(given), 1, dtype=torch.int64)

    make = SampleMaker(transform=lambda view: view, tokenize=tokenize, num_nouns=0)
    list(itertools.islice(ImageTextStream(shard_stream(folder, corrupt), make), count))
    return sorted(texts)


def test_every_kind_of_image_in_any_case_is_read(tmp_path: Path) -> None:
    endings = ["jpg", "png", "JPG", "webp", "jfif", *(["avif"] if "AVIF" in FORMATS else [])]
    for shard, ending in enumerate(endings):
        kind = {"jpg": "jpeg", "jfif": "jpeg"}.get(ending.lower(), ending.lower())
        write(tmp_path / f"{shard}.tar", {f"{shard}.{ending}": encoded(kind), f"{shard}.txt": b"a ball"})
    corrupt = CorruptImages(minimum_count=1)
    assert captions(tmp_path, len(endings), corrupt) == ["a ball"] * len(endings)
    assert not corrupt.reasons


def test_kinds_mixed_within_a_shard_are_read(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number, kind in enumerate(("jpeg", "png", "jpeg", "png")):
        members |= {f"d.x/{number}.{kind}": encoded(kind), f"d.x/{number}.txt": f"ball {number}".encode()}
    rows = list(read_shards([write(tmp_path / "0.tar", members)]))
    assert [row["key"] for row in rows] == [f"d.x/{number}" for number in range(4)]
    assert [row["caption"] for row in rows] == [f"ball {number}".encode() for number in range(4)]
    assert [row["image"]["path"] for row in rows] == ["d.x/0.jpeg", "d.x/1.png", "d.x/2.jpeg", "d.x/3.png"]


def test_members_of_other_kinds_and_systems_are_passed_over(tmp_path: Path) -> None:
    members = {"a.jpg": encoded("jpeg"), "a.pth": b"\x80\x04.", "a.npy": b"x", "a.txt": b"a ball", "._a.jpg": b"mac"}
    (row,) = read_shards([write(tmp_path / "0.tar", members)])
    assert set(row) == {"key", "image", "caption"}
    assert row["caption"] == b"a ball"


def test_captions_of_json_members_are_read_and_a_text_comes_first(tmp_path: Path) -> None:
    members = {"a.jpg": encoded("jpeg"), "a.json": b'{"caption": "of json"}', "b.jpg": encoded("jpeg"), "b.json": b"{"}
    members |= {"c.jpg": encoded("jpeg"), "c.json": b'{"text": "no"}', "c.txt": b"of text"}
    write(tmp_path / "0.tar", members)
    corrupt = CorruptImages()
    assert captions(tmp_path, 2, corrupt) == ["of json", "of text"]
    write(tmp_path / "0.tar", {"a.jpg": encoded("jpeg"), "a.json": b"[" * 10**5})
    with pytest.raises(ValueError, match="expected readable rows, got none"):
        captions(tmp_path, 1)


def test_a_caption_in_another_encoding_is_counted_with_its_shard_and_key(tmp_path: Path) -> None:
    members = {"a.jpg": encoded("jpeg"), "a.txt": "café".encode("cp1252"), "b.jpg": encoded("jpeg"), "b.txt": b"a ball"}
    write(tmp_path / "0.tar", members)
    corrupt = CorruptImages()
    assert captions(tmp_path, 1, corrupt) == ["a ball"]
    assert captions(tmp_path, 2, corrupt) == ["a ball", "a ball"]
    (name,) = corrupt.reasons
    assert name.startswith("a.jpg (")
    assert "shard 0" in name
    assert "caption: expected UTF-8" in corrupt.reasons[name]


def test_the_first_shard_may_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(b"garbage" * 1000)
    write(tmp_path / "2.tar", {"a.jpg": encoded("jpeg"), "a.txt": b"a ball"})
    corrupt = CorruptImages()
    assert captions(tmp_path, 2, corrupt) == ["a ball", "a ball"]
    assert len(corrupt) == 2


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "0.tar", {"a.jpg": encoded("jpeg"), "a.txt": b"a ball"})
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/cache")
    with pytest.raises(OSError, match=r"file.*; if it is the cache of `datasets`, set HF_HOME"):
        shard_stream(path)


def test_members_above_the_limits_cost_their_row_and_are_not_read_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    members = {"a.jpg": bytes(5000), "a.txt": b"a ball", "b.jpg": encoded("jpeg"), "b.txt": b"ball " * 10**5}
    members |= {"c.jpg": encoded("jpeg"), "c.txt": b"a box"}
    members |= {"d.jpg": encoded("jpeg"), "d.json": b'{"text": "a"' + b" " * 10**7}
    write(tmp_path / "0.tar", members)
    rows = list(read_shards([str(tmp_path / "0.tar")]))
    assert len(rows[0]["image"]["bytes"]) == 1001
    assert len(rows[1]["caption"]) == 40_001
    corrupt = CorruptImages()
    assert captions(tmp_path, 1, corrupt) == ["a box"]
    assert captions(tmp_path, 2, corrupt) == ["a box", "a box"]
    reasons = "; ".join(corrupt.reasons.values())
    assert "expected at most 1000 bytes, got more" in reasons
    assert "expected a caption of at most 10000 characters, got 40001" in reasons
    assert "expected a caption, got none" in reasons
