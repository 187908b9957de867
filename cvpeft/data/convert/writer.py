"""COCO contents and where their images lie -> a folder of json files that `load_coco` reads as they are.

A json may name only what lies below its own folder. So the images stay where they are if the folder holds them already,
above the source or the source itself; else they come into the new folder, under the names that they have in the source.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvpeft.errors import DataError, ResourceError
from cvpeft.files import TEMP, refuse_existing, write_whole

__all__ = ["LOG", "Part", "part_of", "write_set"]

LOG = "import.log.json"
Content = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A json that was written. negatives: images without a box; boxes: class name -> boxes, crowds among them."""

    file: Path
    images: int
    negatives: int
    boxes: Mapping[str, int]


def write_set(
    out: Path,
    contents: Mapping[str, Content],
    places: Mapping[str, Path],
    *,
    source: Path | None = None,
    copy: bool = False,
    log: Content | None = None,
) -> tuple[list[Part], Path]:
    """Write OUT/NAME.json for each of `contents`, and `log` beside; returns what the json files hold, and the log.

    places: `file_name` in the contents -> the image, resolved. Where `out` holds all of them they are named where they
    lie; else `out` must be absent or empty, outside of `source`, and gets hard links, which take no space but need the
    same disk, or with `copy` copies. It is whole or not there at any moment.
    DataError: `out` is in the way. ResourceError: it cannot be written.
    """
    above = out.resolve()
    if not copy and all(place.is_relative_to(above) for place in places.values()):
        named = {name: place.relative_to(above).as_posix() for name, place in places.items()}
        return _write_beside(out, {name: _renamed(content, named) for name, content in contents.items()}, log)
    if source is not None and above.is_relative_to(source):
        what, fix = (
            "the folder lies in the source",
            "name a folder elsewhere, or the source's own to leave images there",
        )
        raise DataError("OUT", what, where=str(out), why="the next import would find its images again", fix=fix)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("OUT", "the folder is in use", where=str(out), why="nothing is overwritten", fix="name another")
    if above == Path.cwd():  # it would have to be taken away from under the one who stands in it
        what, why = "this is the folder that you are in", "the set is made beside its place, which it takes when whole"
        raise DataError("OUT", what, where=str(out), why=why, fix="name a new folder in it, such as covers")
    _write_anew(out, contents, places, copy, log)
    return [part_of(out / f"{name}.json", content) for name, content in contents.items()], out / LOG


def part_of(file: Path, content: Content) -> Part:
    """What a content holds."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = Counter(names[box["category_id"]] for box in content["annotations"])
    held = {box["image_id"] for box in content["annotations"]}
    negatives = sum(image["id"] not in held for image in content["images"])
    return Part(file, len(content["images"]), negatives, {name: counts[name] for name in names.values()})


def _renamed(content: Content, named: Mapping[str, str]) -> Content:
    images = [{**image, "file_name": named[image["file_name"]]} for image in content["images"]]
    return {**content, "images": images}


def _write_beside(out: Path, contents: Mapping[str, Content], log: Content | None) -> tuple[list[Part], Path]:
    """The json files alone, into a folder that holds the images already."""
    files = {out / f"{name}.json": content for name, content in contents.items()}
    for file in [*files, *([out / LOG] if log is not None else [])]:
        refuse_existing(file, fix="move it away")
    for file, content in files.items():
        write_whole(file, json.dumps(content))
    if log is not None:
        write_whole(out / LOG, _text(log))
    return [part_of(file, content) for file, content in files.items()], out / LOG


def _write_anew(
    out: Path, contents: Mapping[str, Content], places: Mapping[str, Path], copy: bool, log: Content | None
) -> None:
    """Everything goes into a folder beside, which takes its name at the end."""
    part = out.with_name(f".{out.name}.{os.getpid()}{TEMP}")
    put = shutil.copyfile if copy else os.link
    try:
        for name, place in places.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            put(place, part / name)
        for name, content in contents.items():
            write_whole(part / f"{name}.json", json.dumps(content))
        if log is not None:
            write_whole(part / LOG, _text(log))
        os.replace(part, out)
    except OSError as error:
        fix = "make room" if copy else "give --copy where the source and OUT are on two disks"
        raise ResourceError("WRITE", f"cannot be made ({error.strerror})", where=str(out), fix=fix) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _text(log: Content) -> str:
    return json.dumps(log, indent=1, ensure_ascii=False)
