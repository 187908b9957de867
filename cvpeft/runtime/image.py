"""Photograph -> network input: the one decoder and the one letterbox.

Training, evaluation and deployment all call these functions, so that they cannot differ. Needs numpy and Pillow only.
Sizes are (height, width); boxes are x1 y1 x2 y2 in pixels, upright.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cvpeft.errors import DataError
from cvpeft.runtime.jpeg import MOST_SCANS, MOST_SEGMENTS, too_many_scans

__all__ = [
    "FORMATS", "MAX_PIXELS", "PAD", "Letterbox", "Size", "decode", "fit", "letterbox", "orientation", "resize",
    "upright_size",
]  # fmt: skip

Size = tuple[int, int]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # JPEG stands for the multi-picture files of phones too
MAX_PIXELS = 100_000_000
STRIP = 512  # rows
PAD = 114  # grey of the bars beside the image

ORIENTATION = 0x0112  # EXIF tag; what turns the stored pixels (h, w, 3) upright, by its value
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
SWAPPED = (5, 6, 7, 8)  # values that swap width and height
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
SIGNATURES = (  # first byte, end, values, what such a file is
    (4, 12, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypmif1", b"ftypmsf1"), "a HEIC photo (iPhone)"),
    (4, 12, (b"ftypavif", b"ftypavis"), "an AVIF image"),
    (0, 4, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "a TIFF or raw camera image"),
    (0, 4, (b"GIF8",), "a GIF image"),
    (0, 4, (b"8BPS",), "a Photoshop image"),
    (0, 4, (b"%PDF",), "a PDF document"),
    (0, 8, (b"\0\0\0\x0cjP  ",), "a JPEG 2000 image"),
    (0, 2, (b"\xff\x0a",), "a JPEG XL image"),
)


def decode(
    source: Path | BinaryIO, *, at_least: Size | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, Size]:
    """Pixels (H, W, 3) uint8 RGB, upright and read-only, and the upright full (height, width) of the file.

    EXIF orientation is applied here and nowhere else; an EXIF block that cannot be read counts as upright.
    Grey is repeated, palettes are looked up, transparency is laid over white; colour profiles are not applied.
    at_least: a large JPEG is decoded at 1/2, 1/4 or 1/8 while the upright result stays at least this (height, width).
    max_pixels: an image with more is refused by its header, before anything is decoded; never above MAX_PIXELS.
    Raises DataError that names the file: missing, not an image, truncated, 16 bit, animated, above max_pixels, a JPEG
    of more scans than any camera writes.
    """
    pixels, orientation, full = _stored(source, at_least, min(max_pixels, MAX_PIXELS))
    turn = TURNS.get(orientation)
    upright = pixels if turn is None else np.ascontiguousarray(turn(pixels))
    upright.setflags(write=False)
    return upright, full


def _stored(source: Path | BinaryIO, at_least: Size | None, limit: int) -> tuple[np.ndarray, int, Size]:
    """Pixels as they are stored, EXIF orientation, and the upright full size; Pillow's image is freed on return."""
    with _guard(source, limit), Image.open(source, formats=FORMATS) as image:
        _check(image, source, limit)
        orientation = _orientation(image)
        full = _upright(image, orientation)
        if at_least is not None:
            height, width = at_least[::-1] if orientation in SWAPPED else at_least
            image.draft("RGB", (width, height))
        return _rgb(image), orientation, full


def upright_size(source: Path | BinaryIO) -> Size:
    """(height, width) of the upright image without decoding it (a PNG's EXIF may stand last, so PNG is decoded).

    Raises DataError as `decode` does.
    """
    with _guard(source), Image.open(source, formats=FORMATS) as image:
        _check(image, source)
        return _upright(image, _orientation(image))


def orientation(source: Path | BinaryIO) -> int:
    """EXIF orientation 1..8 as it is stored; 1 where there is none that can be read. Raises DataError as `decode`."""
    with _guard(source), Image.open(source, formats=FORMATS) as image:
        return _orientation(image)


