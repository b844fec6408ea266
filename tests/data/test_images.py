import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from grouping_zoo.data.images import FORMATS, CorruptImages, as_rgb, grey_to_8_bits, list_images, open_image


def _encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def _gradient(mode="RGB", size=(20, 12)):
    values = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


KINDS_AND_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "jpeg": ("L", "YCbCr", "CMYK"),
    "tiff": ("CMYK", "RGB"),
    "gif": ("P",),
    "webp": ("RGB",),
    "ppm": ("RGB",),
    "bmp": ("RGB",),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in KINDS_AND_MODES.items() for mode in modes])
def test_modes_and_kinds(kind, mode):
    image = open_image(_encoded(_gradient(mode), kind))
    assert (image.mode, image.size) == ("RGB", (20, 12))
    if mode != "1":
        expected = np.asarray(_gradient(mode).convert("RGB")).astype(int)
        assert np.abs(np.asarray(image).astype(int) - expected).mean() < 12


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_thin_images(size):
    assert open_image(_encoded(Image.new("RGB", size, "red"), "png")).size == size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_becomes_white(mode):
    if mode in ("RGBA", "LA"):
        file = _encoded(Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0)), "png")
    elif mode == "RGB":
        file = _encoded(Image.new(mode, (4, 4)), "png", transparency=(0, 0, 0))
    else:
        file = _encoded(Image.new(mode, (4, 4)), "png", transparency=0)
    assert np.asarray(open_image(file)).min() == 255


