"""A COCO json that is refused -> a new one, with what can be put right without a change of meaning put right.

Each repair is a function on the lists of the json; it counts what it does and keeps an example of each in a log. The
json itself is never written to. What is left is told by `load_coco`, as for any other file.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvpeft.data.boxes import clip_box, read_box, upright_hull
from cvpeft.data.check.pixels import decode_all
from cvpeft.data.coco import load_coco
from cvpeft.data.coco_file import (
    Lists,
    crowd_mark,
    is_id,
    is_number,
    read_coco_file,
    read_json,
    short,
    stated_size,
    whole,
)
from cvpeft.data.convert.sizes import settle
from cvpeft.data.convert.tree import Tree
from cvpeft.data.images import find_image, is_file, too_many_unreadable
from cvpeft.errors import DataError
from cvpeft.files import refuse_existing, write_whole
from cvpeft.runtime.image import Size

__all__ = ["Fixed", "autofix"]

LEAST_INSIDE = 0.5  # of a box that may be clipped; of what lies farther out, nobody knows what it was


@dataclass(frozen=True)
class Fixed:
    """counts: repair -> how often. left: what has to be corrected by hand, or None. log: every change, one by one."""

    file: Path
    counts: Counter[str]
    left: DataError | None
    log: Path


@dataclass
class _Work:
    """The json while it is repaired. sizes: upright size by image id, of the images that can be read."""

    file: Path
    lists: Lists
    sizes: dict[int, Size] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def note(self, what: str, where: str, before: object, after: object = None) -> None:
        self.changes.append({"repair": what, "where": where, "before": before, "after": after})


def autofix(file: Path, out: Path, *, drop_unreadable: bool = False, progress: bool = True) -> Fixed:
    """Write `out` and, beside it, its log NAME.log.json; `file` and its images stay as they are.

    Put right: ids that are texts or 7.0, categories of one name, entries of one image, backslashes and foreign prefixes
    in file names where it is certain which image is meant, sizes that are missing or swapped where the boxes show which
    way is meant, boxes that leave their image by less than half, boxes without area, the same box twice, areas, crowd
    marks, ids of annotations.
    drop_unreadable: images that are missing or cannot be decoded are taken out, with their boxes, as long as they are
    few; every image is decoded for it. progress: a bar while that lasts.
    DataError: `file` is no COCO json, `out` is there, or does not lie in a folder above the images; too many to drop.
    """
    refuse_existing(out)
    log = out.with_suffix(".log.json")
    refuse_existing(log)
    read_coco_file(file)  # says what is wrong with what is no COCO json
    content: Any = read_json(file)
    work = _Work(file, copy.deepcopy({key: content[key] for key in ("images", "annotations", "categories")}))
    for repair in REPAIRS:
        repair(work)
    if drop_unreadable:
        _drop_unreadable(work, progress=progress)
    _rebase(work, out)
    counts = Counter(change["repair"] for change in work.changes)
    write_whole(out, json.dumps({**content, **work.lists}))
    text = {"json": str(file), "counts": dict(counts), "changes": work.changes}
    write_whole(log, json.dumps(text, indent=1, ensure_ascii=False))
    return Fixed(out, counts, _left(out), log)


def _left(out: Path) -> DataError | None:
    try:
        load_coco([out])
    except DataError as fault:
        return fault
    return None


def _objects(entries: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)]


def _title(box: dict[str, Any]) -> str:
    return f"annotation {short(box.get('id'))} of image {short(box.get('image_id'))}"


# Ids


def _whole_ids(work: _Work) -> None:
    keys = {"images": ["id"], "categories": ["id"], "annotations": ["image_id", "category_id"]}
    for part, names in keys.items():
        for number, entry in enumerate(_objects(work.lists[part])):
            for name in names:
                old = entry.get(name)
                new = whole(old)
                if new is not old:
                    work.note("ids become whole numbers", f"{part}[{number}].{name}", old, new)
                    entry[name] = new


def _counted_ids(entries: list[Any]) -> Counter[int]:
    return Counter(entry["id"] for entry in _objects(entries) if is_id(entry.get("id")))


def _join_categories(work: _Work) -> None:
    """Two categories of one name become the first; an id that others have too is left, or their boxes would follow."""
    first: dict[str, int] = {}
    new: dict[int, int] = {}
    kept = []
    ids = _counted_ids(work.lists["categories"])
    for entry in work.lists["categories"]:
        name, number = (entry.get("name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        one = first.get(name) if isinstance(name, str) else None
        if one is not None and is_id(number) and number != one and ids[number] == ids[one] == 1:
            work.note("categories of one name are joined", f"category {number}", name, one)
            new[number] = one
            continue
        if isinstance(name, str) and is_id(number):
            first.setdefault(name, number)
        kept.append(entry)
    work.lists["categories"] = kept
    for box in _objects(work.lists["annotations"]):
        if is_id(box.get("category_id")):
            box["category_id"] = new.get(box["category_id"], box["category_id"])


def _number_annotations(work: _Work) -> None:
    boxes = _objects(work.lists["annotations"])
    ids = [box.get("id") for box in boxes]
    if all(map(is_id, ids)) and len(set(ids)) == len(ids) and 0 not in ids:
        return
    for number, box in enumerate(boxes, 1):
        if box.get("id") != number:
            work.note("annotations are numbered anew", _title(box), box.get("id"), number)
            box["id"] = number


# Images


def _find_images(work: _Work) -> None:
    root = work.file.parent.resolve()
    entries = _objects(work.lists["images"])
    names = {name for entry in entries if isinstance(name := entry.get("file_name"), str)}
    there = {name: new for name in names if _is_there(root, new := name.replace("\\", "/"))}
    new_names = {**there, **_matches(root, names - there.keys(), there.values(), work.file.name)}
    for number, entry in enumerate(entries):
        old = entry.get("file_name")
        if isinstance(old, str) and (new := new_names.get(old, old)) != old:
            work.note("file names lead to their image", f"images[{number}]", old, new)
            entry["file_name"] = new


def _matches(root: Path, lost: Collection[str], there: Iterable[str], file: str) -> dict[str, str]:
    """Lost name -> the image that it means, where that is certain: no other name is or means the same image."""
    if not lost:
        return {}
    tree = Tree.of(root)
    found = {name: image for name in lost if (image := tree.match(name, file)) and _is_there(root, image)}
    place = {name: find_image(root, image, str(root))[0] for name, image in found.items()}
    owners = Counter([*place.values(), *{find_image(root, name, str(root))[0] for name in there}])
    return {name: image for name, image in found.items() if owners[place[name]] == 1}


def _is_there(root: Path, name: str) -> bool:
    path = _path_of(root, name)
    return path is not None and is_file(path)


def _path_of(root: Path, name: object) -> Path | None:
    """Where an image lies, there or not; None: its name is none, or leads out of the folder."""
    try:
        return find_image(root, name, str(root))[0]
    except DataError:
        return None


def _join_images(work: _Work) -> None:
    """Two entries of one image and one size become the first; the boxes of both are its boxes."""
    first: dict[Path, dict[str, Any]] = {}
    new: dict[int, int] = {}
    kept = []
    ids = _counted_ids(work.lists["images"])
    root = work.file.parent.resolve()
    for entry in work.lists["images"]:
        if (
            not isinstance(entry, dict)
            or not is_id(entry.get("id"))
            or not _is_there(root, str(entry.get("file_name")))
        ):
            kept.append(entry)
            continue
        path = find_image(root, entry["file_name"], str(root))[0]
        one = first.setdefault(path, entry)
        same = all(one.get(key) == entry.get(key) for key in ("width", "height"))
        unique = ids[entry["id"]] == ids[one["id"]] == 1 or one["id"] == entry["id"]
        if one is entry or not same or not unique:
            kept.append(entry)
            continue
        work.note("entries of one image are joined", f"image {entry['id']}", entry["file_name"], one["id"])
        new[entry["id"]] = one["id"]
    work.lists["images"] = kept
    for box in _objects(work.lists["annotations"]):
        if is_id(box.get("image_id")):
            box["image_id"] = new.get(box["image_id"], box["image_id"])


def _settle_sizes(work: _Work) -> None:
    tree = Tree(work.file.parent.resolve(), ())
    boxes, ids = _boxes(work), _counted_ids(work.lists["images"])
    for entry in _objects(work.lists["images"]):
        number, name = entry.get("id"), entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        if not is_id(number) or ids[number] > 1 or not isinstance(name, str):  # nobody knows in which image boxes lie
            continue
        try:
            size = tree.size(name)
            note = settle(stated_size(height, width), size, boxes.get(number, []), name)
        except DataError:  # told by `load_coco` or by the loader: which size is meant cannot be known
            continue
        work.sizes[number] = size
        if note or (height, width) != size:
            work.note("sizes are those of the upright image", name, [width, height], [size[1], size[0]])
            entry["height"], entry["width"] = size


def _drop_unreadable(work: _Work, *, progress: bool) -> None:
    """Take out what cannot be decoded; the log keeps each entry and each box, with the reason."""
    root, images = work.file.parent.resolve(), work.lists["images"]
    paths = {
        number: path
        for number, entry in enumerate(images)
        if isinstance(entry, dict) and (path := _path_of(root, entry.get("file_name")))
    }
    pixels = decode_all(list(paths.values()), progress=progress)
    broken = {number: str(fault) for number, path in paths.items() if (fault := pixels[path].fault)}
    if fault := too_many_unreadable(len(broken), len(images), str(work.file)):
        raise fault
    for number, why in broken.items():
        work.note("images that cannot be read are taken out", why, images[number])
    work.lists["images"] = [entry for number, entry in enumerate(images) if number not in broken]
    left = {entry["id"] for entry in _objects(work.lists["images"]) if is_id(entry.get("id"))}
    gone = {images[number]["id"] for number in broken if is_id(images[number].get("id"))} - left
    kept = []
    for entry in work.lists["annotations"]:
        if isinstance(entry, dict) and is_id(entry.get("image_id")) and entry["image_id"] in gone:
            work.note("boxes of images that cannot be read are taken out", _title(entry), entry)
        else:
            kept.append(entry)
    work.lists["annotations"] = kept


def _boxes(work: _Work) -> dict[int, list[list[float]]]:
    """Sound boxes by image id."""
    found: dict[int, list[list[float]]] = {}
    for entry in _objects(work.lists["annotations"]):
        try:
            box = read_box(entry.get("bbox"), "")
        except DataError:
            continue
        if is_id(entry.get("image_id")):
            found.setdefault(entry["image_id"], []).append(upright_hull(box, entry))
    return found


# Boxes


def _mend_boxes(work: _Work) -> None:
    kept = []
    for entry in work.lists["annotations"]:
        if not isinstance(entry, dict):
            kept.append(entry)
            continue
        try:
            box = read_box(entry.get("bbox"), "")
        except DataError:
            kept.append(entry)
            continue
        if box[2] == 0 or box[3] == 0:
            work.note("boxes without area are dropped", _title(entry), entry["bbox"])
            continue
        _clip(work, entry, box)
        kept.append(entry)
    work.lists["annotations"] = kept


def _clip(work: _Work, entry: dict[str, Any], box: list[float]) -> None:
    """Cut a box that leaves its image by less than half; a rotated one is cut when it is read."""
    size = work.sizes.get(entry["image_id"]) if is_id(entry.get("image_id")) else None
    if size is None or upright_hull(box, entry) is not box:
        return
    inside = clip_box(box, *size, "", check=False)
    if inside is box or min(inside[2:]) <= 0 or inside[2] * inside[3] < LEAST_INSIDE * box[2] * box[3]:
        return
    work.note("boxes are clipped to their image", _title(entry), entry["bbox"], inside)
    entry["bbox"] = inside
    if is_number(entry.get("area")):
        entry["area"] = min(entry["area"], inside[2] * inside[3])


def _drop_doubles(work: _Work) -> None:
    seen: set[str] = set()
    kept = []
    for entry in work.lists["annotations"]:
        if isinstance(entry, dict):
            exact = [entry.get(key) for key in ("image_id", "category_id", "bbox")]  # 0 is an id, and null is none
            mark = json.dumps([*exact, *(entry.get(key) or None for key in ("iscrowd", "attributes"))], sort_keys=True)
            if mark in seen and entry.get("bbox"):
                work.note("boxes that are there twice are dropped once", _title(entry), entry["bbox"])
                continue
            seen.add(mark)
        kept.append(entry)
    work.lists["annotations"] = kept


def _mend_marks(work: _Work) -> None:
    """Area and crowd in the form that COCO has for them, where that is certain."""
    for entry in _objects(work.lists["annotations"]):
        area, old = entry.get("area"), entry.get("iscrowd")
        if area is not None and not (is_number(area) and area >= 0):
            work.note("areas that are none are left out", _title(entry), area)
            del entry["area"]
        if (crowd := crowd_mark(old)) is not old:
            work.note("crowd marks become 0 or 1", _title(entry), old, crowd)
            entry["iscrowd"] = crowd


def _rebase(work: _Work, out: Path) -> None:
    """File names relative to the folder of the new json, where that is another."""
    old, new = work.file.parent.resolve(), out.parent.resolve()
    if old == new:
        return
    if not old.is_relative_to(new):
        what, fix = f"the images lie in or below {old}", "put the new json there, or into a folder above"
        raise DataError("OUT", what, where=str(out), why="a json may only name what lies below it", fix=fix)
    for entry in _objects(work.lists["images"]):
        if isinstance(entry.get("file_name"), str):
            entry["file_name"] = (old.relative_to(new) / entry["file_name"]).as_posix()


REPAIRS: tuple[Callable[[_Work], None], ...] = (
    _whole_ids, _join_categories, _find_images, _join_images, _settle_sizes, _mend_boxes, _drop_doubles, _mend_marks,
    _number_annotations,
)  # fmt: skip
