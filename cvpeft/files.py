"""Files that are the old ones or the new ones at any moment, never half of one.

Whatever is not whole yet lies beside its place under another name; only when it is on the disk does it take the place.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvpeft.errors import DataError, ResourceError

__all__ = ["TEMP", "refuse_existing", "replacing", "sweep", "sync", "unwritable", "write_whole"]

TEMP = ".part"  # ending of what is not whole yet
FIX = "make room or permit writing, then run the same command"


@contextmanager
def replacing(file: Path, what: str = "the file", *, fix: str = FIX) -> Iterator[Path]:
    """A path beside `file` for the block to write to; when the block ends well, that file takes the place of `file`.

    The folder is made where it is absent. A power cut right after the block may bring the old file back, never a part.
    ResourceError, of which `what` and `fix` are words, where the block or what comes after meets an OSError; after that
    and after any other exception the old file stands and nothing lies beside it.
    """
    # The process is in the name, or two that write the same file would mix their bytes. The file's own name is not: it
    # may be as long as a name can be.
    part = file.with_name(f".{hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16]}.{os.getpid()}{TEMP}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        sync(part)
        os.replace(part, file)
    except OSError as error:
        raise unwritable(error, file, what, fix=fix) from error
    finally:
        with suppress(OSError):  # it would hide the error that is on its way
            part.unlink(missing_ok=True)


def write_whole(file: Path, content: str | bytes, what: str = "the file", *, fix: str = FIX) -> None:
    r"""Write a file, text as UTF-8, as `replacing` does; ResourceError where it cannot be written.

    Bytes of a file's name that are no UTF-8, surrogates in a text, become `\udce9` and the like, which JSON reads back.
    """
    with replacing(file, what, fix=fix) as part:
        part.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def refuse_existing(target: Path, *, fix: str = "name another file") -> None:
    """DataError where something has this name, be it a link that leads nowhere."""
    if os.path.lexists(target):
        raise DataError("EXISTS", "the file is there already", where=str(target), why="it would be lost", fix=fix)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written, in the folder and in those below; no other may be writing."""
    for leftover in [*folder.rglob(f"*{TEMP}"), *folder.rglob(".*.tmp")]:  # reports once ended in the latter
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def unwritable(
    error: Exception, where: Path, what: str = "the file", *, why: str = "", fix: str = FIX
) -> ResourceError:
    """The sentence for a write that failed; a full disk has a code of its own.

    error: an OSError, or a library's own that quotes one.
    """
    full = getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)  # safetensors'
    said = f"{what} cannot be written ({getattr(error, 'strerror', None) or error}; {_free(where):.0f} MB free)"
    return ResourceError("DISK" if full else "WRITE", said, where=str(where), why=why, fix=fix)


def _free(place: Path) -> float:
    """MB on the disk of the place, or of the first folder above it that is there."""
    there = (path for path in (place, *place.absolute().parents) if os.path.exists(path))  # Path.exists can raise
    return shutil.disk_usage(next(there)).free / 2**20