def test_16_bit_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for kind in ("png", "tiff"):
        grey = np.asarray(open_image(_encoded(Image.fromarray(values), kind)))[..., 0]
        np.testing.assert_array_equal(grey.ravel(), np.arange(256))
    dark = open_image(_encoded(Image.fromarray(values // 13), "png"))  # up to 5041 of 14 bits
    assert np.asarray(dark).max() == 78  # a dark image stays dark


@pytest.mark.parametrize("scale", [1.0, 255.0, 1e6])
def test_float_images(scale):
    values = np.linspace(0, scale, 256, dtype=np.float32).reshape(16, 16)
    grey = np.asarray(open_image(_encoded(Image.fromarray(values), "tiff")))[..., 0]
    np.testing.assert_allclose(grey.ravel(), np.arange(256), atol=1)


def test_32_bit_and_not_finite_values():
    values = np.linspace(-1e9, 1e9, 256).astype(np.int32).reshape(16, 16)
    grey = np.asarray(open_image(_encoded(Image.fromarray(values), "tiff")))[..., 0]
    np.testing.assert_allclose(grey.ravel(), np.arange(256), atol=1)
    broken = np.full((4, 4), np.nan, dtype=np.float32)
    assert open_image(_encoded(Image.fromarray(broken), "tiff")).size == (4, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    file = _encoded(_gradient(), "png", exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(np.asarray(open_image(file)), np.asarray(reference))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_keeps_the_image():
    assert open_image(_encoded(_gradient(), "jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")).size == (20, 12)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    image = open_image(_encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    red, _, blue = image.getpixel((4, 4))
    assert red > 200 > blue


def test_unreadable_files_name_file_and_reason_in_one_line(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "webp", "bmp", "tiff"):
        data = _encoded(noise, kind).getvalue()
        (tmp_path / f"truncated.{kind}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "folder.png").mkdir()
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=path.name) as error:
            open_image(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        open_image(tmp_path / "nowhere.png")


def test_flipped_bytes_raise_nothing_but_value_errors():
    rng = np.random.default_rng(0)
    for kind in ("png", "jpeg", "gif", "tiff", "bmp", "webp"):
        data = np.frombuffer(_encoded(_gradient(), kind).getvalue(), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert open_image(io.BytesIO(damaged.tobytes())).mode == "RGB"
                except ValueError:
                    continue


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_large_images_are_scaled_down(kind):
    image = open_image(_encoded(_gradient(size=(400, 300)), kind), max_pixels=10_000)
    assert 5_000 < image.width * image.height <= 10_000
    assert image.width / image.height == pytest.approx(4 / 3, abs=0.05)


def _png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (height * (1 + (width + 7) // 8)), 1)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_pillows_own_limit_does_not_get_in_the_way():
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(_png_header(14_000, 13_000), max_pixels=100_000)  # Pillow raises above 179 megapixels
        with pytest.raises(ValueError, match="limit of 200000000"):
            open_image(_png_header(40_000, 20_000))
    assert image.width * image.height <= 100_000
    assert limit == Image.MAX_IMAGE_PIXELS


def test_list_images(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "notes.txt", "._a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]
    assert list_images([tmp_path / "notes.txt", str(tmp_path / "a.png")]) == [
        tmp_path / "notes.txt",
        tmp_path / "a.png",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"got none.*empty"):
        list_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="missing"):
        list_images(tmp_path / "missing")


def test_corrupt_images_stop_above_the_limit():
    few = CorruptImages(max_fraction=0.5, minimum_count=3)
    few.skip("a", ValueError("a is broken"))
    few.skip("a", ValueError("a is broken"))
    few.skip("b", ValueError("b is broken"))
    assert len(few) == 2  # each file once, and below the minimum count nothing stops
    with pytest.raises(ValueError, match=r"50%.*3 of 3.*a, b, c"):
        few.skip("c", ValueError("c is broken"))
    many = CorruptImages(max_fraction=0.5, minimum_count=3)
    for _ in range(10):
        many.count_read()
    for name in "abcdefghij":
        many.skip(name, ValueError(name))
    with pytest.raises(ValueError, match="11 of 21"):
        many.skip("k", ValueError("k"))


def test_every_ending_of_a_format_that_can_be_read_is_listed_and_the_others_are_counted(tmp_path, caplog):
    kinds = {"a.jfif": "jpeg", "b.JPE": "jpeg", "e.tif": "tiff", "f.pbm": "ppm"}
    kinds |= {"c.avif": "avif"} if "AVIF" in FORMATS else {}
    kinds |= {"d.jp2": "jpeg2000"} if "JPEG2000" in FORMATS else {}
    for name, kind in kinds.items():
        _gradient("1" if name == "f.pbm" else "RGB").save(tmp_path / name, kind)
    for name in ("x.heic", "y.heic", "readme.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"other")
    images = list_images(tmp_path)
    assert [path.name for path in images] == sorted(kinds)
    assert {open_image(path).size for path in images} == {(20, 12)}
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "left out 3 files" in warning
    assert ".heic 2" in warning


def test_links_to_files_and_folders_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "elsewhere/cat").mkdir(parents=True)
    for name in ("elsewhere/cat/a.png", "elsewhere/b.png"):
        _gradient().save(tmp_path / name)
    folder = tmp_path / "folder"
    (folder / "own").mkdir(parents=True)
    (folder / "linked").symlink_to(tmp_path / "elsewhere/cat", target_is_directory=True)
    (folder / "again").symlink_to(tmp_path / "elsewhere/cat", target_is_directory=True)
    (folder / "own/file.png").symlink_to(tmp_path / "elsewhere/b.png")
    (folder / "own/circle").symlink_to(folder, target_is_directory=True)
    (folder / "own/dangling.png").symlink_to(tmp_path / "nowhere.png")
    found = [str(path.relative_to(folder)) for path in list_images(folder)]
    assert found == ["again/a.png", "linked/a.png", "own/file.png"]


def test_postscript_is_not_drawn_whatever_its_name_is(tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: pytest.fail("started a program"))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("started a program"))
    (tmp_path / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ValueError, match=r"x\.jpg: expected a readable image"):
        open_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1000, 4095], [0, 62, 255]),  # 12 bits
        ([0, 100, 255], [0, 100, 255]),  # 8 bits in more
        ([0, 512, 1023], [0, 128, 255]),
        ([0, 30000, 65535], [0, 117, 255]),
        ([-1000, 1000, 3000], [0, 128, 255]),
        ([0, 10**6, 2 * 10**6], [0, 128, 255]),
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([float("nan"), 0.5, float("inf")], [0, 128, 0]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_grey_values_of_any_depth(values, expected):
    kind = np.float32 if isinstance(values[1], float) else np.int32
    array = np.array([values] * 300, dtype=kind)  # more rows than are scaled at once
    assert grey_to_8_bits(array).tolist() == [expected] * 300
    if max(np.nan_to_num(values, posinf=0)) > 1:
        file = _encoded(Image.fromarray(array), "tiff")
        assert np.asarray(open_image(file))[0, :, 0].tolist() == expected


def test_processors_see_colors_as_open_image_does():
    from grouping_zoo.hf.image_processing import ZooImageProcessor

    processor = ZooImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False)
    deep = (np.arange(256).reshape(16, 16) * 16).astype(np.uint16)  # 12 bits
    transparent = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(_encoded(_gradient(), "png", exif=exif))
    floats = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    for image in (Image.fromarray(deep), transparent, turned, floats, _gradient("LA"), _gradient("P")):
        found = (processor(image, return_tensors="pt")["pixel_values"][0] * 255).round().numpy()
        np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(as_rgb(image)))
    of_array = processor(deep[..., None], return_tensors="pt")["pixel_values"][0]
    of_image = processor(Image.fromarray(deep), return_tensors="pt")["pixel_values"][0]
    np.testing.assert_array_equal(of_array.numpy(), of_image.numpy())
