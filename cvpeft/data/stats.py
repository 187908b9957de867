"""What a data set holds, as a table of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cvpeft.data.coco import CocoData, ImageRecord

__all__ = ["stats"]

SMALL, MEDIUM = 32**2, 96**2  # px², COCO's borders


def stats(data: CocoData) -> str:
    """Boxes of each class by size, images with it; the same for each domain; boxes per image; notes of the reading."""
    rows: list[tuple[str, ...]] = [("class", "boxes", "small", "medium", "large", "images")]
    rows += [_row(name, data.images, label) for label, name in enumerate(data.classes, 1)]
    rows.append(_row("all", data.images))
    domains = Counter(image.domain for image in data.images)
    table: list[tuple[str, ...]] = [("domain", "boxes", "small", "medium", "large", "images", "without boxes")]
    for name in domains:
        images = [image for image in data.images if image.domain == name]
        table.append((*_row(name, images, all_images=True), str(sum(not len(image.boxes) for image in images))))
    counts = np.array([len(image.boxes) for image in data.images])
    crowds = sum(int(image.crowd.sum()) for image in data.images)
    lines = [
        *_aligned(rows), "", *_aligned(table), "",
        f"boxes per image: mean {counts.mean():.2f}, median {np.median(counts):g}, most {counts.max()}; "
        f"{(counts == 0).sum()} of {len(counts)} images without boxes; {crowds} crowd boxes",
        "small: area below 32 x 32 px, medium: below 96 x 96 px, in pixels of the photos",
        *(f"note: {note}" for note in data.notes),
    ]  # fmt: skip
    return "\n".join(lines)


def _row(name: str, images: Sequence[ImageRecord], label: int = 0, *, all_images: bool = False) -> tuple[str, ...]:
    """label 0: of every class. images: those with such a box, or all."""
    areas = [image.areas[image.labels == label] if label else image.areas for image in images]
    held = len(images) if all_images else sum(len(one) > 0 for one in areas)
    every = np.concatenate([np.zeros(0), *areas])
    sizes = np.histogram(every, (0, SMALL, MEDIUM, np.inf))[0]
    return (name, *map(str, (len(every), *sizes.tolist(), held)))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows]
