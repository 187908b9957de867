"""File names of a json -> image files, never outside of the json's own folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cvpeft.errors import DataError
from cvpeft.runtime.image import Size

__all__ = ["find_image", "is_file", "missing_images", "too_many_unreadable", "wrong_size"]

MOST_SKIPPED = 0.05  # part of the images that may be unreadable before leaving them out is no help
TAKE_OUT = "cvpeft data autofix JSON --out NEW --drop-unreadable"
DRIVE = re.compile(r"[A-Za-z]:")


def find_image(root: Path, name: object, where: str, folders: dict[str, str] | None = None) -> tuple[Path, str]:
    """The file that `name` means below `root` (a resolved folder), and the name with forward slashes.

    It need not exist. Links are followed before the check, so that none leads out. Raises DataError that names `where`.
    folders: those that were resolved before, by their part of the name; one dict for all names of a json makes a folder
    of a hundred thousand images cost its links once.
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError("NAME", f"file_name is {name!r}, not the name of a file", where=where)
    slashed = name.replace("\\", "/")
    if folders is not None and (known := _in_known_folder(root, slashed, folders)):
        return known, slashed
    try:
        path = (root / slashed).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, half a surrogate pair, a loop of links
        raise DataError("PATH", f"file_name {name[:200]!r} cannot be a path ({error})", where=where) from error
    if DRIVE.match(slashed) or not path.is_relative_to(root):
        what = f"file_name {name[:200]!r} leads out of the json's folder {root}"
        fix = "put the json above its images and write their paths relative to it"
        raise DataError("PATH", what, where=where, why="a data set may only read its own files", fix=fix)
    return path, slashed


def _in_known_folder(root: Path, slashed: str, folders: dict[str, str]) -> Path | None:
    """The file, where only its folder can hold links and that one stays inside; None: it must be looked at closely."""
    folder, _, leaf = slashed.rpartition("/")
    if leaf in ("", ".", "..") or slashed.startswith("/") or not slashed.isprintable() or DRIVE.match(slashed):
        return None
    if folder not in folders:
        try:
            resolved = (root / folder).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        folders[folder] = str(resolved) if resolved.is_relative_to(root) else ""
    if not folders[folder]:
        return None
    path = f"{folders[folder]}/{leaf}"
    return None if os.path.islink(path) else Path(path)


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def missing_images(file: Path, names: Sequence[str], total: int) -> DataError:
    """One error for all images of a json that are not there: their count, the first five, and where they may lie."""
    what = f"{len(names)} of {total} image files are missing: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    root = file.parent
    fix = f"file_name is relative to {root}; move the json or the images, or take these out of the json ({TAKE_OUT})"
    for folder in (root / "images", root.parent, root.parent / "images"):
        if is_file(folder / names[0]):
            fix = f"{names[0]} lies in {folder}: move the json there"
            break
    return DataError("MISSING", what, where=str(file), fix=fix)


def too_many_unreadable(broken: int, total: int, where: str) -> DataError | None:
    """An error where leaving out unreadable images would hide that something larger went wrong; else None."""
    if broken <= MOST_SKIPPED * total:
        return None
    what = f"{broken} of {total} images cannot be decoded, more than {MOST_SKIPPED:.0%}"
    why, fix = "so many are no accident", "copy the data again from its origin"
    return DataError("IMAGES", what, where=where, why=why, fix=fix)


def wrong_size(path: Path, stated: Size, found: Size) -> DataError:
    """The json states one upright (height, width), the file has another."""
    what = f"the json says {stated[1]}x{stated[0]}, the upright image has {found[1]}x{found[0]}"
    if found == stated[::-1]:
        why = "the two are swapped: the json was probably written without the photo's EXIF orientation"
        fix = "label the upright photo, or save the photo again without the EXIF orientation"
        return DataError("EXIF", what, where=str(path), why=why, fix=fix)
    fix = "correct width and height in the json, or export the labels again"
    return DataError("IMGSIZE", what, where=str(path), why="the boxes may belong to other pixels", fix=fix)
