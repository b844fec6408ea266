"""Files that rows and annotations name: never out of their folder, never by another address than http, https or hf."""

import functools
import http.server
import io
import json
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from PIL import Image

from grouping_zoo.data.captioned import CaptionedImages, CaptionedStream, captioned_folder, hub_images
from grouping_zoo.data.files import file_in_one_of, file_inside, parse_json, read_remote, read_text
from grouping_zoo.data.image_text import ImageTextStream, SampleMaker
from grouping_zoo.data.images import CorruptImages
from grouping_zoo.data.sets import open_set


def encoded(value: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "png")
    return file.getvalue()


OUTSIDE = (
    "/etc/hostname",
    "../secret.png",
    "a/../../secret.png",
    "file:///etc/hostname",
    "http://127.0.0.1:1/a.png",
    "reference://a.jpg::file:///tmp/evil.json",
    "zip://a.png::http://127.0.0.1:1/a.zip",
    "a\0.png",
    "",
    None,
    5,
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^file: expected a path in "):
        file_inside(name, tmp_path)


def test_names_inside_are_followed_and_so_are_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").write_bytes(encoded())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert file_inside("linked/a.png", folder).read_bytes() == encoded()
    assert file_inside("x/../linked/./a.png", folder) == folder / "linked/a.png"
    assert file_in_one_of(str(folder / "a.png"), [tmp_path / "other", folder]) == folder / "a.png"
    for outside in (str(tmp_path / "secret.png"), f"{folder}/../secret.png", "a.png", "folder2/a.png"):
        with pytest.raises(ValueError, match="which leads out of it"):
            file_in_one_of(outside, [folder])


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "reference://a.jpg::file:///tmp/evil.json",
        "http://127.0.0.1:1/a::zip://b",
        "simplecache::http://127.0.0.1:1/a.png",
        "ftp://127.0.0.1/a.png",
        "http://a b",
        "HTTP://127.0.0.1/a.png",
        "memory://a.png",
    ],
)
def test_other_addresses_are_not_opened(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("opened"))
    with pytest.raises(ValueError, match="expected an address of http, https or hf"):
        read_remote(address)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a server, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.png").write_bytes(encoded(7))
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/a.png", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_stream_reads_addresses_and_a_table_does_not(served: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = served
    rows = {"file_name": [address], "caption": ["a ball"]}
    stream = CaptionedStream(datasets.Dataset.from_dict(rows).to_iterable_dataset(), "stream")
    found = stream.reader.read({"file_name": address, "caption": "a ball"}, "row 0", 0)
    assert found.image.getpixel((0, 0)) == (7, 7, 7)
    assert asked == ["/a.png"]
    with pytest.raises(ValueError, match=r"none\.png': expected to read it, got: .*404.*; check the address"):
        read_remote(address.replace("a.png", "none.png"))
    asked.pop()
    for name in (address, "../served/a.png", str(tmp_path / "served/a.png")):
        folder = tmp_path / "table"
        folder.mkdir(exist_ok=True)
        (folder / "metadata.csv").write_text(f"file_name,caption\n{name},a ball\n")
        with pytest.raises(ValueError, match=r"none of 1 is: .*expected a path in .*which leads out of it"):
            captioned_folder(folder)[0]
    with pytest.raises(ValueError, match="expected one of the data set's own"):
        CaptionedImages(datasets.Dataset.from_dict(rows), "table")[0]
    assert asked == ["/a.png"]


def test_tables_name_files_of_their_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(1))
    (tmp_path / "table/own.png").write_bytes(encoded(2))
    images = [{"path": str(tmp_path / name), "bytes": None} for name in ("secret.png", "table/own.png")]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": images, "text": ["a", "b"]}, features)
    table.to_parquet(tmp_path / "table/train.parquet")
    source = open_set(f"hub:{tmp_path / 'table'}", "train")
    assert source[0].image.getpixel((0, 0)) == (2, 2, 2)  # the next one that may be read
    (reason,) = source.corrupt.reasons.values()
    assert "which leads out of it" in reason
    captions = hub_images(str(tmp_path / "table"))
    assert captions[0].caption == "b"


def test_a_stream_of_a_table_does_not_leave_its_folder_either(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(1))
    rows = {"file_name": ["../secret.png", str(tmp_path / "secret.png")], "caption": ["a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table/train.parquet")
    stream = hub_images(str(tmp_path / "table"), streaming=True)
    make = SampleMaker(transform=lambda view: view, tokenize=lambda texts: texts, num_nouns=0)
    with pytest.raises(ValueError, match="expected readable rows, got none"):
        next(iter(ImageTextStream(stream, make)))
    assert len(stream.reader.corrupt) == 2


def test_text_and_json_are_bounded_and_their_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.csv: expected at most 3 bytes, got 4"):
        read_text(tmp_path / "a.csv", 3)
    with pytest.raises(ValueError, match=r"a\.csv: expected UTF-8"):
        read_text(tmp_path / "a.csv", 100)
    (tmp_path / "a.csv").write_bytes("\ufeffcafé".encode())
    assert read_text(tmp_path / "a.csv", 100) == "café"
    for text in ("[" * 10**5, b"\xff", "{", json.dumps(1) + "]"):
        with pytest.raises(ValueError, match=r"^name: expected JSON, got"):
            parse_json(text, "name")
    assert parse_json('{"a": [1]}', "name") == {"a": [1]}


def test_errors_of_many_files_tell_names_and_the_first_reason() -> None:
    corrupt = CorruptImages(minimum_count=2)
    corrupt.skip("a.jpg", ValueError("label map a.png: expected pixels of kind L or P, got RGB"))
    with pytest.raises(ValueError, match=r"got 2 of 2 \(a\.jpg, b\.jpg\); of the first: label map a\.png: .*got RGB$"):
        corrupt.skip("b.jpg", ValueError("other"))
