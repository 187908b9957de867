"""COCO json files -> one clean data set in memory, or one error that tells every fault that was found.

What could change a label's meaning is a fault; what cannot is put right in memory and counted in `notes`.
Images are looked up, not decoded: the loader compares their pixels with the sizes that the json states.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cvpeft.data.coco_file import dummy_category, is_id, is_number, read_coco_file, short
from cvpeft.data.coco_labels import Places, read_labels
from cvpeft.data.faults import raise_faults
from cvpeft.data.images import find_image, is_file, missing_images
from cvpeft.errors import DataError
from cvpeft.runtime.image import upright_size
from cvpeft.runtime.metadata import LONGEST_NAME, is_name

__all__ = ["CocoData", "ImageRecord", "Reading", "load_coco", "read_coco"]

# Words that name a split or a kind of file and no place; cut off both ends of a name, they leave its domain.
WORD = r"(train(ing)?|val(id|idation)?|test(ing)?|instances|annotations?|labels?|images|coco|default|data)(20\d\d)?"
ENDS = re.compile(rf"^([._-]*{WORD}(?=[._-]|$))+[._-]*|([._-]+{WORD})+$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its labels.

    id: 1.. over all files together; file_name: as in the json, with forward slashes; domain: see `load_coco`.
    height, width: upright, as the json states them. boxes: x y w h in pixels of that image. labels: 1..K.
    crowd: boxes that stand for a group; not trained on, and neutral in scoring. areas: as in the json, else w * h.
    """

    id: int
    path: Path
    file_name: str
    height: int
    width: int
    domain: str
    boxes: np.ndarray  # (N, 4) float64
    labels: np.ndarray  # (N,) int64
    crowd: np.ndarray  # (N,) bool
    areas: np.ndarray  # (N,) float64


@dataclass(frozen=True, eq=False)
class CocoData:
    """Images in the order of their files, class names in order of their labels 1..K, and one-line warnings."""

    images: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dict with ids from 1 throughout and category ids 1..K, as pycocotools wants it."""
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            for box, label, crowd, area in zip(image.boxes, image.labels, image.crowd, image.areas, strict=True):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image.id, "category_id": int(label),
                    "bbox": box.tolist(), "area": float(area), "iscrowd": int(crowd),
                })  # fmt: skip
        return {
            "info": {},
            "images": [
                {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width, "domain": i.domain}
                for i in self.images
            ],
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(self.classes, 1)],
        }


def load_coco(files: Sequence[Path], *, classes: Sequence[str] = ()) -> CocoData:
    """Read COCO json files, one per city, say, as one data set; images are found relative to the folder of their json.

    classes: names in order of their labels. Empty: those of the first file, by category id. Categories are matched by
    name; one with boxes that is not among the classes is a fault, one without boxes is left out with a note.
    Domain of an image: its "domain" or "city" in the json; else the json's name without a split's name
    (`berlin_train.json` is berlin); if nothing is left of it (`train.json`, `instances_val2017.json`), the nearest
    folder above that has a name of its own. Images without boxes are kept.
    Raises DataError with the first 20 faults of all files and their count.
    """
    reading = read_coco(files, classes=classes)
    if reading.faults:
        raise_faults(reading.faults)
    return reading.data


@dataclass(frozen=True)
class Reading:
    """data: what is sound of some json files; faults: all that is not; missing: files of images that are not there."""

    data: CocoData
    faults: tuple[DataError, ...]
    missing: tuple[Path, ...]


def read_coco(files: Sequence[Path], *, classes: Sequence[str] = ()) -> Reading:
    """As `load_coco`, but with the faults beside what is sound. Raises DataError where no file is named."""
    if not files:
        raise DataError("DATA", "no json file is given", fix="name one in data.train, data.val or data.test")
    faults: list[DataError] = []
    sources = [source for file in files if (source := _read_source(Path(file), faults))]
    if not classes and (not sources or sources[0].file != Path(files[0])):
        # the first file, whose categories are the classes, cannot be read
        return Reading(CocoData((), (), ()), tuple(faults), ())
    names = _class_names(sources, classes, faults)
    images: list[ImageRecord] = []
    for source in sources:
        _match_classes(source, names, faults)
        _read_images(source, faults)
        images += _labelled(source, names, len(images) + 1, faults)
    _refuse_shared_images(sources, faults)
    notes = [note for source in sources for note in source.notes()]
    missing = [path for source in sources for path in source.missing]
    return Reading(CocoData(tuple(images), tuple(names), tuple(notes)), tuple(faults), tuple(missing))


@dataclass(frozen=True)
class _Draft:
    """An image before its labels are known."""

    path: Path
    file_name: str
    height: int
    width: int
    domain: str


@dataclass
class _Source:
    """One json while it is read. `images` holds sound images by the json's id; `known` also those with a fault."""

    file: Path
    content: dict[str, list[Any]]
    categories: dict[int, str]
    images: dict[int, _Draft] = field(default_factory=dict)
    known: dict[int, str] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # what was put right, and how often

    def notes(self) -> list[str]:
        counted = [f"{n} {what}" for what, n in self.counts.items()]
        return [f"{self.file.name}: {note}" for note in self.remarks + counted]

    @cached_property
    def used(self) -> set[object]:
        """Category ids that have annotations."""
        ids = (a.get("category_id") for a in self.content["annotations"] if isinstance(a, dict))
        return {i for i in ids if is_id(i)}


