"""A folder that a labelling tool wrote, as a list of files: whatever a label names is looked up in this list.

So no name in a file leads out of the folder, and nothing of it is written to.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.parse import unquote

from cvpeft.data.coco_file import read_json
from cvpeft.data.images import find_image
from cvpeft.errors import DataError
from cvpeft.runtime.image import Size, upright_size

__all__ = ["Tree", "folder_split", "key", "own_folders", "split_of"]

IMAGES = {  # also those that cannot be decoded: they are told, not overlooked
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".jp2",
}  # fmt: skip
KINDS = {  # folders that tell what their files are; without them the paths of a photo and of its labels agree
    "image", "images", "img", "imgs", "jpegimages", "photos", "label", "labels", "labeltxt", "annotation",
    "annotations", "xml", "xmls", "txt", "json",
}  # fmt: skip
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # fmt: skip
MAX_TEXT = 16 * 2**20  # bytes of one text file of labels


def key(name: str) -> str:
    """What a photo and its label file share: `train/images/7.jpg` and `train/labels/7.txt` are both `train/7`."""
    path = PurePosixPath(name)
    return "/".join([*(part for part in path.parts[:-1] if part.lower() not in KINDS), path.stem])


def split_of(words: Iterable[str]) -> str:
    """train, val or test by the first word that names one, years cut off; empty where none does."""
    plain = (re.sub(r"(19|20)\d\d$", "", word.lower()) for word in words)
    return next((SPLITS[word] for word in plain if word in SPLITS), "")


def folder_split(name: str) -> str:
    """As `split_of`, by the folders of a file."""
    return split_of(PurePosixPath(name).parts[:-1])


def own_folders(folders: Iterable[str]) -> list[str]:
    """Those that may tell a place, such as a city: all but the kinds of file and the splits."""
    return [name for name in folders if name.strip(".") and name.lower() not in KINDS and not split_of([name])]


@dataclass(frozen=True)
class Tree:
    """root: the resolved folder. files: names below it with forward slashes, sorted, hidden ones left out."""

    root: Path
    files: tuple[str, ...]
    _sizes: dict[str, Size | DataError] = field(default_factory=dict, repr=False, compare=False)
    _jsons: dict[str, object] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, source: Path) -> Tree:
        """A folder with all that is in it; or a file of labels, with its folder but without other files of its kind.

        DataError where there is neither.
        """
        if not source.exists():
            raise DataError("SOURCE", "no such file or folder", where=str(source), fix="check the path")
        root = (source if source.is_dir() else source.parent).resolve()
        try:
            files = sorted(_walk(root))
        except OSError as error:
            what, why = f"the folder cannot be read whole ({error.strerror})", "labels or photos in it would be lost"
            raise DataError("READ", what, where=str(error.filename), why=why, fix="permit reading it") from error
        if source.is_file():
            suffix = source.suffix.lower()
            files = [name for name in files if name == source.name or PurePosixPath(name).suffix.lower() != suffix]
        return cls(root, tuple(files))

    def path(self, name: str) -> Path:
        """The file itself, links followed; DataError where they lead out of the folder."""
        return find_image(self.root, name, str(self.root))[0]

    def ending(self, *suffixes: str) -> list[str]:
        """Names of the files with one of these endings, such as .xml."""
        return [name for name in self.files if PurePosixPath(name).suffix.lower() in suffixes]

    @cached_property
    def images(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if PurePosixPath(name).suffix.lower() in IMAGES)

    @cached_property
    def images_set(self) -> frozenset[str]:
        return frozenset(self.images)

    @cached_property
    def by_key(self) -> dict[str, list[str]]:
        """Images by what they share with their label files."""
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.images:
            found[key(name)].append(name)
        return dict(found)

    @cached_property
    def _by_file(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.images:
            found[PurePosixPath(name).name].append(name)
        return dict(found)

    def of_labels(self, label: str, where: str) -> str | None:
        """The image whose path agrees with that of a label file; DataError where there are two."""
        found = self.by_key.get(key(label), [])
        if len(found) > 1:
            fix = "keep one of them, or give each its own labels"
            raise DataError("TWICE", f"the labels belong to {found[0]} and to {found[1]}", where=where, fix=fix)
        return found[0] if found else None

    def match(self, text: str, file: str, split: str = "") -> str | None:
        """The one image whose path ends as `text` does, the longest such ending first; None: there is none, or several.

        Label Studio writes names with the paths of its own store before them, or as the end of an address. So folders
        of the name that the image lacks are passed over, and those of the image that the name lacks; but where both
        have some, the shorter row of them must be the end of the longer, as berlin/1.jpg is not lyon/1.jpg, and the
        split must be one. Folders for a kind of file, such as images, tell nothing, nor do those that `file` lies in;
        but where these hold images of their own, a plain name is one of theirs, as it is in berlin/labels.json.
        file: that names the image. split: of its labels, empty where none is known; an image of another is not meant.
        """
        parts = unquote(text.split("?d=")[-1]).replace("\\", "/").split("/")
        named = self._by_file.get(parts[-1]) or self._by_file.get(text.replace("\\", "/").split("/")[-1], [])
        named = [name for name in named if _agree([*self._home(name, file), *parts[:-1]], _folders(name, file))]
        named = [name for name in named if not split or folder_split(name) in ("", split)]
        for start in range(len(parts)):
            end = "/" + "/".join(parts[start:])
            found = [name for name in named if f"/{name}".endswith(end)]
            if len(found) > 1:
                found = [name for name in found if split and split_of(PurePosixPath(name).parts) == split]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    @cached_property
    def _with_images(self) -> frozenset[str]:
        """Folders that hold images, directly or below."""
        return frozenset(str(folder) for name in self.images for folder in PurePosixPath(name).parents)

    def _home(self, name: str, file: str) -> Sequence[str]:
        """Folders of the file that names an image, below the last one that both share, if images lie there; or none."""
        folders = _folders(file, name)
        first = PurePosixPath(*PurePosixPath(file).parts[: -len(folders)])
        return folders if str(first) in self._with_images else []

    def size(self, name: str) -> Size:
        """Upright (height, width) of an image; DataError where it cannot be read or lies outside."""
        if name not in self._sizes:
            try:
                self._sizes[name] = upright_size(self.path(name))
            except DataError as fault:
                self._sizes[name] = fault
        size = self._sizes[name]
        if isinstance(size, DataError):
            raise size
        return size

    def text(self, name: str) -> str:
        """A text file of at most 16 MB, as UTF-8; DataError that names it."""
        path = self.path(name)
        try:
            if path.stat().st_size > MAX_TEXT:
                raise DataError("SIZE", f"more than {MAX_TEXT // 2**20} MB, so no file of labels", where=str(path))
            return path.read_text("utf-8-sig")
        except OSError as error:
            raise DataError("READ", f"the file cannot be read ({error.strerror})", where=str(path)) from error
        except UnicodeDecodeError as error:
            raise DataError("READ", "the file is not UTF-8 text", where=str(path), fix="save it as UTF-8") from error

    def json(self, name: str) -> object:
        """What a json holds, read once; DataError that names it."""
        if name not in self._jsons:
            self._jsons[name] = read_json(self.path(name))
        return self._jsons[name]


def _folders(name: str, file: str) -> Sequence[str]:
    """Folders of an image, below the last one that it shares with the file that names it."""
    folders, there = PurePosixPath(name).parts[:-1], PurePosixPath(file).parts[:-1]
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(folders, there, strict=False))
    return folders[sum(1 for _ in shared) :]


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the folders of two names may be those of one image; the rule stands at `Tree.match`."""
    splits = {split for folders in (one, other) if (split := split_of(reversed(folders)))}
    pairs = zip(reversed(own_folders(one)), reversed(own_folders(other)), strict=False)
    return len(splits) < 2 and all(mine.lower() == its.lower() for mine, its in pairs)


def _walk(root: Path) -> Iterator[str]:
    """Names of the files, also of links that lead nowhere: what they stand for is told as missing where it is needed.

    OSError where a folder cannot be read.
    """
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for link in (path for name in folders if (path := Path(folder, name)).is_symlink()):
            if not link.resolve().is_relative_to(root):  # one that leads to a folder here adds nothing
                what, fix = f"the folder is a link to {link.resolve()}", "copy or move that folder to here"
                raise DataError("PATH", what, where=str(link), why="a data set may only read its own files", fix=fix)
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and (path.is_file() or (path.is_symlink() and not path.exists())):
                yield path.relative_to(root).as_posix()


def _raise(error: OSError) -> NoReturn:
    """os.walk passes over what it cannot read, unless it is told not to."""
    raise error
