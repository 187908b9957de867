"""COCO json files -> one clean data set in memory, or one error that tells every fault that was found.

What could change a label's meaning is a fault; what cannot is put right in memory and counted in `notes`.
Images are looked up, not decoded: the loader compares their pixels with the sizes that the json states.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvpeft.data.boxes import clip_box, read_box, upright_hull
from cvpeft.data.coco_file import dummy_category, is_id, is_number, read_coco_file, short
from cvpeft.data.faults import raise_faults
from cvpeft.data.images import find_image, is_file, missing_images
from cvpeft.errors import DataError
from cvpeft.runtime.image import upright_size

__all__ = ["CocoData", "ImageRecord", "load_coco"]

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
    if not files:
        raise DataError("DATA", "no json file is given", fix="name one in data.train, data.val or data.test")
    faults: list[DataError] = []
    sources = [source for file in files if (source := _read_source(Path(file), faults))]
    if not classes and (not sources or sources[0].file != Path(files[0])):
        raise_faults(faults)  # the first file, whose categories are the classes, cannot be read
    names = _class_names(sources, classes, faults)
    for source in sources:
        _match_classes(source, names, faults)
        _read_images(source, faults)
        _read_annotations(source, names, faults)
    _refuse_shared_images(sources, faults)
    if faults:
        raise_faults(faults)
    notes = [note for source in sources for note in source.notes()]
    drafts = [draft for source in sources for draft in source.images.values()]
    return CocoData(tuple(draft.record(i) for i, draft in enumerate(drafts, 1)), tuple(names), tuple(notes))


@dataclass
class _Draft:
    """An image while its labels are gathered."""

    path: Path
    file_name: str
    height: int
    width: int
    domain: str
    labels: list[tuple[list[float], int, bool, float]] = field(default_factory=list)

    def record(self, number: int) -> ImageRecord:
        boxes, labels, crowd, areas = zip(*self.labels, strict=True) if self.labels else ((), (), (), ())
        return ImageRecord(
            number, self.path, self.file_name, self.height, self.width, self.domain,
            np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64), np.array(crowd, bool),
            np.array(areas, np.float64),
        )  # fmt: skip


@dataclass
class _Source:
    """One json while it is read. `images` holds sound images by the json's id; `known` also those with a fault."""

    file: Path
    content: dict[str, list[Any]]
    categories: dict[int, str]
    images: dict[int, _Draft] = field(default_factory=dict)
    known: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # what was put right, and how often

    def notes(self) -> list[str]:
        counted = [f"{n} {what}" for what, n in self.counts.items()]
        return [f"{self.file.name}: {note}" for note in self.remarks + counted]

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
    ids = Counter(a["id"] for a in content["annotations"] if isinstance(a, dict) and is_id(a.get("id")))
    if repeated := sum(n - 1 for n in ids.values()):
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
        elif not isinstance(name, str) or not name.strip():
            faults.append(DataError("CAT", f"the name is {short(name)}, not a text", where=where))
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
    name = dummy_category(source.content, source.used())
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
    used = source.used()
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
    paths: dict[Path, int] = {}
    missing: list[str] = []
    for index, entry in enumerate(entries):
        try:
            number, path, name = _identify(source, entry, root, f"{file}: images[{index}]")
            if path in paths:
                what = f"{name} is listed twice, as image {paths[path]} and {number}"
                raise DataError("IMGNAME", what, where=str(file), fix="merge the two entries")
            paths[path] = number
            if not is_file(path):
                missing.append(name)
                continue
            height, width = _stated_size(source, entry, path, f"{file}: {name}")
        except DataError as fault:
            faults.append(fault)
            continue
        own = entry.get("domain") or entry.get("city") or domain
        source.images[number] = _Draft(path, name, height, width, str(own))
    if missing:
        faults.append(missing_images(file, missing, len(entries)))


def _identify(source: _Source, entry: object, root: Path, where: str) -> tuple[int, Path, str]:
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
    path, name = find_image(root, name, where)
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