# ---------------------------------------------------------------------------------------------------------------- json


def _read_source(file: Path, faults: list[DataError]) -> _Source | None:
    try:
        content = read_coco_file(file)
    except DataError as fault:
        faults.append(fault)
        return None
    source = _Source(file, content, _categories(file, content["categories"], faults))
    _leave_out_dummy(source)
    ids = [a["id"] for a in content["annotations"] if isinstance(a, dict) and is_id(a.get("id"))]
    if repeated := len(ids) - len(set(ids)):
        source.counts["annotation ids repeat; they are renumbered in memory"] += repeated
    return source


# ---------------------------------------------------------------------------------------------------------- categories


def _categories(file: Path, entries: list[Any], faults: list[DataError]) -> dict[int, str]:
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{file}: categories[{index}]"
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not is_id(number):
            faults.append(DataError("CAT", f"the id is {short(number)}, not a whole number", where=where))
        elif not isinstance(name, str) or not name.strip() or name != _text(name):
            faults.append(DataError("CAT", f"the name is {short(name)}, not a text", where=where))
        elif not is_name(name):
            what = f"the name {short(name)} has control characters or more than {LONGEST_NAME} letters"
            why, fix = "no exported file could hold it", "rename it in the json"
            faults.append(DataError("CAT", what, where=where, why=why, fix=fix))
        elif number in found:
            faults.append(DataError("CAT", f"id {number} is used by {found[number]!r} and {name!r}", where=where))
        elif name in found.values():
            faults.append(DataError("CAT", f"the name {name!r} is used twice", where=where, fix="merge the two"))
        else:
            found[number] = name
    if not entries:
        faults.append(DataError("CAT", "the list of categories is empty", where=str(file)))
    return found


def _leave_out_dummy(source: _Source) -> None:
    name = dummy_category(source.content, source.used)
    if name is not None and source.categories.pop(0, None) is not None:
        source.remarks.append(f"category 0 {name!r} only stands above the others and is left out")


def _class_names(sources: list[_Source], classes: Sequence[str], faults: list[DataError]) -> list[str]:
    if classes:
        names = list(classes)
        if repeated := [name for name, n in Counter(names).items() if n > 1]:
            faults.append(DataError("CLASS", f"the class {repeated[0]!r} is named twice", where="data.classes"))
        return names
    return [name for _, name in sorted(sources[0].categories.items())]


def _match_classes(source: _Source, names: list[str], faults: list[DataError]) -> None:
    used = source.used
    for number, name in source.categories.items():
        if name in names:
            continue
        if number not in used:
            source.remarks.append(f"category {name!r} has no boxes and is not among the classes; left out")
            continue
        near = difflib.get_close_matches(name.casefold(), [n.casefold() for n in names], 1)
        hint = f" (did you mean {next(n for n in names if n.casefold() == near[0])!r}?)" if near else ""
        what = f"category {number} {name!r} is not among the classes {', '.join(names)}{hint}"
        fix = "rename it in the json, or list all names in data.classes"
        faults.append(DataError("CLASS", what, where=str(source.file), fix=fix))
    for name in names:
        if name not in source.categories.values():
            source.remarks.append(f"class {name!r} does not occur in this file")


# -------------------------------------------------------------------------------------------------------------- images


