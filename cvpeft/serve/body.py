"""The body of a request -> the bytes of one photograph, in memory and never above the limit.

Starlette's own reader of forms keeps large files in temporary ones on the disk; here nothing touches the disk.
"""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request

from cvpeft.errors import DataError, ResourceError
from cvpeft.serve.answers import DETECT

__all__ = ["read_photo"]

SECONDS = 60  # for the whole upload; who is slower would keep others out of the queue
FORM = "multipart/form-data"
BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
FILENAME = re.compile(rb"^content-disposition:[^\r\n]*;\s*filename\*?=", re.IGNORECASE | re.MULTILINE)
MOST_PARTS = 8  # of a form: a body full of boundaries would grow into millions of them
LONGEST_HEAD = 4096  # bytes of a part's own headers
ONE_FILE = "send one file, as in: curl -F photo=@photo.jpg http://HOST:PORT/detect"


async def read_photo(request: Request, limit: int, seconds: float = SECONDS) -> bytes:
    """The bytes of the image that was sent, as the body itself or as the one file of a form.

    limit: most bytes of the body; what exceeds it is refused by its Content-Length, or by the chunk that goes beyond.
    DataError: TYPE (no image type), BYTES (too large), FORM (not one file). ResourceError: SLOW.
    """
    kind = request.headers.get("content-type", "")
    plain = kind.partition(";")[0].strip().lower()
    if plain not in ("", "application/octet-stream", FORM) and not plain.startswith("image/"):
        what = f"the body is {plain[:60]!r}, neither an image nor {FORM}"
        raise DataError("TYPE", what, fix=f"say what it is: {DETECT}")
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, limit)
    except TimeoutError as error:
        what, why = f"the photo did not arrive within {seconds:g} seconds", "others wait for their turn"
        raise ResourceError("SLOW", what, why=why, fix="send a smaller photo") from error
    return _only_file(body, kind) if plain == FORM else body


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        body += chunk
    return bytes(body)


def _too_large(limit: int) -> DataError:
    what = f"the upload is larger than the limit of {limit / 2**20:g} MB"
    return DataError("BYTES", what, fix="save the photo as a JPEG of fewer pixels, or start the service with --max-mb")


def _only_file(body: bytes, kind: str) -> bytes:
    """The content of the one file in a form of RFC 7578; DataError for a damaged form or another number of files."""
    boundary = BOUNDARY.search(kind)
    if boundary is None:
        raise _bad_form("it names no boundary")
    marker = (boundary[1] or boundary[2]).encode("latin-1")  # as headers are decoded
    preamble, *parts = (b"\r\n" + body).split(b"\r\n--" + marker, MOST_PARTS)
    if preamble or not parts or not parts.pop().startswith(b"--"):
        raise _bad_form(f"it is cut off, or has {MOST_PARTS} parts or more")
    files = [content for content in map(_file, parts) if content is not None]
    if len(files) != 1:
        raise _bad_form(f"it holds {len(files)} files")
    return files[0]


def _file(part: bytes) -> bytes | None:
    """What a part holds if it is a file; None: a plain field."""
    head, blank, content = part.partition(b"\r\n\r\n")
    if not blank or len(head) > LONGEST_HEAD:
        raise _bad_form("a part has no end of its headers")
    return content if FILENAME.search(head) else None


def _bad_form(what: str) -> DataError:
    return DataError("FORM", f"the form cannot be used: {what}", fix=ONE_FILE)
