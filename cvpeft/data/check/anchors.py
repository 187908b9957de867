"""Whether the anchors of a config can reach the boxes at the size that the network sees them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cvpeft.data.check.finding import Anchors, Case, Finding, Split, warning
from cvpeft.errors import DataError
from cvpeft.runtime.image import fit

__all__ = ["best_overlap", "check_anchors", "input_sides", "shapes"]

REACHED = 0.5  # IoU of an anchor on the same centre from which a box trains well
MANY = 0.1  # part of the boxes that is worth a word


def check_anchors(case: Case) -> Iterator[Finding]:
    if case.anchors is None:
        return
    for split in case.splits:
        sides = input_sides(case, split, case.anchors.size)
        missed = best_overlap(sides, case.anchors) < REACHED
        if len(sides) and missed.mean() > MANY:
            small = int((missed & (sides.min(1) < case.anchors.sides[0])).sum())
            what = (
                f"{int(missed.sum())} of {len(sides)} boxes overlap no anchor by {REACHED} IoU, {small} are too small"
            )
            sizes = ", ".join(f"{side:.4g}" for side in case.anchors.sides)
            why = f"the anchors are {sizes} px at an input of {case.anchors.size}"
            fix = "set detector.anchor_sizes, data.size or data.canvas"
            yield warning(DataError("ANCHORS", what, where=split.name, why=why, fix=fix))


def input_sides(case: Case, split: Split, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) width and height of every box in input pixels."""
    boxes, _, owner = case.boxes(split)
    scale = np.array([fit((i.height, i.width), size).inner[0] / i.height for i in split.images] or [1.0])
    return boxes[:, 2:] * scale[owner, None]


def shapes(anchors: Anchors) -> np.ndarray:
    """(A, 2) width and height of every anchor in input pixels; ratios (height / width) keep an anchor's area."""
    root = np.sqrt(np.array(anchors.ratios))
    sides = np.array(anchors.sides)[:, None]
    return np.stack([(sides / root).ravel(), (sides * root).ravel()], 1)


def best_overlap(sides: np.ndarray, anchors: Anchors) -> np.ndarray:
    """(N, 2) -> (N,) IoU with the best anchor on the same centre."""
    own = shapes(anchors)
    shared = np.minimum(sides[:, :1], own[:, 0]) * np.minimum(sides[:, 1:], own[:, 1])  # (N, A)
    union = sides.prod(1)[:, None] + own.prod(1) - shared
    return (shared / union).max(1) if len(sides) else np.zeros(0)