def _file_domain(file: Path) -> str:
    """`berlin_train.json` -> berlin, `berlin/annotations/train.json` -> berlin; the rule stands at load_coco."""
    stem = file.name.removesuffix(".json")
    for name in (stem, *(folder.name for folder in file.absolute().parents)):
        if own := ENDS.sub("", name):
            return own
    return stem


def _refuse_shared_images(sources: list[_Source], faults: list[DataError]) -> None:
    owner: dict[Path, int] = {}
    shared: dict[tuple[int, int], list[str]] = {}
    for index, source in enumerate(sources):
        for draft in source.images.values():
            first = owner.setdefault(draft.path, index)
            if first != index:
                shared.setdefault((first, index), []).append(draft.file_name)
    for (first, index), names in shared.items():
        what = f"{len(names)} images are also listed in {sources[first].file}, the first is {names[0]}"
        why, fix = "their boxes would be counted twice", "list each image in one file"
        faults.append(DataError("IMGNAME", what, where=str(sources[index].file), why=why, fix=fix))


# --------------------------------------------------------------------------------------------------------- annotations


def _read_annotations(source: _Source, names: list[str], faults: list[DataError]) -> None:
    labels = {number: names.index(name) + 1 for number, name in source.categories.items() if name in names}
    unknown: dict[tuple[str, object], list[str]] = {}
    for index, entry in enumerate(source.content["annotations"]):
        if not isinstance(entry, dict):
            fault = f"an annotation is {short(entry)}, not an object"
            faults.append(DataError("COCO", fault, where=f"{source.file}: annotations[{index}]"))
            continue
        title = f"annotation {entry['id']}" if is_id(entry.get("id")) else f"annotations[{index}]"
        image, category = entry.get("image_id"), entry.get("category_id")
        if not is_id(image) or image not in source.known:
            unknown.setdefault(("image_id", short(image)), []).append(title)
        elif not is_id(category) or category not in source.categories:
            unknown.setdefault(("category_id", short(category)), []).append(title)
        elif image in source.images and category in labels:
            try:
                _read_label(source, entry, source.images[image], labels[category], title)
            except DataError as fault:
                faults.append(fault)
    for (key, value), titles in unknown.items():
        faults.append(_unknown_id(source, key, value, titles))


def _unknown_id(source: _Source, key: str, value: object, titles: list[str]) -> DataError:
    who = titles[0] + (f" and {len(titles) - 1} more" if len(titles) > 1 else "")
    if key == "image_id":
        what = f"{who}: image_id is {value}, which no image has"
        return DataError("IMGID", what, where=str(source.file), fix="take them out, or add the image")
    present = ", ".join(f"{number} {name}" for number, name in sorted(source.categories.items())) or "none"
    what = f"{who}: category_id is {value}, but the categories are {present}"
    return DataError("CAT", what, where=str(source.file), fix="add the category, or correct the annotations")


def _read_label(source: _Source, entry: dict[str, Any], image: _Draft, label: int, title: str) -> None:
    where = f"{source.file}: {image.file_name}, {title}"
    box = read_box(entry.get("bbox"), where)
    crowd, area = entry.get("iscrowd"), entry.get("area")
    if crowd not in (None, 0, 1):
        raise DataError("CROWD", f"iscrowd is {short(crowd)}, not 0 or 1", where=where)
    if area is not None and not (is_number(area) and area >= 0):
        raise DataError("AREA", f"area is {short(area)}, not a number of pixels", where=where)
    if box[2] == 0 or box[3] == 0:
        source.counts["boxes have no area and are dropped"] += 1
        return
    hull = upright_hull(box, entry)
    if hull is not box:
        source.counts["rotated boxes are replaced by the upright boxes around them"] += 1
    inside = clip_box(hull, image.height, image.width, where, check=hull is box)
    if inside[2] <= 0 or inside[3] <= 0:
        source.counts["boxes lie just outside of their image and are dropped"] += 1
        return
    full = inside[2] * inside[3]
    area = full if not area else min(area, full) if inside is not box else area
    image.labels.append((inside, label, bool(crowd), float(area)))
