"""The one decoder and the one letterbox, on files of every kind that people hand over."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpeft.errors import DataError
from cvpeft.runtime import image as room
from cvpeft.runtime.image import Letterbox, decode, fit, letterbox, resize, upright_size
from cvpeft.runtime.jpeg import too_many_scans
from tests.runtime.hostile_images import jpeg_scans, segment

ORIENTATION = 0x0112
# What a camera stores, by EXIF value: the upright picture, transposed so that the value's turn undoes it.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def scene(height: int, width: int) -> np.ndarray:
    """A smooth picture whose corners differ, so that no turn of it looks like another."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 255 / width, y * 255 / height, (x + 2 * y) * 255 / (width + 2 * height))
    return np.stack(planes, -1).astype(np.uint8)


def save_turned(path: Path, picture: np.ndarray, orientation: int, **options: object) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](picture))).save(path, exif=exif, **options)
    return path


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that claims a size; black, and only as many bytes as deflate needs."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# -------------------------------------------------------------------------------------------------------------- upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 6), ("png", 0), ("webp", 12)])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str, tolerance: int) -> None:
    picture = scene(48, 80)
    path = save_turned(tmp_path / f"a.{suffix}", picture, orientation, quality=95)
    pixels, full = decode(path)
    assert full == (48, 80) == upright_size(path)
    assert np.abs(pixels.astype(int) - picture).max() <= tolerance


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_without_meaning_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(scene(40, 60)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png")[0], scene(40, 60))


@pytest.mark.filterwarnings("error")
def test_broken_exif_is_upright(tmp_path: Path) -> None:
    Image.fromarray(scene(40, 60)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    assert decode(tmp_path / "a.jpg")[1] == (40, 60)


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_never_goes_below_what_is_asked(tmp_path: Path, orientation: int) -> None:
    picture = scene(600, 1600)
    path = save_turned(tmp_path / "a.jpg", picture, orientation, quality=95)
    for at_least in ((300, 800), (150, 800), (301, 400), (75, 200), (600, 1600), (2000, 2000)):
        pixels, full = decode(path, at_least=at_least)
        assert full == (600, 1600)
        assert pixels.shape[0] >= min(600, at_least[0])
        assert pixels.shape[1] >= min(1600, at_least[1])
    assert decode(path, at_least=(75, 200))[0].shape == (75, 200, 3)
    assert decode(path, at_least=(300, 800))[0].shape == (300, 800, 3)


def test_draft_shows_the_same_picture(potholes: Path) -> None:
    path = sorted((potholes / "images").iterdir())[0]
    whole, part = decode(path)[0], decode(path, at_least=(200, 300))[0]
    assert part.shape == (320, 512, 3)
    assert np.abs(resize(whole, (320, 512)).astype(int) - part).mean() < 3


# --------------------------------------------------------------------------------------------------------------- scans


def sequential(scans: bytes) -> bytes:
    """A baseline JPEG of three components, cut before its scan, and the given ones instead."""
    file = io.BytesIO()
    Image.fromarray(scene(16, 16)).save(file, "JPEG")
    return file.getvalue()[: file.getvalue().index(b"\xff\xda")] + scans


SOME = segment(0xDA, b"\1\1\0\0\x3f\0")  # a scan of the first component alone, without data
ALL = segment(0xDA, b"\3\1\0\2\x11\3\x11\0\x3f\0") + bytes(20)
HIDING = b"\xff\x02\xff\xff"  # libjpeg skips the marker alone; a reader of its "length" would skip 65 kB


@pytest.mark.parametrize(
    ("jpeg", "refused"),
    [
        (jpeg_scans(100), False),
        (jpeg_scans(101), True),
        (jpeg_scans(100, between=b"\xff\0\xda\xff\xd3\xff\xff\0\xda"), False),  # no scans: bytes, a restart
        (jpeg_scans(300, between=HIDING), True),
        (jpeg_scans(300, between=b"\xff" * 20_000), True),
        (jpeg_scans(300, between=b"\xff\xd9"), False),  # it ends there
        (sequential(SOME * 101), True),
        (sequential(ALL + SOME * 300), False),
        (sequential(segment(0xE1, b"\xff\xd8" + SOME * 300) + ALL), False),  # as in a camera's thumbnail
        (sequential(segment(0xFE, b"") * 20_000 + ALL), True),
    ],
)
def test_more_scans_than_a_photo_has_are_refused(jpeg: bytes, refused: bool) -> None:
    if refused:
        with pytest.raises(DataError, match=r"E-IMAGE .* more than 100 scans or 10000 segments"):
            decode(io.BytesIO(jpeg))
    else:
        assert not too_many_scans(io.BytesIO(jpeg))


@pytest.mark.parametrize("size", [(20, 30), (3000, 2000)])
def test_a_progressive_photo_is_the_photo(size: tuple[int, int]) -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file, progressive in zip(files, (False, True), strict=True):
        Image.fromarray(scene(*size)).save(file, "JPEG", progressive=progressive, restart_marker_rows=1)
    plain, other = (decode(file)[0] for file in files)
    assert np.array_equal(plain, other)


def test_of_an_ordinary_jpeg_the_head_alone_is_read_to_count_its_scans(tmp_path: Path) -> None:
    path, read = tmp_path / "a.jpg", list[int]()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8)).save(path, quality=95)

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            read.append(size or 0)
            return super().read(size)

    file = Counted(path.read_bytes())
    file.seek(7)
    assert not too_many_scans(file)
    assert sum(read) < 300_000 < path.stat().st_size
    assert file.tell() == 7


