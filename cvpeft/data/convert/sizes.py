"""The size that labels state against the size that the image has: which of them the boxes are in."""

from __future__ import annotations

from collections.abc import Sequence

from cvpeft.data.boxes import Box
from cvpeft.errors import DataError
from cvpeft.runtime.image import Size

__all__ = ["settle"]

SLACK = 2.0  # pixels that a box may leave the image by
SCALED = 0.01  # sizes whose sides are in one ratio to this part are one image at two scales


def settle(stated: Size | None, found: Size, boxes: Sequence[Box], where: str, *, loose: bool = False) -> str:
    """What is to be counted where the image's own size counts in place of the stated one; empty where they agree.

    stated, found: (height, width) in the labels, and of the upright image. boxes: x y w h. Raises DataError where the
    boxes may be in the stated size: the image lies turned by its EXIF, was scaled after it was labelled, or is another.
    loose: the last is no fault, as the format's tools often write a size that is wrong.
    """
    if stated == found:
        return ""
    if stated is None or min(stated) <= 0:
        return "images have no size in their labels; that of their file was taken"
    told = "images have another size in their labels than their file has; that of the file was taken"
    if not boxes or (_fit(boxes, found) and not _fit(boxes, stated)):
        return told
    sizes = f"the labels say {stated[1]}x{stated[0]}, the upright image has {found[1]}x{found[0]}"
    if stated == found[::-1]:
        why = "the boxes may have been drawn on the photo as it lies, without its EXIF orientation"
        raise DataError("EXIF", sizes, where=where, why=why, fix="export the labels again for the upright photos")
    down, across = found[0] / stated[0], found[1] / stated[1]
    if abs(down / across - 1) < SCALED and abs(down - 1) > SCALED:
        why = "the image seems to have been scaled after it was labelled, its boxes not"
        raise DataError("SCALED", sizes, where=where, why=why, fix="take the images that were labelled")
    if not loose:
        why = "the boxes may be those of another image, or of this one before it was stretched"
        raise DataError("IMGSIZE", sizes, where=where, why=why, fix="take the images that were labelled")
    return told


def _fit(boxes: Sequence[Box], size: Size) -> bool:
    return all(x + w <= size[1] + SLACK and y + h <= size[0] + SLACK for x, y, w, h in boxes)
