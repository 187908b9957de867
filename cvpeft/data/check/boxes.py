"""Boxes that are possible and yet seldom meant: the whole image, slivers, two on one spot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cvpeft.data.check.finding import Case, Finding, Split, warning
from cvpeft.errors import DataError

__all__ = ["check_boxes"]

WHOLE = 0.95  # part of the image that a box covers
SLIVER = 2.0  # px of the shorter side
THIN = 20.0  # longer side / shorter side
STACKED = 0.9  # IoU of two boxes that are one


def check_boxes(case: Case) -> Iterator[Finding]:
    for split in case.splits:
        boxes, labels, owner = case.boxes(split)
        if not len(boxes):
            continue
        sizes = np.array([(image.width, image.height) for image in split.images], float)[owner]
        part = boxes[:, 2:].prod(1) / sizes.prod(1)
        short, long = boxes[:, 2:].min(1), boxes[:, 2:].max(1)
        one, other = _stacked(boxes, owner)
        same = labels[one] == labels[other]
        suspects = (
            ("WHOLE", "cover the whole image", "often a label of the whole photo was exported as a box", part > WHOLE),
            ("SLIVER", "are slivers", "a click that slipped leaves them", (short < SLIVER) | (long > THIN * short)),
            (
                "STACKED",
                "lie on another box of their class",
                "one of the two counts as missed",
                _mask(one[same], boxes),
            ),
            ("TWICE", "lie on a box of another class", "one of the two classes is wrong", _mask(one[~same], boxes)),
        )
        for code, what, why, which in suspects:
            yield from _tell(split, code, what, why, which, owner)


def _tell(split: Split, code: str, what: str, why: str, which: np.ndarray, owner: np.ndarray) -> Iterator[Finding]:
    if which.any():
        images = [split.images[i] for i in np.unique(owner[which]).tolist()]
        told = f"{int(which.sum())} boxes {what}, the first in {images[0].file_name}"
        fault = DataError(code, told, where=split.name, why=why, fix="look at them in the report")
        yield warning(fault, [image.path for image in images])


def _mask(rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(boxes), bool)
    mask[rows] = True
    return mask


def _stacked(boxes: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of boxes of one image with IoU above STACKED, (P,) and (P,).

    Such boxes begin near each other: sorted by image and left side, only followers within a tenth of the width count.
    """
    order = np.lexsort((boxes[:, 0], owner))
    rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    alive, step = np.arange(len(order)), 0
    while len(alive):
        step += 1
        alive = alive[alive + step < len(order)]
        one, other = order[alive], order[alive + step]
        reach = (owner[one] == owner[other]) & (boxes[other, 0] - boxes[one, 0] <= (1 - STACKED) * boxes[one, 2])
        alive, one, other = alive[reach], one[reach], other[reach]
        hit = _iou(boxes[one], boxes[other]) > STACKED
        rows[0].append(one[hit])
        rows[1].append(other[hit])
    return np.concatenate(rows[0]), np.concatenate(rows[1])


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P, 4), (P, 4) x y w h -> (P,)."""
    near = np.maximum(one[:, :2], other[:, :2])
    far = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    shared = np.clip(far - near, 0, None).prod(1)
    return shared / (one[:, 2:].prod(1) + other[:, 2:].prod(1) - shared)