def _read_images(source: _Source, faults: list[DataError]) -> None:
    file, entries = source.file, source.content["images"]
    root = file.parent.resolve()
    domain = _file_domain(file)
    paths: dict[str, int] = {}
    folders: dict[str, str] = {}
    missing: list[str] = []
    for index, entry in enumerate(entries):
        try:
            number, path, name = _identify(source, entry, root, f"{file}: images[{index}]", folders)
            if (spelled := str(path)) in paths:  # hashing a Path is slow
                what = f"{name} is listed twice, as image {paths[spelled]} and {number}"
                raise DataError("IMGNAME", what, where=str(file), fix="merge the two entries")
            paths[spelled] = number
            if not is_file(path):
                missing.append(name)
                source.missing.append(path)
                continue
            height, width = _stated_size(source, entry, path, f"{file}: {name}")
        except DataError as fault:
            faults.append(fault)
            continue
        own = entry.get("domain") or entry.get("city") or domain
        source.images[number] = _Draft(path, name, height, width, _text(str(own)))
    if missing:
        faults.append(missing_images(file, missing, len(entries)))


def _identify(source: _Source, entry: object, root: Path, where: str, folders: dict[str, str]) -> tuple[int, Path, str]:
    if not isinstance(entry, dict):
        raise DataError("COCO", f"an image is {short(entry)}, not an object", where=where)
    number, name = entry.get("id"), entry.get("file_name")
    if not is_id(number):
        raise DataError("IMGID", f"the id is {short(number)}, not a whole number", where=where)
    if number in source.known:
        what = f"image id {number} is used by {source.known[number]} and {name}"
        fix = "list the json files one by one in data.train instead of joining them by hand"
        raise DataError("IMGID", what, where=str(source.file), why="boxes cannot be assigned", fix=fix)
    source.known[number] = str(name)
    path, name = find_image(root, name, where, folders)
    return number, path, name


def _stated_size(source: _Source, entry: dict[str, Any], path: Path, where: str) -> tuple[int, int]:
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        source.counts["images state no size; it was read from their files"] += 1
        return upright_size(path)
    for key, value in (("height", height), ("width", width)):
        if not is_number(value) or value < 1 or value != int(value):
            raise DataError("IMGSIZE", f"{key} is {short(value)}, not a count of pixels", where=where)
    return int(height), int(width)


def _labelled(source: _Source, names: list[str], first: int, faults: list[DataError]) -> list[ImageRecord]:
    """The images of a json with their labels, numbered from `first`."""
    places = Places(
        str(source.file),
        {number: (draft.file_name, draft.height, draft.width) for number, draft in source.images.items()},
        source.known,
        {number: names.index(name) + 1 for number, name in source.categories.items() if name in names},
        source.categories,
    )
    labels = read_labels(source.content["annotations"], places, faults)
    source.counts += labels.counts
    drafts = zip(source.images.values(), labels.by_image(len(source.images)), strict=True)
    return [
        ImageRecord(number, d.path, d.file_name, d.height, d.width, d.domain, *columns)
        for number, (d, columns) in enumerate(drafts, first)
    ]


def _file_domain(file: Path) -> str:
    """`berlin_train.json` -> berlin, `berlin/annotations/train.json` -> berlin; the rule stands at load_coco."""
    stem = file.name.removesuffix(".json")
    for name in (stem, *(folder.name for folder in Path(os.path.abspath(file)).parents)):  # without the `..` of a path
        if own := ENDS.sub("", name):
            return own
    return stem


def _text(name: str) -> str:
    """What any file can hold; halves of a surrogate pair, which Linux's file names may decode to, become `?`."""
    return name.encode("utf-8", "replace").decode()


def _refuse_shared_images(sources: list[_Source], faults: list[DataError]) -> None:
    owner: dict[str, int] = {}
    shared: dict[tuple[int, int], list[str]] = {}
    for index, source in enumerate(sources):
        for draft in source.images.values():
            first = owner.setdefault(str(draft.path), index)
            if first != index:
                shared.setdefault((first, index), []).append(draft.file_name)
    for (first, index), names in shared.items():
        what = f"{len(names)} images are also listed in {sources[first].file}, the first is {names[0]}"
        why, fix = "their boxes would be counted twice", "list each image in one file"
        faults.append(DataError("IMGNAME", what, where=str(sources[index].file), why=why, fix=fix))
