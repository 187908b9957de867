"""The annotations of one COCO json -> the labels of its images, a million in seconds.

Sound annotations, nearly all of them, are recognised a column at a time. Whatever is odd about one, it is read alone by
`_read_one`, which knows every rule and tells every fault.
Letters: A annotations, N boxes that are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np

from cvpeft.data.boxes import clip_box, read_box, upright_hull
from cvpeft.data.coco_file import is_id, is_number, short
from cvpeft.errors import DataError

__all__ = ["Labels", "Places", "read_labels"]

Label = tuple[list[float], int, bool, float]  # x y w h, label, crowd, area
NOTHING = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Places:
    """What annotations refer to: sound images by id (file name, height, width), all ids that images have, labels 1..K
    of category ids, and the names of all categories.
    """

    file: str
    images: Mapping[int, tuple[str, int, int]]
    known: Mapping[int, str]
    labels: Mapping[int, int]
    categories: Mapping[int, str]


@dataclass
class Labels:
    """Boxes in the order of the json. image: number of the image in `Places.images`. counts: what was put right."""

    image: np.ndarray  # (N,) int64
    boxes: np.ndarray  # (N, 4) float64
    labels: np.ndarray  # (N,) int64
    crowd: np.ndarray  # (N,) bool
    areas: np.ndarray  # (N,) float64
    counts: Counter[str] = field(default_factory=Counter)

    def by_image(self, images: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """(boxes, labels, crowd, areas) of each image."""
        order = np.argsort(self.image, kind="stable")
        ends = np.searchsorted(self.image[order], np.arange(images), side="right").tolist()
        boxes, labels, crowd, areas = (column[order] for column in (self.boxes, self.labels, self.crowd, self.areas))
        return [(boxes[a:b], labels[a:b], crowd[a:b], areas[a:b]) for a, b in pairwise([0, *ends])]


def read_labels(entries: Sequence[object], places: Places, faults: list[DataError]) -> Labels:
    """The labels of all annotations; what is wrong with one is added to `faults`, in their order."""
    numbers = {key: number for number, key in enumerate(places.images)}
    columns = _Columns(entries, places, numbers)
    plain = columns.plain()
    found = Labels(
        columns.image,
        columns.boxes,
        columns.label,
        columns.crowd,
        np.where(columns.area > 0, columns.area, columns.full),
    )
    kept = plain.copy()
    unknown: dict[tuple[str, object], list[str]] = {}
    for row in np.flatnonzero(~plain).tolist():
        entry = entries[row]
        if not isinstance(entry, dict):
            fault = f"an annotation is {short(entry)}, not an object"
            faults.append(DataError("COCO", fault, where=f"{places.file}: annotations[{row}]"))
            continue
        try:
            label = _read_entry(entry, places, row, unknown, found.counts)
        except DataError as fault:
            faults.append(fault)
            continue
        if label is not None:
            kept[row] = True
            found.image[row] = numbers[entry["image_id"]]
            found.boxes[row], found.labels[row], found.crowd[row], found.areas[row] = label
    for (key, value), titles in unknown.items():
        faults.append(_unknown_id(places, key, value, titles))
    for name in ("image", "boxes", "labels", "crowd", "areas"):
        setattr(found, name, getattr(found, name)[kept])
    return found


class _Columns:
    """The fields of all annotations side by side, and which of them say nothing odd."""

    def __init__(self, entries: Sequence[object], places: Places, numbers: Mapping[int, int]) -> None:
        nothing: dict[str, Any] = {}
        rows = [entry if type(entry) is dict else nothing for entry in entries]
        sizes = np.array([(height, width) for _, height, width in places.images.values()] or [(0, 0)], np.float64)
        self.image = _looked_up([row.get("image_id") for row in rows], numbers)  # (A,) -1: none
        self.label = _looked_up([row.get("category_id") for row in rows], places.labels)
        self.size = sizes[self.image]  # (A, 2) height, width
        boxes = [row.get("bbox") for row in rows]
        self.boxes = _numbers(
            list(chain.from_iterable(b if type(b) is list and len(b) == 4 else NOTHING for b in boxes))
        )
        self.boxes = self.boxes.reshape(-1, 4)
        crowds = [row.get("iscrowd") for row in rows]
        self.usual_crowd = np.array([c is None or (type(c) is int and c in (0, 1)) for c in crowds], bool)
        self.crowd = np.array([c == 1 for c in crowds], bool)
        self.area = _numbers([0 if (area := row.get("area")) is None else area for row in rows])
        attributes = (row.get("attributes") for row in rows)
        self.upright = np.array([not (type(a) is dict and a.get("rotation")) for a in attributes], bool)
        self.full = self.boxes[:, 2] * self.boxes[:, 3]

    def plain(self) -> np.ndarray:
        """(A,) known image and class, an upright box with an area and inside of its image, usual crowd and area."""
        x, y, w, h = self.boxes.T
        height, width = self.size.T
        with np.errstate(invalid="ignore"):
            inside = (w > 0) & (h > 0) & (x >= 0) & (y >= 0) & (x + w <= width) & (y + h <= height)
            return inside & (self.image >= 0) & (self.label >= 0) & self.usual_crowd & (self.area >= 0) & self.upright


def _looked_up(keys: list[Any], table: Mapping[int, int]) -> np.ndarray:
    """(A,) int64; -1 for what is no whole number (True and 1.0 are equal to 1) or not in the table."""
    return np.array([table.get(key, -1) if type(key) is int else -1 for key in keys], np.int64)


def _numbers(values: list[Any]) -> np.ndarray:
    """Values as float64; NaN for what is no finite number. numpy alone would take "4" and True for numbers."""
    if not set(map(type, values)) <= {int, float}:
        values = [value if is_number(value) else np.nan for value in values]
    try:
        found = np.array(values, np.float64)
    except OverflowError:  # an integer of hundreds of digits
        found = np.array([value if is_number(value) else np.nan for value in values], np.float64)
    found[~(np.abs(found) < 1e300)] = np.nan
    return found


# ------------------------------------------------------------------------------------------------------------ one alone


def _read_entry(
    entry: dict[str, Any],
    places: Places,
    row: int,
    unknown: dict[tuple[str, object], list[str]],
    counts: Counter[str],
) -> Label | None:
    """The label of one annotation, None where it has none to keep. Unknown ids are gathered: they come in crowds."""
    title = f"annotation {entry['id']}" if is_id(entry.get("id")) else f"annotations[{row}]"
    image, category = entry.get("image_id"), entry.get("category_id")
    if not is_id(image) or image not in places.known:
        unknown.setdefault(("image_id", short(image)), []).append(title)
    elif not is_id(category) or category not in places.categories:
        unknown.setdefault(("category_id", short(category)), []).append(title)
    elif image in places.images and category in places.labels:
        return _read_one(entry, places, places.labels[category], title, counts)
    return None


def _unknown_id(places: Places, key: str, value: object, titles: list[str]) -> DataError:
    who = titles[0] + (f" and {len(titles) - 1} more" if len(titles) > 1 else "")
    if key == "image_id":
        what = f"{who}: image_id is {value}, which no image has"
        return DataError("IMGID", what, where=places.file, fix="take them out, or add the image")
    present = ", ".join(f"{number} {name}" for number, name in sorted(places.categories.items())) or "none"
    what = f"{who}: category_id is {value}, but the categories are {present}"
    return DataError("CAT", what, where=places.file, fix="add the category, or correct the annotations")


def _read_one(entry: dict[str, Any], places: Places, label: int, title: str, counts: Counter[str]) -> Label | None:
    name, height, width = places.images[entry["image_id"]]
    where = f"{places.file}: {name}, {title}"
    box = read_box(entry.get("bbox"), where)
    crowd, area = entry.get("iscrowd"), entry.get("area")
    if crowd not in (None, 0, 1):
        raise DataError("CROWD", f"iscrowd is {short(crowd)}, not 0 or 1", where=where)
    if area is not None and not (is_number(area) and area >= 0):
        raise DataError("AREA", f"area is {short(area)}, not a number of pixels", where=where)
    if box[2] == 0 or box[3] == 0:
        counts["boxes have no area and are dropped"] += 1
        return None
    hull = upright_hull(box, entry)
    if hull is not box:
        counts["rotated boxes are replaced by the upright boxes around them"] += 1
    inside = clip_box(hull, height, width, where, check=hull is box)
    if inside[2] <= 0 or inside[3] <= 0:
        counts["boxes lie just outside of their image and are dropped"] += 1
        return None
    full = inside[2] * inside[3]
    area = full if not area else min(area, full) if inside is not box else area
    return inside, label, bool(crowd), float(area)
