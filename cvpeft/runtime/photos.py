"""Which photographs and videos a call names, and which names its pictures get."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cvpeft.errors import DataError
from cvpeft.runtime.video import VIDEOS

__all__ = ["PROGRAM", "STAMP", "Photo", "find_photos", "is_drawn", "printable"]

PROGRAM = "cvpeft predict"  # the mark by which a later call knows the files of an earlier one
# What cameras and phones write. The decoder reads some of it and says of the rest what it is; nothing is passed over.
PHOTOS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".gif", ".jp2",
)  # fmt: skip
STAMP = r"_\d{6,}\.\d{3}\.jpg"  # what the pictures of a video have after its name


@dataclass(frozen=True)
class Photo:
    """path: where it lies. name: relative to the folder that was asked for. picture: name of the drawn one; of a video
    the part that all its pictures begin with."""

    path: Path
    name: str
    picture: str

    @property
    def is_video(self) -> bool:
        return _is_video(self.path)


def find_photos(images: Sequence[str | Path]) -> list[Photo]:
    """Every photograph and video once, in the order of the arguments and sorted within each.

    images: files, folders (searched through for photographs; hidden ones and other kinds of file left out), or patterns
    with *, ? and **. Videos count where a file or a pattern names them, not in folders: one would give thousands of
    pictures that nobody asked for. In folders and patterns, pictures that an earlier call has drawn are left out. Equal
    names are kept apart: street.jpg, street-2.jpg. Raises DataError with all arguments that lead to no photograph.
    """
    faults: list[str] = []
    found: dict[Path, str] = {}
    for argument in images:
        photos = list(_named_by(argument))
        if not photos:
            faults.append(f"{argument} ({_nothing(str(argument))})")
        for path, name in photos:
            found.setdefault(Path(os.path.realpath(path)), printable(name))  # resolve() raises in a circle of links
    if faults or not found:
        what = "; ".join(faults) or "no image is named"
        raise DataError("IMAGES", f"there is nothing to detect on: {what}", fix="name image files, folders or patterns")
    pictures = _pictures(found)
    return [Photo(path, name, pictures[path]) for path, name in found.items()]


def printable(name: str | Path) -> str:
    """A file name as UTF-8 text; bytes that are none, which Linux permits in names, become �."""
    return os.fsencode(name).decode("utf-8", "replace")


def is_drawn(file: Path) -> bool:
    """Whether a call of this program made the picture."""
    if file.suffix != ".jpg" or not file.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            return image.info.get("comment") == PROGRAM.encode()
    except Exception:  # damaged bytes raise errors of many kinds; the decoder will tell of them
        return False


def _named_by(argument: str | Path) -> Iterator[tuple[Path, str]]:
    """Path and name of each photograph or video that one argument stands for."""
    path = Path(argument)
    if path.is_file():
        yield path, path.name
        return
    matches = [path] if path.is_dir() else [Path(match) for match in sorted(glob.glob(str(argument), recursive=True))]
    for match in matches:
        if match.is_dir():
            for photo in _photos_below(match):
                yield photo, photo.relative_to(match).as_posix()
        elif _is_photo(match) or (_is_video(match) and match.name[0] != "."):
            yield match, match.name


def _photos_below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (file for name in sorted(files) if _is_photo(file := Path(place, name)))


def _is_photo(file: Path) -> bool:
    return file.suffix.lower() in PHOTOS and file.name[0] != "." and not is_drawn(file)


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def _nothing(argument: str) -> str:
    if Path(argument).is_dir():
        return "no photograph in this folder"
    return "the pattern matches no photograph" if glob.has_magic(argument) else "no such file or folder"


def _pictures(found: dict[Path, str]) -> dict[Path, str]:
    """The picture of each photo and video; videos come last, since many names begin with theirs."""
    taken: set[str] = set()
    pictures = {path: _free_name(name, taken) for path, name in found.items() if not _is_video(path)}
    for path, name in found.items():
        if _is_video(path):
            pictures[path] = _free_stem(name, taken)
    return pictures


def _free_name(name: str, taken: set[str]) -> str:
    """NAME.jpg, or NAME-2.jpg and so on; names that differ in case only are one file on some systems."""
    stem, number = name.removesuffix(Path(name).suffix), 1
    while (free := f"{stem}{f'-{number}' if number > 1 else ''}.jpg").casefold() in taken:
        number += 1
    taken.add(free.casefold())
    return free


def _free_stem(name: str, taken: set[str]) -> str:
    """The beginning of a video's pictures, such as no other picture has."""
    stem, number = name.removesuffix(Path(name).suffix), 1
    while True:
        free = f"{stem}{f'-{number}' if number > 1 else ''}"
        used = re.compile(re.escape(free.casefold()) + f"({STAMP})?")
        if not any(used.fullmatch(name) for name in taken):
            taken.add(free.casefold())
            return free
        number += 1
