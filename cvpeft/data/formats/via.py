"""VGG Image Annotator (VIA 2): csv files with a row for each region, or one of region_count 0 for an image without any.

Rectangles are taken, polygons, circles and ellipses become the boxes around them; points and lines have no box and are
faults. The class is the csv's only region attribute, or the one called class, else the only one with a value of those
called label, type, name and category; a checkbox counts where one box is ticked. Regions without a class can be named
together by `--map =NAME`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cvpeft.data.coco_file import is_number
from cvpeft.data.convert.found import Found, Label, Photo, hull
from cvpeft.data.convert.tree import Tree, folder_split, split_of
from cvpeft.errors import DataError

__all__ = ["matches", "read"]

COLUMNS = {"filename", "region_count", "region_shape_attributes", "region_attributes"}
CLASS_KEYS = ("label", "type", "name", "category")  # where none is called class
SHAPES = "polygons, circles and ellipses are replaced by the upright boxes around them"


def matches(tree: Tree) -> bool:
    return any(_is_via(tree, name) for name in tree.ending(".csv"))


def read(tree: Tree) -> Found:
    found = Found()
    photos: dict[str, Photo] = {}
    names: dict[str, str] = {}  # of an image, as its first row has it
    for file in filter(lambda name: _is_via(tree, name), tree.ending(".csv")):
        split = split_of([*PurePosixPath(file).parts[:-1], *PurePosixPath(file).stem.split("_")])
        rows = _rows(tree, file)
        alone = len({key for row in rows for key in _parsed(row, "region_attributes") or {}}) == 1
        for number, row in enumerate(rows, 2):
            where = f"{tree.root / file}:{number}"
            stated = row["filename"] or ""
            image = _image(tree, file, stated, split)
            if image is None:
                what = f"the image {stated[:100]!r} is not there, or more than one could be meant"
                found.faults.append(DataError("MISSING", what, where=where))
                continue
            own = split or folder_split(image)
            photo = photos.setdefault(image, Photo(image, split=own))
            photo.stated = photo.stated or _size(tree, image)
            if names.setdefault(image, stated) != stated:
                what = f"{names[image]!r} and {stated[:100]!r} would both be {image}"
                photo.faults.append(DataError("TWICE", what, where=where, fix="give each photo its own name"))
            if (row["region_count"] or "").strip() == "0":
                continue
            photo.take(partial(_label, row, alone, found, where))
    found.photos = list(photos.values())
    found.classes = found.names()
    found.leave_unlabelled(tree.images, folder_split)
    return found


def _is_via(tree: Tree, name: str) -> bool:
    try:
        head = tree.text(name).split("\n", 1)[0]
    except DataError:
        return False
    return {column.strip().strip('#"') for column in head.split(",")} >= COLUMNS


def _rows(tree: Tree, file: str) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(tree.text(file)))
        reader.fieldnames = [name.strip().lstrip("#") for name in reader.fieldnames or []]  # VIA 1 writes #filename
        rows = list(reader)
    except csv.Error as error:
        raise DataError("CSV", f"the csv cannot be read ({error})", where=str(tree.root / file)) from error
    if lacking := COLUMNS - set(reader.fieldnames):
        raise DataError("CSV", f"the columns {', '.join(sorted(lacking))} are not there", where=str(tree.root / file))
    return rows


def _image(tree: Tree, file: str, stated: str, split: str) -> str | None:
    """The image at the stated path as seen from the csv; else the one that `Tree.match` finds certain."""
    there = posixpath.normpath(posixpath.join(posixpath.dirname(file), stated.replace("\\", "/")))
    return there if there in tree.images_set else tree.match(stated, file, split)


def _size(tree: Tree, image: str) -> tuple[int, int] | None:
    """The image's own: VIA states none. None where it cannot be read, which the importer tells."""
    try:
        return tree.size(image)
    except DataError:
        return None


def _label(row: dict[str, str], alone: bool, found: Found, where: str) -> Label:
    shape, attributes = _object(row, "region_shape_attributes", where), _object(row, "region_attributes", where)
    box = _box(shape, where)
    if shape["name"] != "rect":
        found.counts[SHAPES] += 1
    return Label(_class(attributes, alone, where), box, where)


def _object(row: dict[str, str], column: str, where: str) -> dict[str, Any]:
    value = _parsed(row, column)
    if value is None:
        raise DataError("ROW", f"{column} is {(row[column] or '')[:60]!r}, not an object of json", where=where)
    return value


def _parsed(row: dict[str, str], column: str) -> dict[str, Any] | None:
    try:
        value = json.loads(row[column] or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _box(shape: dict[str, Any], where: str) -> list[float]:
    kind = shape.get("name")

    def numbers(*keys: str) -> list[float]:
        values = [shape.get(key) for key in keys]
        if not all(map(is_number, values)):
            raise DataError("SHAPE", f"the {kind} lacks one of the numbers {', '.join(keys)}", where=where)
        return [float(value) for value in values if is_number(value)]

    if kind == "rect":
        return numbers("x", "y", "width", "height")
    if kind == "circle":
        x, y, r = numbers("cx", "cy", "r")
        return [x - r, y - r, 2 * r, 2 * r]
    if kind == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        turn = shape.get("theta") if is_number(shape.get("theta")) else 0.0  # radians
        cos, sin = math.cos(float(turn or 0)), math.sin(float(turn or 0))
        half_w, half_h = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        return [x - half_w, y - half_h, 2 * half_w, 2 * half_h]
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if kind != "polygon" or not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or len(xs) < 3:
        fix = "draw a rectangle or a polygon, or delete it"
        raise DataError("SHAPE", f"a {str(kind)[:40]} of these points has no box", where=where, fix=fix)
    if not all(map(is_number, [*xs, *ys])):
        raise DataError("SHAPE", "the points of the polygon are not all numbers", where=where)
    return hull(xs, ys)


def _class(attributes: dict[str, Any], alone: bool, where: str) -> str:
    """alone: whether the regions of the csv have one attribute between them, which is the class whatever its name."""
    keys = list(attributes)
    if not alone:
        known = ["class"] if "class" in attributes else [key for key in CLASS_KEYS if key in attributes]
        keys = [key for key in known if attributes[key]] or known[:1]
    if attributes and len(keys) != 1:
        what = f"the region has the attributes {', '.join(attributes)[:100]}; which is the class cannot be known"
        raise DataError("CLASS", what, where=where, fix="call it class")
    value = attributes[keys[0]] if keys else ""
    if isinstance(value, dict):  # a checkbox: name -> ticked
        ticked = [name for name, on in value.items() if on]
        if len(ticked) > 1:
            raise DataError("CLASS", f"the region is {' and '.join(ticked)[:100]} at once", where=where)
        value = ticked[0] if ticked else ""
    return str(value or "").strip()
