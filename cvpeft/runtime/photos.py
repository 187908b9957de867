"""Which photographs and videos a call names, and which names its pictures get."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
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
LONGEST = 230  # bytes of a picture's name before number, time and ending; systems allow 255 of them all
STAMP = r"_\d{6,}\.\d{3}\.jpg"  # what the pictures of a video have after its name


@dataclass(frozen=True)
class Photo:
    """path: where it lies, links followed. name: relative to the folder that was asked for, with more of its path where
    another photo has that name too. picture: name of the drawn one; of a video the part that all its pictures begin
    with."""

    path: Path
    name: str
    picture: str

    @property
    def is_video(self) -> bool:
        return _is_video(Path(self.name))  # a link is what it is called; where it leads may have a name without ending


def find_photos(images: Sequence[str | Path]) -> list[Photo]:
    """Every photograph and video once, in the order of the arguments and sorted within each.

    images: files, folders (searched through for photographs; hidden ones and other kinds of file left out), or patterns
    with *, ? and **. Videos count where a file or a pattern names them, not in folders: one would give thousands of
    pictures that nobody asked for. In folders and patterns, pictures that an earlier call has drawn are left out. Equal
    names are kept apart: street.jpg, street-2.jpg. Raises DataError with all arguments that lead to no photograph, and
    for a folder that cannot be read.
    """
    faults: list[str] = []
    found: dict[Path, tuple[Path, str]] = {}  # where it lies -> the path that led there, and its name
    for argument in images:
        photos = list(_named_by(argument))
        if not photos:
            faults.append(f"{argument} ({_nothing(str(argument))})")
        for path, name in photos:
            real = Path(os.path.realpath(path))  # resolve() raises in a circle of links
            found.setdefault(real, (path, printable(name)))
    if faults or not found:
        what = "; ".join(faults) or "no image is named"
        raise DataError("IMAGES", f"there is nothing to detect on: {what}", fix="name image files, folders or patterns")
    pictures = _pictures({real: name for real, (_, name) in found.items()})
    names = _told_apart(list(found.values()))
    return [Photo(real, name, pictures[real]) for real, name in zip(found, names, strict=True)]


def printable(name: str | Path) -> str:
    """A file name as UTF-8 text; bytes that are none, which Linux permits in names, become �."""
    return os.fsencode(name).decode("utf-8", "replace")


def is_drawn(file: Path) -> bool:
    """Whether a call of this program made the picture."""
    if file.suffix != ".jpg" or not os.path.isfile(file):  # opening a pipe would wait for ever
        return False
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            return image.info.get("comment") == PROGRAM.encode()
    except Exception:  # damaged bytes raise errors of many kinds; the decoder will tell of them
        return False


def _named_by(argument: str | Path) -> Iterator[tuple[Path, str]]:
    """Path and name of each photograph or video that one argument stands for."""
    path = Path(argument)
    if os.path.isfile(path):  # Path.is_file raises where a name is too long, or a folder may not be entered
        yield path, path.name
        return
    folder = os.path.isdir(path)
    matches = [path] if folder else [Path(match) for match in sorted(glob.glob(str(argument), recursive=True))]
    for match in matches:
        if os.path.isdir(match):
            for photo in _photos_below(match):
                yield photo, photo.relative_to(match).as_posix()
        elif _is_photo(match) or (_is_video(match) and match.name[0] != "."):
            yield match, match.name


def _photos_below(folder: Path) -> Iterator[Path]:
    """Linked folders too, each folder once: links may lead in a circle."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if name[0] != "." and real not in seen)
        if real in seen:
            continue
        seen.add(real)
        yield from (file for name in sorted(files) if _is_photo(file := Path(place, name)))


def _unreadable(error: OSError) -> None:
    """Photographs would be passed over without a word."""
    what, fix = f"the folder cannot be read ({error.strerror})", "permit reading it, or name other folders"
    raise DataError("READ", what, where=printable(error.filename), why="photographs may lie in it", fix=fix) from error


def _is_photo(file: Path) -> bool:
    return file.suffix.lower() in PHOTOS and file.name[0] != "." and not is_drawn(file)


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def _nothing(argument: str) -> str:
    if os.path.isdir(argument):
        return "no photograph in this folder"
    return "the pattern matches no photograph" if glob.has_magic(argument) else "no such file or folder"


def _told_apart(photos: Sequence[tuple[Path, str]]) -> list[str]:
    """Their names; equal ones with as much of their paths as tells them apart. photos: path and name of each."""
    names = [name for _, name in photos]
    parts = [printable(Path(os.path.abspath(path)).as_posix()).split("/") for path, _ in photos]
    for count in range(2, max(map(len, parts)) + 1):
        taken = Counter(names)
        if len(taken) == len(names):
            break
        longer = ["/".join(own[-count:]) for own in parts]
        names = [
            more if taken[name] > 1 and len(more) > len(name) else name
            for name, more in zip(names, longer, strict=True)
        ]
    return names


def _pictures(found: dict[Path, str]) -> dict[Path, str]:
    """The picture of each photo and video; videos come last, since many names begin with theirs."""
    taken: set[str] = set()
    pictures = {path: _free_name(name, taken) for path, name in found.items() if not _is_video(Path(name))}
    for path, name in found.items():
        if _is_video(Path(name)):
            pictures[path] = _free_stem(name, taken)
    return pictures


def _free_name(name: str, taken: set[str]) -> str:
    """NAME.jpg, or NAME-2.jpg and so on; names that differ in case only are one file on some systems."""
    stem, number = _stem(name), 1
    while (free := f"{stem}{f'-{number}' if number > 1 else ''}.jpg").casefold() in taken:
        number += 1
    taken.add(free.casefold())
    return free


def _free_stem(name: str, taken: set[str]) -> str:
    """The beginning of a video's pictures, such as no other picture has."""
    stem, number = _stem(name), 1
    while True:
        free = f"{stem}{f'-{number}' if number > 1 else ''}"
        used = re.compile(re.escape(free.casefold()) + f"({STAMP})?")
        if not any(used.fullmatch(name) for name in taken):
            taken.add(free.casefold())
            return free
        number += 1


def _stem(name: str) -> str:
    """A name without its ending, each part of it short enough for a file: text in the place of odd bytes is longer."""
    parts = name.removesuffix(Path(name).suffix).split("/")
    return "/".join(part.encode()[:LONGEST].decode(errors="ignore") for part in parts)
