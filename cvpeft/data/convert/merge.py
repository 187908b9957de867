"""Several COCO json files, one per city, say -> one, in which nothing of one is taken for a thing of another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cvpeft.data.coco import CocoData, ImageRecord, load_coco
from cvpeft.data.coco_file import dummy_category, is_id, read_coco_file
from cvpeft.data.convert.writer import Part, write_set
from cvpeft.errors import DataError

__all__ = ["merge_jsons"]

USUAL = {"id", "file_name", "width", "height", "domain"}


def merge_jsons(files: Sequence[Path], out: Path, *, copy: bool = False) -> tuple[Part, tuple[str, ...]]:
    """Write one json of all images and boxes of `files`; returns what it holds, and what was put right on the way.

    out: the json, where all images lie below its folder; or a folder, which gets a json named like all of `files`, or
    data.json, and the images: where it holds them already they stay, else it must be new, and each comes into the
    folder of its domain as a hard link, or with `copy` a copy. Ids are numbered anew, categories are joined by name in
    the order in which they come up; every image states its domain, by the rule of `load_coco`, and keeps its other
    fields. Boxes are those of `load_coco`, clipped and upright; of annotations nothing but box, area and crowd is kept.
    DataError: whatever `load_coco` refuses, fewer than two files, `out` is in the way, or a json with `copy`.
    """
    if len({file.resolve() for file in files}) < 2:
        raise DataError("MERGE", "there are not two different json files to merge", fix="name each file once")
    if copy and out.suffix == ".json":
        what = "a json names the images where they lie, and none is copied"
        raise DataError("OUT", what, where=str(out), fix="give a new folder, or leave out --copy")
    data = load_coco(files, classes=_class_names(files))
    content = data.ground_truth()
    names = _names(data)
    entries = [entry for file in files for entry in read_coco_file(file)["images"]]
    for image, entry, name in zip(content["images"], entries, names, strict=True):
        image.update({key: value for key, value in entry.items() if key not in USUAL}, file_name=name)
    places = {name: image.path for name, image in zip(names, data.images, strict=True)}
    stems = {file.stem for file in files}
    folder, stem = (out.parent, out.stem) if out.suffix == ".json" else (out, "data" if len(stems) > 1 else stems.pop())
    if out.suffix == ".json" and not _holds(folder, data):
        what = "not all images lie below the folder of this json"
        fix = "put it into the folder that holds them all, or give a new folder, which gets links to them"
        raise DataError("OUT", what, where=str(out), why="a json may only name what lies below it", fix=fix)
    (part,), _ = write_set(folder, {stem: content}, places, copy=copy)
    return part, data.notes


def _class_names(files: Sequence[Path]) -> list[str]:
    """Names of all files in the order in which they come up; what is no name is left for `load_coco` to tell."""
    names: dict[str, None] = {}
    for file in files:
        content = read_coco_file(file)
        ids = (a.get("category_id") for a in content["annotations"] if isinstance(a, dict))
        used: set[object] = {number for number in ids if is_id(number)}
        dummy = dummy_category(content, used)
        found = [c for c in content["categories"] if isinstance(c, dict) and isinstance(c.get("id"), int)]
        for category in sorted(found, key=lambda c: c["id"]):
            if isinstance(category.get("name"), str) and (dummy is None or category["id"] != 0):
                names.setdefault(category["name"])
    return list(names)


def _names(data: CocoData) -> list[str]:
    """A name below the folder of its domain for each image; of two that would have one, the later gets a number."""
    taken: set[str] = set()
    names = []
    for image in data.images:
        name = _name(image)
        stem, suffix = name.removesuffix(image.path.suffix), image.path.suffix
        number = 2
        while name.casefold() in taken:
            name, number = f"{stem}_{number}{suffix}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _name(image: ImageRecord) -> str:
    domain = re.sub(r"[^\w.-]", "_", image.domain).strip(".") or "city"
    parts = [part for part in image.file_name.split("/") if part not in ("", ".", "..")]
    return "/".join([domain, *parts])


def _holds(folder: Path, data: CocoData) -> bool:
    return all(image.path.is_relative_to(folder.resolve()) for image in data.images)
