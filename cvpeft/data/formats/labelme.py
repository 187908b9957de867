"""LabelMe: a json for each image, beside it, with a list of shapes.

Rectangles in any order of their corners, polygons and circles become the boxes around them; other shapes have no box
and are faults. A json belongs to the image of its own name; only where there is none, to that of its imagePath.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from cvpeft.data.coco_file import is_number, short, stated_size
from cvpeft.data.convert.found import Found, Label, Photo, hull
from cvpeft.data.convert.tree import Tree, folder_split, key
from cvpeft.errors import DataError

__all__ = ["matches", "read"]

POLYGONS = "polygons and circles are replaced by the upright boxes around them"
LEAST = {"rectangle": 2, "polygon": 3, "circle": 2}  # points


def matches(tree: Tree) -> bool:
    return any(_is_labelme(tree, name) for name in tree.ending(".json")[:20])


def read(tree: Tree) -> Found:
    found = Found()
    for file in tree.ending(".json"):
        where = str(tree.root / file)
        try:
            content: Any = tree.json(file)
            if not _is_labelme(tree, file):
                found.counts["json files are no LabelMe files and are passed over"] += 1
                continue
            image = _image(tree, file, content, where)
        except DataError as fault:
            found.blame(tree.by_key.get(key(file), []), fault)
            continue
        photo = Photo(
            image,
            split=folder_split(image),
            stated=stated_size(content.get("imageHeight"), content.get("imageWidth")),
        )
        for number, shape in enumerate(content["shapes"]):
            photo.take(partial(_label, shape, found, f"{where}: shapes[{number}]"))
        found.photos.append(photo)
    found.classes = found.names()
    found.leave_unlabelled(tree.images, folder_split)
    return found


def _is_labelme(tree: Tree, name: str) -> bool:
    try:
        content = tree.json(name)
    except DataError:
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _image(tree: Tree, file: str, content: dict[str, Any], where: str) -> str:
    stated = str(content.get("imagePath") or "")
    image = tree.of_labels(file, where) or (tree.match(stated, file) if stated else None)
    if image is None:
        what = f"the labels have no image: neither {PurePosixPath(file).stem} nor {stated[:100]!r} is there"
        raise DataError("MISSING", what, where=where)
    return image


def _label(shape: object, found: Found, where: str) -> Label:
    if not isinstance(shape, dict):
        raise DataError("SHAPE", f"the shape is {short(shape)}, not an object", where=where)
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in LEAST:
        what, fix = f"a {str(kind)[:40]} has no box", "draw a rectangle or a polygon, or delete it"
        raise DataError("SHAPE", what, where=where, fix=fix)
    if not _are_points(points) or len(points) < LEAST[kind]:
        what = f"the points of the {kind} are {short(points)}, not {LEAST[kind]} or more pairs of numbers"
        raise DataError("SHAPE", what, where=where)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    if kind != "rectangle":
        found.counts[POLYGONS] += 1
    if kind == "circle":  # its centre, and a point on it
        radius = math.dist(points[0], points[1])
        xs, ys = [xs[0] - radius, xs[0] + radius], [ys[0] - radius, ys[0] + radius]
    return Label(str(shape.get("label") or "").strip(), hull(xs, ys), where)


def _are_points(points: object) -> TypeGuard[list[list[float]]]:
    return isinstance(points, list) and all(
        isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points
    )