@dataclass(frozen=True)
class Letterbox:
    """Where an image of size `source` lies in a network input of size `size`: resized to `inner`, moved by (top, left).

    The two axes have their own exact scale, inner / source, because `inner` is rounded to whole pixels.
    """

    source: Size
    size: Size
    inner: Size
    top: int
    left: int

    def forward(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in source pixels -> boxes (N, 4) float64 in network pixels."""
        return np.asarray(boxes, np.float64).reshape(-1, 4) * self._scale() + self._offset()

    def inverse(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in network pixels -> boxes (N, 4) float64 in source pixels, clipped to the image."""
        height, width = self.source
        boxes = (np.asarray(boxes, np.float64).reshape(-1, 4) - self._offset()) / self._scale()
        return np.clip(boxes, 0, (width, height, width, height))

    def paste(self, image: np.ndarray) -> np.ndarray:
        """Image (inner h, inner w, 3) uint8 -> canvas (H, W, 3) uint8 with grey bars."""
        canvas = np.full((*self.size, 3), PAD, np.uint8)
        canvas[self.top : self.top + self.inner[0], self.left : self.left + self.inner[1]] = image
        return canvas

    def _scale(self) -> np.ndarray:
        y, x = self.inner[0] / self.source[0], self.inner[1] / self.source[1]
        return np.array((x, y, x, y))

    def _offset(self) -> np.ndarray:
        return np.array((self.left, self.top, self.left, self.top))


def fit(source_hw: Size, size_hw: Size) -> Letterbox:
    """The largest centred placement of an image in the network input that keeps its aspect ratio."""
    scale = min(size_hw[0] / source_hw[0], size_hw[1] / source_hw[1])
    height, width = (max(1, min(round(side * scale), room)) for side, room in zip(source_hw, size_hw, strict=True))
    return Letterbox(source_hw, size_hw, (height, width), (size_hw[0] - height) // 2, (size_hw[1] - width) // 2)


def letterbox(image: np.ndarray, size_hw: Size, source_hw: Size | None = None) -> tuple[np.ndarray, Letterbox]:
    """Image (h, w, 3) uint8 -> network input (H, W, 3) uint8 and the geometry between them.

    source_hw: full size of the photograph, which boxes refer to, where `image` was decoded at a fraction of it.
    """
    geometry = fit(source_hw or (image.shape[0], image.shape[1]), size_hw)
    return geometry.paste(resize(image, geometry.inner)), geometry


def resize(image: np.ndarray, size_hw: Size) -> np.ndarray:
    """Bilinear with antialiasing, (h, w, 3) -> (H, W, 3) uint8; from 4x on averaged by a whole factor first."""
    if image.shape[:2] == size_hw:
        return image
    size = (size_hw[1], size_hw[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _check(image: ImageFile.ImageFile, source: Path | BinaryIO, limit: int = MAX_PIXELS) -> None:
    if image.width * image.height > limit:
        raise _too_large(source, f"{image.width}x{image.height} pixels", limit)
    if image.mode in DEEP_MODES or (
        image.format == "PNG" and any("16" in str(tile.args) for tile in getattr(image, "tile", ()))
    ):
        what, why = "the image has 16 or more bits per channel", "how they map to 8 bits cannot be guessed"
        raise DataError("DEPTH", what, where=_name(source), why=why, fix="convert it to 8 bits per channel")
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        fix = "save the frame that was labelled as a JPEG or PNG"
        raise DataError("ANIMATED", "the image is animated", where=_name(source), fix=fix)
    if image.format in ("JPEG", "MPO") and image.fp and too_many_scans(image.fp):
        what = f"the JPEG has more than {MOST_SCANS} scans or {MOST_SEGMENTS} segments"
        why = "a decoder goes over the whole image in each scan, which could take hours"
        raise DataError("IMAGE", what, where=_name(source), why=why, fix="save it again as an ordinary JPEG")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block raises whatever its parser met first
        return 1


def _upright(image: Image.Image, orientation: int) -> Size:
    return (image.width, image.height) if orientation in SWAPPED else (image.height, image.width)


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels (h, w, 3), converted in strips: Pillow would hold several copies of a large image at once."""
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        bottom = min(top + STRIP, image.height)
        pixels[top:bottom] = np.asarray(_opaque(image.crop((0, top, image.width, bottom))))
    return pixels


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _guard(source: Path | BinaryIO, limit: int = MAX_PIXELS) -> Iterator[None]:
    """Whatever goes wrong while an image is read becomes one DataError that names the file.

    Pillow's own warnings are silent: it warns of sizes between two limits, where `_check` refuses by one limit before
    anything is decoded, and of EXIF that it cannot read, which counts as upright.
    """
    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(source, Path):
                _check_regular(source)
            yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError("MISSING", "the image file does not exist", where=name) from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError("READ", f"the image cannot be opened ({error.strerror})", where=name) from error
    except Image.DecompressionBombError as error:
        raise _too_large(source, "far more pixels", limit) from error
    except UnidentifiedImageError as error:
        raise _unknown_format(source) from error
    except Exception as error:  # damaged bytes raise OSError, ValueError, SyntaxError, struct.error, IndexError...
        what = f"the image is damaged or cut off ({str(error).strip('. ') or type(error).__name__})"
        raise DataError("IMAGE", what, where=name, fix=_again(source)) from error


def _check_regular(source: Path) -> None:
    """A pipe would be waited for, and a device read, without an end."""
    mode = source.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what, fix = "it is a pipe or a device, not a file", "name a file"
        raise DataError("READ", f"the image cannot be opened ({what})", where=str(source), fix=fix)


def _too_large(source: Path | BinaryIO, found: str, limit: int) -> DataError:
    what = f"the image has {found}, more than the limit of {limit / 1_000_000:g} million"
    why = "decoding it could exhaust the memory"
    fix = "scale it down" + (", and its boxes with it" if isinstance(source, Path) else "")
    return DataError("PIXELS", what, where=_name(source), why=why, fix=fix)


def _again(source: Path | BinaryIO) -> str:
    """What to do about a damaged image; only a file may belong to a data set."""
    return "copy the file again from its origin" + (", or take it out of the json" if isinstance(source, Path) else "")


def _unknown_format(source: Path | BinaryIO) -> DataError:
    head = _head(source)
    if not head:
        return DataError("IMAGE", "the image file is empty", where=_name(source), fix=_again(source))
    if head.startswith(b"version https://git-lfs"):
        what = "the file is a Git LFS pointer, not the image"
        return DataError("IMAGE", what, where=_name(source), fix="run `git lfs pull` in its repository")
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM")) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return DataError("IMAGE", "the image is damaged in its header", where=_name(source), fix=_again(source))
    kinds = (kind for start, end, values, kind in SIGNATURES if head[start:end] in values)
    what = f"the file is {next(kinds, 'of an unknown kind')}; JPEG, PNG, WebP and BMP are read"
    return DataError("FORMAT", what, where=_name(source), fix="convert it to JPEG or PNG; renaming does not help")


def _head(source: Path | BinaryIO) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(32)
    source.seek(0)
    return source.read(32)


def _name(source: Path | BinaryIO) -> str:
    return str(source if isinstance(source, Path) else getattr(source, "name", "image"))
