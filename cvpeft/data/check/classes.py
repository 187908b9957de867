"""How many boxes of each class are where, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cvpeft.data.check.finding import Case, Finding, Split, error, warning
from cvpeft.errors import DataError

__all__ = ["check_classes", "class_counts"]

FEW = 10  # boxes below which a class can hardly be learnt, or scored
UNEVEN = 50  # times that the most frequent class has the boxes of another


def class_counts(case: Case, split: Split) -> np.ndarray:
    """(K,) boxes of each class in a split, crowds included."""
    _, labels, _ = case.boxes(split)
    return np.bincount(labels, minlength=len(case.classes) + 1)[1:]


def check_classes(case: Case) -> Iterator[Finding]:
    for split in case.splits:
        counts = class_counts(case, split)
        if split.images and not counts.sum():
            what = f"none of the {len(split.images)} images has a box"
            yield error(DataError("EMPTY", what, where=split.name, why="there is nothing to learn or to score"))
            continue
        most = int(counts.argmax()) if len(counts) else 0
        for name, count in zip(case.classes, counts.tolist(), strict=True):
            if count < FEW and split.images:
                what = f"class '{name}' has {count or 'no'} boxes"
                why = "a class needs examples to be learnt, and to be scored"
                yield warning(DataError("CLASS", what, where=split.name, why=why, fix="label more, or split anew"))
            elif counts[most] > UNEVEN * count:
                what = f"class '{name}' has {count} boxes, '{case.classes[most]}' has {counts[most]}"
                yield warning(DataError("BALANCE", what, where=split.name, why="the rare class will be found less"))
