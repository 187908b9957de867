"""Malformed and hostile image files, and large or odd ones that are all right."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.runtime.hostile_models import Case, content

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2, data: bytes | None = None) -> bytes:
    """A PNG that claims a size; black as far as `data` goes."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(100)) if data is None else data
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """`count` zero bytes, deflated without ever being held."""
    deflate, out = zlib.compressobj(9), b""
    for start in range(0, count, 2**20):
        out += deflate.compress(bytes(min(2**20, count - start)))
    return out + deflate.flush()


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (200, 150), **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def cut(kind: str, part: float) -> Callable[[Path], Any]:
    data = saved(kind)
    return content(data[: int(part * len(data))])


def jpeg_size(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = saved("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def bmp_size(width: int, height: int) -> bytes:
    data = saved("BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def webp_canvas(side: int) -> bytes:
    """An extended WebP that claims a canvas."""
    body = saved("WEBP", lossless=True)[12:]
    canvas = struct.pack("<I", side - 1)[:3]
    head = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(body)) + b"WEBP" + head + body


def animated(kind: str) -> bytes:
    file, frames = io.BytesIO(), [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a.txt", "x")
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_scans(count: int, *, side: int = 64, between: bytes = b"") -> bytes:
    """A grey progressive JPEG of `count` scans, of which each after the first means all blocks in a few bytes."""
    frame = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
    tables = segment(0xC4, b"\0\1" + bytes(16)) + segment(0xC4, b"\x10\1\1" + bytes(14) + b"\xe0\0")
    head = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame) + tables
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + between + b"\xaa" * ((side // 8) ** 2 // 4)
    dc = segment(0xDA, b"\1\1\0\0\0\0") + bytes((side // 8) ** 2 // 8)
    return b"\xff\xd8" + head + dc + scan * (count - 1) + b"\xff\xd9"


TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zeros(200 * 2**20))
PROFILE_BOMB = chunk(b"iCCP", b"a\0\0" + zeros(200 * 2**20))
INTERNATIONAL_BOMB = chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(200 * 2**20))

IMAGES = {
    "empty.jpg": Case(content(b""), "IMAGE", "empty"),
    "one_byte.png": Case(content(b"\x89"), "FORMAT", "unknown kind"),
    "random.jpg": Case(content(np.random.default_rng(0).bytes(10_000)), "FORMAT", "unknown kind"),
    "random_jpeg.jpg": Case(content(b"\xff\xd8\xff" + np.random.default_rng(0).bytes(10_000)), "IMAGE", "damaged"),
    "random_png.png": Case(content(SIGNATURE + np.random.default_rng(0).bytes(10_000)), "IMAGE", "damaged"),
    "random_bmp.bmp": Case(content(b"BM" + np.random.default_rng(0).bytes(10_000)), "IMAGE", "damaged"),
    "random_webp.webp": Case(content(b"RIFF\x10\x27\0\0WEBPVP8 " + bytes(10_000)), "IMAGE", "damaged"),
    "html.jpg": Case(content(b"<!DOCTYPE html><html><body>403</body></html>"), "FORMAT", "unknown kind"),
    "svg.png": Case(content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "FORMAT", "unknown kind"),
    "lfs.jpg": Case(content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "IMAGE", "git lfs pull"),
    "tiff.jpg": Case(content(saved("TIFF")), "FORMAT", "TIFF"),
    "gif.png": Case(content(saved("GIF")), "FORMAT", "GIF"),
    "pdf.jpg": Case(content(b"%PDF-1.7\n" + saved("JPEG")), "FORMAT", "PDF"),
    "eps.jpg": Case(content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "FORMAT", "unknown kind"),
    "psd.jpg": Case(content(b"8BPS\0\1" + bytes(100)), "FORMAT", "Photoshop"),
    "heic.jpg": Case(content(b"\0\0\0\x18ftypheic" + bytes(50)), "FORMAT", "HEIC"),
    "zip.jpg": Case(content(archive()), "FORMAT", "unknown kind"),
    **{f"cut_{part}.jpg": Case(cut("JPEG", part), "IMAGE", "damaged") for part in (0.01, 0.1, 0.5, 0.9)},
    **{f"cut_{part}.png": Case(cut("PNG", part), "IMAGE", "damaged") for part in (0.0003, 0.1, 0.5, 0.9)},
    **{f"cut_{part}.webp": Case(cut("WEBP", part), "IMAGE", "damaged") for part in (0.01, 0.5, 0.9)},
    **{f"cut_{part}.bmp": Case(cut("BMP", part), "IMAGE", "damaged") for part in (0.0003, 0.5, 0.9)},
    "ihdr_most.png": Case(content(png(2**31 - 1, 2**31 - 1)), "PIXELS", "more than the limit"),
    "ihdr_wide.png": Case(content(png(2**31 - 1, 1)), "PIXELS", "more than the limit"),
    "ihdr_beyond.png": Case(content(png(2**32 - 1, 2**32 - 1)), "PIXELS", "more than the limit"),
    "ihdr_zero.png": Case(content(png(0, 0)), "IMAGE", "damaged"),
    "ihdr_flat.png": Case(content(png(100, 0)), "IMAGE", "damaged"),
    "bomb.png": Case(content(png(100_000, 100_000, depth=1, colour=0, data=zeros(2**20))), "PIXELS", "limit"),
    "bomb_small.png": Case(content(png(11_000, 11_000, depth=1, colour=0, data=zeros(2**24))), "PIXELS", "limit"),
    "too_little.png": Case(content(png(9_000, 9_000)), "IMAGE", "damaged"),
    "depth.png": Case(content(png(10, 10, depth=16, data=zlib.compress(bytes(610)))), "DEPTH", "16 or more"),
    "bad_depth.png": Case(content(png(10, 10, depth=77)), "IMAGE", "damaged"),
    "text_bomb.png": Case(content(png(10, 10, TEXT_BOMB)), "IMAGE", "damaged"),
    "profile_bomb.png": Case(content(png(10, 10, PROFILE_BOMB)), "IMAGE", "damaged"),
    "international_bomb.png": Case(content(png(10, 10, INTERNATIONAL_BOMB)), "IMAGE", "damaged"),
    "chunk_length.png": Case(content(SIGNATURE + b"\x7f\xff\xff\xffIHDR" + bytes(100)), "IMAGE", "damaged"),
    "animated.png": Case(content(animated("PNG")), "ANIMATED", "animated"),
    "animated.webp": Case(content(animated("WEBP")), "ANIMATED", "animated"),
    "frames.png": Case(
        content(png(10, 10, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))), "ANIMATED", "animated"
    ),
    "sof_most.jpg": Case(content(jpeg_size(65_500, 65_500)), "PIXELS", "limit"),
    "sof_zero.jpg": Case(content(jpeg_size(0, 0)), "IMAGE", "damaged"),
    "scans.jpg": Case(content(jpeg_scans(200_000)), "IMAGE", "more than 100 scans"),
    "bmp_most.bmp": Case(content(bmp_size(2**31 - 1, 2**31 - 1)), "PIXELS", "limit"),
    "bmp_below.bmp": Case(content(bmp_size(9_999, -9_999)), "IMAGE", "damaged"),
    "bmp_negative.bmp": Case(content(bmp_size(-5, 10)), "PIXELS", "limit"),
    "canvas.webp": Case(content(webp_canvas(16_383)), "PIXELS", "limit"),
    "folder.jpg": Case(lambda file: file.mkdir(), "READ", "cannot be opened"),
    "pipe.jpg": Case(os.mkfifo, "READ", "a pipe"),
    "device.jpg": Case(lambda file: file.symlink_to("/dev/zero"), "READ", "a device"),
    "random_device.png": Case(lambda file: file.symlink_to("/dev/urandom"), "READ", "a device"),
    "dangling.jpg": Case(lambda file: file.symlink_to("absent.jpg"), "MISSING", "does not exist"),
    "circle.jpg": Case(lambda file: file.symlink_to(file.name), "IMAGE", ""),
}  # fmt: skip

# What looks odd, and is read all the same
HARMLESS = {
    "cmyk.jpg": content(saved("JPEG", "CMYK")),
    "with_zip.jpg": content(saved("JPEG") + archive()),
    "progressive.jpg": content(saved("JPEG", progressive=True)),
    "scans_100.jpg": content(jpeg_scans(100)),
    "sof_larger.jpg": content(jpeg_size(1_000, 1_000)),  # libjpeg fills up with grey, and nothing tells it
    "more_pixels.png": content(png(10, 10, data=zeros(2**28))),
}


def turned(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9_990, 9_990)).save(file, exif=exif)


# Just below the limit of pixels: what costs the most that is not refused
LARGE: dict[str, Callable[[Path], Any]] = {
    "bits.png": lambda file: file.write_bytes(png(9_990, 9_990, depth=1, colour=0, data=zeros(9_990 * 1_250))),
    "alpha.png": lambda file: file.write_bytes(png(9_990, 9_990, colour=6, data=zeros(9_990 * 39_961))),
    "turned.jpg": turned,
}
