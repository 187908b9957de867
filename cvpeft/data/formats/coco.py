"""COCO json, one or several: Roboflow's `_annotations.coco.json`, CVAT's COCO 1.0, Label Studio's, VIA's.

The split is that of the json's folder or name. An image is looked for beside its json, in `images` beside it or above,
and else by the end of its path (Label Studio), where that fits one image only, as `Tree.match` has it. Ids may start at
0, repeat, or be texts of digits; categories are known by their names, so that Roboflow's dummy category and two of one
name do no harm.
CVAT's rotated boxes become the upright boxes around them. An annotation without a box takes that of its polygons.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cvpeft.data.coco_file import (
    Lists,
    crowd_mark,
    dummy_category,
    is_id,
    is_number,
    read_coco_file,
    short,
    stated_size,
    whole,
)
from cvpeft.data.convert.found import Found, Label, Photo, hull
from cvpeft.data.convert.tree import Tree, folder_split, split_of
from cvpeft.errors import DataError

__all__ = ["matches", "read"]

USUAL = {"id", "file_name", "width", "height", "license", "flickr_url", "coco_url"}
FROM_POLYGON = "annotations have polygons and no box; the boxes around them were taken"


def matches(tree: Tree) -> bool:
    return any(_is_coco(tree, name) for name in tree.ending(".json")[:20])


def read(tree: Tree) -> Found:
    """DataError where a json is no COCO file."""
    found = Found()
    files = [name for name in tree.ending(".json") if _is_coco(tree, name)]
    for file in files or tree.ending(".json")[:1]:
        _Json(tree, file, found).read()
    found.leave_unlabelled(tree.images, folder_split)
    return found


def _is_coco(tree: Tree, name: str) -> bool:
    try:
        content = tree.json(name)
    except DataError:
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


class _Json:
    """One json while it is read into `found`."""

    def __init__(self, tree: Tree, file: str, found: Found) -> None:
        self.tree, self.file, self.found = tree, file, found
        self.where = str(tree.root / file)
        self.content: Lists = read_coco_file(tree.path(file))
        path = PurePosixPath(file)
        self.split = split_of([*path.parts[:-1], *re.split(r"[\W_]+", path.stem)])
        self.photos: dict[object, Photo] = {}
        self.names: dict[object, str] = {}

    def read(self) -> None:
        self._read_categories()
        missing = self._read_images()
        for index, entry in enumerate(self.content["annotations"]):
            self._read_annotation(index, entry, missing)

    def _read_categories(self) -> None:
        ids = (whole(a.get("category_id")) for a in self.content["annotations"] if isinstance(a, dict))
        used: set[object] = {number for number in ids if is_id(number)}
        dummy = dummy_category(self.content, used)
        for index, entry in enumerate(self.content["categories"]):
            number, name = (whole(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
            if not is_id(number) or not isinstance(name, str):
                what = f"the category is {short(entry)}, not one with an id and a name"
                raise DataError("CAT", what, where=f"{self.where}: categories[{index}]")
            if number in self.names and self.names[number] != name.strip():
                what = f"id {number} is used by {self.names[number]!r} and {name!r}"
                raise DataError("CAT", what, where=self.where)
            if dummy is None or number != 0:
                self.names[number] = name.strip()
        if dummy is not None:
            self.found.counts[f"categories only stand above the others ({dummy!r}) and are left out"] += 1
        in_order = [name for _, name in sorted(self.names.items(), key=lambda item: str(item[0]).zfill(20))]
        self.found.classes += [name for name in dict.fromkeys(in_order) if name not in self.found.classes]

    def _read_images(self) -> set[object]:
        """Fills `photos`; returns the ids of the images that are not there."""
        missing: set[object] = set()
        entries = [e if isinstance(e, dict) else {} for e in self.content["images"]]
        ids = Counter(filter(is_id, (whole(entry.get("id")) for entry in entries)))
        for index, entry in enumerate(entries):
            number, name = whole(entry.get("id")), entry.get("file_name")
            where = f"{self.where}: images[{index}]"
            image = self._find(name) if isinstance(name, str) else None
            if image is None:
                missing |= {number} if is_id(number) else set()
                what = f"the image {short(name)} is not there, or more than one could be meant"
                self.found.faults.append(DataError("MISSING", what, where=where))
                continue
            photo = Photo(
                image,
                split=self.split,
                stated=stated_size(entry.get("height"), entry.get("width")),
                fields=_fields(entry),
            )
            if not is_id(number) or ids[number] > 1:
                what = f"the id of {name} is {short(number)}" + (", which others have too" if is_id(number) else "")
                photo.faults.append(DataError("IMGID", what, where=where, why="boxes cannot be assigned"))
            if is_id(number):
                self.photos[number] = photo
            self.found.photos.append(photo)
        return missing

    def _find(self, name: str) -> str | None:
        """The image that a json's `file_name` means."""
        here = PurePosixPath(self.file).parent
        plain = PurePosixPath(name.replace("\\", "/"))
        for folder in (here, here / "images", here.parent, here.parent / "images"):
            if str(folder / plain) in self.tree.images_set:
                return str(folder / plain)
        matched = self.tree.match(name, self.file, self.split)
        if matched:
            example = f"{name} is {matched}"
            told = next((c for c in self.found.counts if c.startswith("images were found by the end")), None)
            self.found.counts[told or f"images were found by the end of their path, the first: {example}"] += 1
        return matched

    def _read_annotation(self, index: int, entry: object, missing: set[object]) -> None:
        where = f"{self.where}: annotations[{index}]"
        if not isinstance(entry, dict):
            self.found.faults.append(DataError("COCO", f"the annotation is {short(entry)}", where=where))
            return
        image, category = whole(entry.get("image_id")), whole(entry.get("category_id"))
        photo = self.photos.get(image) if is_id(image) else None
        if photo is None:
            if not is_id(image) or image not in missing:
                what = f"image_id is {short(image)}, which no image has"
                self.found.faults.append(DataError("IMGID", what, where=where))
            return
        name = "" if category is None else self.names.get(category) if is_id(category) else None
        if name is None:
            what = f"category_id is {short(category)}, but the categories are {_listed(self.names)}"
            photo.faults.append(DataError("CAT", what, where=where))
            return
        photo.take(partial(self._label, entry, name, where))

    def _label(self, entry: dict[str, Any], name: str, where: str) -> Label:
        box, attributes = entry.get("bbox"), entry.get("attributes")
        if not box and (points := _points(entry.get("segmentation"))):
            box = hull(points[::2], points[1::2])
            self.found.counts[FROM_POLYGON] += 1
        rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
        crowd, area = crowd_mark(entry.get("iscrowd")), entry.get("area")
        if crowd not in (None, 0, 1):
            raise DataError("CROWD", f"iscrowd is {short(crowd)}, not 0 or 1", where=where)
        return Label(name, box, where, rotation, bool(crowd), area if is_number(area) and area > 0 else None)


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """What else is said of an image, to split by or to tell cities apart."""
    plain = (str, int, float)
    return {k: v for k, v in entry.items() if k not in USUAL and isinstance(v, plain) and v != ""}


def _points(segmentation: object) -> list[float]:
    """x y x y ... of all polygons; empty where there are none."""
    parts = segmentation if isinstance(segmentation, list) else []
    flat = [value for part in parts if isinstance(part, list) for value in part]
    return flat if len(flat) >= 6 and len(flat) % 2 == 0 and all(map(is_number, flat)) else []


def _listed(names: dict[object, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in list(names.items())[:20]) or "none"
