"""How often a decoder would go over a JPEG: its scans, counted without decoding it.

A scan may be 75 bytes long and mean all pixels, so a small file can keep a decoder busy for hours. The file is walked
as libjpeg walks it (jdmarker.c, jdinput.c), or what is counted here were not what is decoded.
"""

from __future__ import annotations

import re
from typing import IO

__all__ = ["MOST_SCANS", "MOST_SEGMENTS", "too_many_scans"]

MOST_SCANS = 100  # a progressive JPEG of a camera or an editor has about 10
MOST_SEGMENTS = 10_000  # a photo has some dozens; each is a step of this program
CHUNK = 2**14  # bytes
# Markers with a segment, and the end. The others have none: libjpeg skips them in pixel data, or refuses the file.
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOFn: of these the first one counts
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
END, SCAN = 0xD9, 0xDA


def too_many_scans(file: IO[bytes]) -> bool:
    """Whether a JPEG has more than MOST_SCANS scans that are decoded; the file's position stays as it is.

    Of an ordinary JPEG, whose one scan holds all components, the head alone is read.
    """
    before = file.tell()
    file.seek(0)
    try:
        return _too_many(file)
    finally:
        file.seek(before)


def _too_many(file: IO[bytes]) -> bool:
    kind = components = scans = 0
    for _ in range(MOST_SEGMENTS):
        marker = _next_marker(file)
        if marker is None or marker == END:
            return False
        content = _content(file)
        if marker in FRAMES and not kind:
            kind, components = marker, content[5] if len(content) > 5 else 0
        if marker == SCAN:
            scans += 1
            if scans == 1 and kind not in PROGRESSIVE and content[:1] == bytes([components]):
                return False  # all of the image: no decoder looks at what comes after it
            if scans > MOST_SCANS:
                return True
    return True


def _next_marker(file: IO[bytes]) -> int | None:
    """The next marker from here on, the file after it; pixel data are passed over. None: the file ends."""
    last = b""
    while chunk := file.read(CHUNK):
        if found := MARKER.search(last + chunk):
            file.seek(found.end() - len(last) - len(chunk), 1)
            return found[1][0]
        last = chunk[-1:]
    return None


def _content(file: IO[bytes]) -> bytes:
    """What stands in a segment, after its length."""
    return file.read(max(0, int.from_bytes(file.read(2), "big") - 2))
