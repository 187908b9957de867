"""One COCO box x y w h, as a tool wrote it -> the part that lies in its image, or one sentence on what is wrong."""

from __future__ import annotations

import math
from typing import Any

from cvpeft.data.coco_file import is_number, short
from cvpeft.errors import DataError

__all__ = ["Box", "clip_box", "read_box", "upright_hull"]

Box = list[float]  # x y w h in pixels

SLACK_PIXELS, SLACK_PART = 2.0, 0.01  # how far a box may leave its image and is clipped without a word


def read_box(bbox: object, where: str) -> Box:
    """Four finite numbers, none of the sides negative. Raises DataError that names `where`."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        raise DataError("BOX", f"bbox is {short(bbox)}, not four numbers x y w h", where=where)
    if bbox[2] < 0 or bbox[3] < 0:
        fix = "COCO boxes are x y w h; corners x1 y1 x2 y2 must be converted"
        raise DataError("BOX", f"bbox {bbox} has a negative size", where=where, fix=fix)
    return [float(v) for v in bbox]


def upright_hull(box: Box, entry: dict[str, Any]) -> Box:
    """The box around a rotated one, else `box` itself. CVAT exports it unrotated, with the degrees beside it."""
    attributes = entry.get("attributes")
    angle = attributes.get("rotation") if isinstance(attributes, dict) else None
    if not is_number(angle) or angle == 0:
        return box
    x, y, w, h = box
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    width, height = w * cos + h * sin, w * sin + h * cos
    return [x + (w - width) / 2, y + (h - height) / 2, width, height]


def clip_box(box: Box, height: int, width: int, where: str, *, check: bool = True) -> Box:
    """The part inside of the image, `box` itself where that is all of it; without area where nothing is.

    Raises DataError where it leaves the image by more than 2 pixels and more than 1 % of the side, unless not `check`.
    """
    if _excess(box, height, width) <= 0:
        return box
    slack_x, slack_y = (max(SLACK_PIXELS, SLACK_PART * side) for side in (width, height))
    x, y, w, h = box
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    too_far = max(x1 - x, x + w - x2) > slack_x or max(y1 - y, y + h - y2) > slack_y
    if check and too_far:
        why = "often the image was scaled after it was labelled, or the boxes are not x y w h in pixels"
        if _excess(box, width, height) <= 0:
            why = "it would fit the image turned by 90 degrees; often it was labelled without its EXIF orientation"
        what = f"bbox {[round(v, 1) for v in box]} leaves the image of {width}x{height}"
        raise DataError("BOX", what, where=where, why=why, fix="export the labels again for the images as they are")
    return [x1, y1, x2 - x1, y2 - y1]


def _excess(box: Box, height: int, width: int) -> float:
    return max(-box[0], -box[1], box[0] + box[2] - width, box[1] + box[3] - height)
