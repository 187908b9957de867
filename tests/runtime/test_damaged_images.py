"""Image files with lost and foreign bytes: one error, or an image of the stated size; one that was cut off is told."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cvpeft.errors import DataError
from cvpeft.runtime.image import decode

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": ("JPEG", {}),
    "JPEG in steps": ("JPEG", {"progressive": True}),
    "JPEG with EXIF": ("JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
    "PNG": ("PNG", {}),
    "PNG palette": ("PNG", {"bits": 4}),
    "WEBP": ("WEBP", {}),
    "WEBP without loss": ("WEBP", {"lossless": True}),
    "BMP": ("BMP", {}),
}
COUNTS = (150, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]))


def photo(kind: str, rng: np.random.Generator) -> bytes:
    """A picture with edges and noise, 8 to 99 pixels a side, as a file."""
    height, width = (int(side) for side in rng.integers(8, 100, 2))
    pixels = rng.integers(0, 40, (height, width, 3), np.uint8)
    pixels[height // 3 :, width // 4 :] += 150
    image, file = Image.fromarray(pixels), io.BytesIO()
    form, options = KINDS[kind]
    (image.convert("P") if "palette" in kind else image).save(file, form, **options)
    return file.getvalue()


def outcome(data: bytes) -> np.ndarray | str:
    """The pixels, or the code of the one error that is allowed."""
    try:
        pixels, full = decode(io.BytesIO(data))
    except DataError as fault:
        return fault.code
    assert pixels.shape == (*full, 3)
    return pixels


def lost(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off: most often anywhere, else near the end, where a decoder is most easily content."""
    near = rng.random() < 0.3
    return data[: len(data) - int(rng.integers(1, min(40, len(data)) if near else len(data)))]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes that are others, a piece that is there twice or not at all."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] = int(rng.integers(256))
    if rng.random() < 0.4:
        start = int(rng.integers(len(changed)))
        piece = changed[start : start + int(rng.integers(1, 60))]
        changed[start : start + len(piece)] = piece * int(rng.integers(0, 3))
    return bytes(changed)


@pytest.mark.parametrize("count", COUNTS)
def test_every_file_that_was_cut_off_is_told(count: int) -> None:
    """What is lost behind the last pixel (an end mark, a checksum) may be missed: then no pixel is another."""
    rng = np.random.default_rng(1)
    told: Counter[str] = Counter()
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        whole = photo(kind, rng)
        found = outcome(lost(whole, rng))
        if isinstance(found, str):
            told[found] += 1
        else:
            assert np.array_equal(found, decode(io.BytesIO(whole))[0]), (kind, number)
            told["whole"] += 1
    assert told["IMAGE"] > 0.8 * count, told


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_files_decode_or_raise_a_data_error(count: int) -> None:
    rng = np.random.default_rng(2)
    ends: Counter[str] = Counter()
    for number in range(count):
        found = outcome(mutated(photo(list(KINDS)[number % len(KINDS)], rng), rng))
        ends[found if isinstance(found, str) else "decoded"] += 1
    assert {"decoded", "IMAGE"} <= set(ends), ends