# --------------------------------------------------------------------------------------------------------------- modes


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = scene(20, 30)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png")[0], np.repeat(grey[..., None], 3, 2))


def test_grey_jpeg_is_drafted_too(tmp_path: Path) -> None:
    Image.fromarray(scene(400, 400)[..., 0]).save(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg", at_least=(100, 100))[0].shape == (100, 100, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (4, 1), (0,) * len(mode))
    opaque = (0,) * (len(mode) - 1) + (255,)
    picture.putpixel((1, 0), opaque)
    picture.putpixel((2, 0), (*opaque[:-1], 128))
    picture.save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0][0, :, 0].tolist() == [255, 0, 127, 255]


def test_transparent_palette_is_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    assert decode(tmp_path / "a.png")[0].tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_bitmap_and_bilevel(tmp_path: Path) -> None:
    Image.fromarray(scene(20, 30)).save(tmp_path / "a.bmp")
    assert np.array_equal(decode(tmp_path / "a.bmp")[0], scene(20, 30))
    Image.new("1", (3, 2), 1).save(tmp_path / "b.png")
    assert (decode(tmp_path / "b.png")[0] == 255).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 60, 20)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decode(tmp_path / "a.jpg")[0].astype(int) - (200, 60, 20)).max() < 8


def test_open_files_are_read_like_paths(tmp_path: Path) -> None:
    Image.fromarray(scene(20, 30)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert np.array_equal(decode(file)[0], scene(20, 30))
    data = io.BytesIO((tmp_path / "a.png").read_bytes())
    assert decode(data)[1] == (20, 30)


# -------------------------------------------------------------------------------------------------------------- faults


def cut(data: bytes, part: float) -> bytes:
    return data[: int(len(data) * part)]


def encoded(kind: str, picture: np.ndarray | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene(64, 64) if picture is None else picture).save(file, kind, **options)
    return file.getvalue()


def sixteen_bit(channels: int) -> bytes:
    shape = (8, 8, channels) if channels > 1 else (8, 8)
    return cv2.imencode(".png", np.full(shape, 30000, np.uint16))[1].tobytes()


def animated(kind: str) -> bytes:
    file, frames = io.BytesIO(), [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


FAULTS = {
    "empty": (lambda: b"", "E-IMAGE", "is empty"),
    "text": (lambda: b"<html>not found</html>", "E-FORMAT", "unknown kind"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "E-IMAGE", "git lfs pull"),
    "gif": (lambda: encoded("GIF"), "E-FORMAT", "a GIF image"),
    "tiff": (lambda: encoded("TIFF"), "E-FORMAT", "a TIFF or raw camera image"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + b"\0" * 40, "E-FORMAT", "a HEIC photo"),
    "avif": (lambda: b"\0\0\0\x18ftypavif" + b"\0" * 40, "E-FORMAT", "an AVIF image"),
    "pdf": (lambda: b"%PDF-1.7" + b"\0" * 40, "E-FORMAT", "a PDF document"),
    "psd": (lambda: b"8BPS\0\1" + b"\0" * 40, "E-FORMAT", "a Photoshop image"),
    "jpeg header": (lambda: encoded("JPEG")[:10], "E-IMAGE", "damaged or cut off"),
    "png header": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "E-IMAGE", "damaged"),
    "jpeg half": (lambda: cut(encoded("JPEG"), 0.7), "E-IMAGE", "damaged or cut off"),
    "png half": (lambda: cut(encoded("PNG"), 0.7), "E-IMAGE", "damaged or cut off"),
    "webp half": (lambda: cut(encoded("WEBP"), 0.7), "E-IMAGE", "damaged"),
    "bmp half": (lambda: cut(encoded("BMP"), 0.7), "E-IMAGE", "damaged or cut off"),
    "16 bit grey": (lambda: sixteen_bit(1), "E-DEPTH", "16 or more bits"),
    "16 bit colour": (lambda: sixteen_bit(3), "E-DEPTH", "16 or more bits"),
    "16 bit alpha": (lambda: sixteen_bit(4), "E-DEPTH", "16 or more bits"),
    "apng": (lambda: animated("PNG"), "E-ANIMATED", "animated"),
    "animated webp": (lambda: animated("WEBP"), "E-ANIMATED", "animated"),
    "200 Mpx": (lambda: png(20_000, 10_000), "E-PIXELS", "limit of 100 million"),
    "101 Mpx": (lambda: png(10_100, 10_000), "E-PIXELS", "10100x10000"),
    "10 Gpx": (lambda: png(100_000, 100_000), "E-PIXELS", "limit of 100 million"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_file_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    make, code, words = FAULTS[kind]
    path = tmp_path / "strange name 井.jpg"
    path.write_bytes(make())
    with pytest.raises(DataError) as caught:
        decode(path, at_least=(32, 32))
    text = str(caught.value)
    assert text.startswith(f"{code} {path} - ")
    assert words in text
    assert "\n" not in text


def test_just_below_the_pixel_limit_only_the_missing_data_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(9_900, 10_000))
    with pytest.raises(DataError, match="E-IMAGE"):
        decode(tmp_path / "a.png")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"E-MISSING .*none\.jpg"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="E-READ"):
        decode(tmp_path)


# ----------------------------------------------------------------------------------------------------------- letterbox


sides = st.integers(1, 5000)


@given(source=st.tuples(sides, sides), size=st.tuples(st.integers(8, 1200), st.integers(8, 1200)), data=st.data())
def test_letterbox_round_trip(source: tuple[int, int], size: tuple[int, int], data: st.DataObject) -> None:
    geometry = fit(source, size)
    height, width = source
    x = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    box = np.array([[x[0], y[0], x[1], y[1]]])
    there = geometry.forward(box)
    assert np.abs(geometry.inverse(there) - box).max() < 1e-6
    assert there.min() >= -1e-6
    assert (there[0, 2:] <= np.array(size[::-1]) + 1e-6).all()


@given(source=st.tuples(sides, sides), size=st.tuples(st.integers(8, 1200), st.integers(8, 1200)))
def test_fit_fills_one_axis_and_keeps_the_other_inside(source: tuple[int, int], size: tuple[int, int]) -> None:
    geometry = fit(source, size)
    assert geometry.inner[0] == size[0] or geometry.inner[1] == size[1]
    assert all(0 < inner <= room for inner, room in zip(geometry.inner, size, strict=True))
    assert 0 <= size[0] - geometry.inner[0] - 2 * geometry.top <= 1
    assert 0 <= size[1] - geometry.inner[1] - 2 * geometry.left <= 1


def test_a_marked_rectangle_lands_where_forward_says() -> None:
    image = np.zeros((300, 500, 3), np.uint8)
    image[90:180, 100:350] = 255
    canvas, geometry = letterbox(image, (200, 200))
    assert (geometry.inner, geometry.top, geometry.left) == ((120, 200), 40, 0)
    assert canvas.shape == (200, 200, 3)
    rows, columns = np.nonzero(canvas[..., 0] > 200)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(geometry.forward(np.array([[100, 90, 350, 180]]))[0] - found).max() <= 1
    assert (canvas[:40] == 114).all()
    assert (canvas[160:] == 114).all()


def test_boxes_may_be_none() -> None:
    geometry = fit((300, 500), (200, 200))
    assert geometry.forward(np.zeros((0, 4))).shape == geometry.inverse([]).shape == (0, 4)


def test_inverse_clips_to_the_image() -> None:
    boxes = fit((300, 500), (200, 200)).inverse(np.array([[-5.0, 0, 250, 200]]))
    assert boxes.tolist() == [[0, 0, 500, 300]]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_the_number_16_in_a_size_is_no_depth(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (160, 116)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[1] == (116, 160)
    assert upright_size(tmp_path / "a.png") == (116, 160)


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    for side in (150, 90, 40):
        inner = resize(stripes, (side, side))[5:-5, 5:-5]
        assert abs(inner.mean() - 127.5) < 3
        assert inner.std() < 30


def test_boxes_refer_to_the_full_photograph(tmp_path: Path) -> None:
    path = save_turned(tmp_path / "a.jpg", scene(600, 1600), 6, quality=95)
    image, full = decode(path, at_least=(96, 160))
    assert image.shape[0] < full[0]
    canvas, geometry = letterbox(image, (96, 160), full)
    assert canvas.shape == (96, 160, 3)
    assert geometry == fit((600, 1600), (96, 160))
    assert isinstance(geometry, Letterbox)


def test_a_lower_pixel_limit_refuses_by_the_header_alone() -> None:
    header = png_header(3000, 2000)
    with pytest.raises(DataError, match=r"E-PIXELS image - .* 3000x2000 pixels, more than .* 5\.5 million"):
        decode(header, max_pixels=5_500_000)
    with pytest.raises(DataError, match="E-IMAGE"):  # allowed by its size, but there is nothing behind the header
        decode(header, max_pixels=6_000_000)


def test_what_is_not_a_file_belongs_to_no_json() -> None:
    with pytest.raises(DataError, match=r"from its origin$"):
        decode(io.BytesIO(b""))


def png_header(width: int, height: int) -> io.BytesIO:
    """A PNG that promises pixels and has none."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


def test_deployment_needs_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, cvpeft.runtime.image; print([m for m in ('torch', 'cv2', 'albumentations') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    assert all(hasattr(room, name) for name in room.__all__)
