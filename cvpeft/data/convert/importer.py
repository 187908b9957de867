"""A folder of a labelling tool -> one clean COCO json for each of its splits, or every fault of it at once."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cvpeft.data import formats as folder
from cvpeft.data.boxes import Box, clip_box, read_box, upright_hull
from cvpeft.data.convert.found import Found, Label, Photo
from cvpeft.data.convert.sizes import settle
from cvpeft.data.convert.tree import Tree
from cvpeft.data.convert.writer import Part, write_set
from cvpeft.data.faults import raise_faults
from cvpeft.data.similar import ROBOFLOW
from cvpeft.errors import DataError
from cvpeft.runtime.image import Size

__all__ = ["Format", "Imported", "formats", "import_labels"]

ORDER = ("train", "val", "test")
REST = "data"  # the json of images that are in no split

ROTATED = "rotated boxes are replaced by the upright boxes around them"
EMPTY = "boxes have no area and are dropped"
DOUBLE = "boxes are there twice, of one class in one place; the second is dropped"
OUTSIDE = "boxes lie just outside of their image and are dropped"
UNLABELLED = "images have no labels and are left out (--negatives takes them as images that show nothing)"
SKIP = "correct them in the source, or leave these images out, counted, by --on-fault skip"


@dataclass(frozen=True)
class Format:
    """One file of cvpeft/data/formats."""

    name: str
    matches: Callable[[Tree], bool]
    read: Callable[[Tree], Found]


@dataclass(frozen=True)
class Imported:
    """What was made. parts: the json files. notes: what was put right or left out, with counts. log: all of it."""

    form: str
    parts: Sequence[Part]
    notes: Sequence[str]
    log: Path


@functools.cache
def formats() -> dict[str, Format]:
    """Name of each file in formats/ -> its two functions."""
    found = {}
    for _, name, _ in pkgutil.iter_modules(folder.__path__):
        module: Any = importlib.import_module(f"{folder.__name__}.{name}")
        found[name] = Format(name, module.matches, module.read)
    return found


def import_labels(
    source: Path,
    out: Path,
    *,
    form: str = "auto",
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    skip: bool = False,
    negatives: bool = False,
    join: bool = False,
) -> Imported:
    """Write OUT/train.json, val.json, test.json, as far as the source has these splits; OUT/data.json for the rest.

    Where the source has copies that Roboflow made of photos, each image gets the field "photo", the same for all copies
    of one: they may lie in several splits where an augmented set was uploaded once more.

    source: a folder, or one file of labels in it. form: a name of `formats()`, or auto. rename: class of the source ->
    class of the json. copy: see `write_set`. skip: leave out images with a fault, and labels without an image, where
    they are refused otherwise. negatives: images without a label file show nothing, also where the format says no such
    thing. join: all images into data.json, to be split anew; the field "split" keeps the source's.
    Every image is opened, so that its size is known to be right.
    DataError: the format is unknown, a fault of the source (all are told at once), or `out` is in the way.
    """
    tree = Tree.of(source)
    chosen = _chosen(tree, form)
    found = chosen.read(tree)
    _take_unlabelled(found, negatives)
    misnamed = _rename(found, rename or {})
    _mark_copies(found)
    if join:
        _join(found)
    drafts = _drafts(tree, found)
    if misnamed and skip:  # it is the command that is wrong, not the source
        raise_faults(misnamed)
    of_photos = (fault for photo in found.photos for fault in photo.faults)
    faults = list(dict.fromkeys([*misnamed, *found.faults, *of_photos]))  # one may be of two photos
    if faults and not skip:
        raise_faults(faults, fix=SKIP if len(faults) > 1 else "")
    kept = {photo.name: drafts[photo.name] for photo in found.photos if not photo.faults}
    if not kept:
        raise_faults([*faults, DataError("EMPTY", f"no image is left to import ({chosen.name})", where=str(tree.root))])
    notes = _notes(found, len(found.photos) - len(kept))
    log = {
        "source": str(tree.root), "format": chosen.name, "notes": notes, "left_out": [str(fault) for fault in faults],
    }  # fmt: skip
    contents = _contents(found.classes, [kept[name] for name in sorted(kept)])
    places = {name: tree.path(name) for name in kept}
    parts, file = write_set(out, contents, places, source=tree.root, copy=copy, log=log)
    return Imported(chosen.name, parts, notes, file)


def _chosen(tree: Tree, form: str) -> Format:
    known = formats()
    if form != "auto":
        if form not in known:
            raise DataError("FORMAT", f"no format '{form}'", fix=f"choose one of {', '.join(known)}")
        return known[form]
    fitting = [one for one in known.values() if one.matches(tree)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        what = "no labels of a known format were found"
        raise DataError("FORMAT", what, where=str(tree.root), fix=f"say which it is by --format {'|'.join(known)}")
    names = [one.name for one in fitting]
    what = f"there are labels of {' and '.join(names)}"
    raise DataError("FORMAT", what, where=str(tree.root), fix=f"say which to take by --format {'|'.join(names)}")


def _take_unlabelled(found: Found, negatives: bool) -> None:
    if negatives:
        found.photos += [Photo(name, split=split) for name, split in found.unlabelled.items()]
    elif found.unlabelled:
        found.counts[UNLABELLED] += len(found.unlabelled)


def _rename(found: Found, new: Mapping[str, str]) -> list[DataError]:
    """Put the new names in place of the classes'; returns a fault for each name that the source has not."""
    faults = []
    known = {*found.classes, *(label.name for photo in found.photos for label in photo.labels)}
    for name in new.keys() - known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        what = f"no class {name!r} to rename{hint}; there are {', '.join(sorted(known))}"
        faults.append(DataError("MAP", what))
    for photo in found.photos:
        photo.labels = [replace(label, name=new.get(label.name, label.name)) for label in photo.labels]
    names = [*found.classes, *([""] if "" in new else [])]
    found.classes = [name for name in dict.fromkeys(new.get(name, name) for name in names) if name]
    return faults


def _mark_copies(found: Found) -> None:
    stems = {photo.name: PurePosixPath(photo.name).stem for photo in found.photos}
    if any(ROBOFLOW.search(stem) for stem in stems.values()):
        for photo in found.photos:
            photo.fields.setdefault("photo", ROBOFLOW.sub("", stems[photo.name]))


def _join(found: Found) -> None:
    for photo in found.photos:
        if photo.split:
            photo.fields.setdefault("split", photo.split)
            photo.split = ""


# Photos


@dataclass(frozen=True)
class _Draft:
    """A photo whose labels were checked, each with the box that is left of it."""

    photo: Photo
    size: Size
    labels: Sequence[tuple[Label, Box]]


def _drafts(tree: Tree, found: Found) -> dict[str, _Draft]:
    """The photos without a fault, by name; faults that come up here go to their photos."""
    drafts: dict[str, _Draft] = {}
    places: dict[Path, Photo] = {}
    for photo in found.photos:
        try:
            size = tree.size(photo.name)
            first = places.setdefault(tree.path(photo.name), photo)
            if first is not photo:
                fault = DataError("TWICE", f"{photo.name} has labels in two places", where=str(tree.root))
                first.faults.append(fault)
                raise fault
            drafts[photo.name] = _draft(photo, size, found, str(tree.root / photo.name))
        except DataError as fault:
            if fault not in photo.faults:  # the reader may have opened the image already
                photo.faults.append(fault)
    return drafts


def _draft(photo: Photo, size: Size, found: Found, where: str) -> _Draft:
    """Appends what is wrong with single labels to the photo's faults; raises what is wrong with all of them."""
    boxes: list[tuple[Label, Box]] = []
    for label in photo.labels:
        try:
            if not label.name:
                fix = "give it one, or name what has none: --map =NAME"
                raise DataError("CLASS", "the object has no class", where=label.where, fix=fix)
            boxes.append((label, read_box(label.box, label.where)))
        except DataError as fault:
            photo.faults.append(fault)
    if note := settle(photo.stated, size, [box for _, box in boxes], where, loose=found.loose_sizes):
        found.counts[note] += 1
    kept: list[tuple[Label, Box]] = []
    for label, box in boxes:
        try:
            inside = _inside(label, box, size, found.counts)
        except DataError as fault:
            photo.faults.append(fault)
            continue
        if inside and any(other.name == label.name and seen == inside for other, seen in kept):
            found.counts[DOUBLE] += 1
        elif inside:
            kept.append((label, inside))
    return _Draft(photo, size, kept)


def _inside(label: Label, box: Box, size: Size, counts: Counter[str]) -> Box | None:
    """What is left of a box in its image; None where that is nothing. DataError where too much lies outside."""
    if box[2] == 0 or box[3] == 0:
        counts[EMPTY] += 1
        return None
    whole = upright_hull(box, {"attributes": {"rotation": label.rotation}})
    if whole is not box:
        counts[ROTATED] += 1
    inside = clip_box(whole, *size, label.where, check=whole is box)
    if inside[2] <= 0 or inside[3] <= 0:
        counts[OUTSIDE] += 1
        return None
    return inside


# The json files


def _contents(classes: Sequence[str], drafts: Sequence[_Draft]) -> dict[str, dict[str, Any]]:
    """Name of each json -> its COCO content; all have the same categories."""
    numbers = {name: number for number, name in enumerate(classes, 1)}
    parts: dict[str, list[_Draft]] = defaultdict(list)
    for draft in drafts:
        parts[draft.photo.split or REST].append(draft)
    return {name: _content(numbers, parts[name]) for name in sorted(parts, key=[*ORDER, REST].index)}


def _content(numbers: Mapping[str, int], drafts: Sequence[_Draft]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, draft in enumerate(drafts, 1):
        height, width = draft.size
        head = {"id": number, "file_name": draft.photo.name, "width": width, "height": height}
        images.append({**draft.photo.fields, **head})
        for label, box in draft.labels:
            full = box[2] * box[3]
            annotations.append({
                **label.fields, "id": len(annotations) + 1, "image_id": number, "category_id": numbers[label.name],
                "bbox": box, "area": min(label.area, full) if label.area else full, "iscrowd": int(label.crowd),
            })  # fmt: skip
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _notes(found: Found, left_out: int) -> list[str]:
    notes = [f"{count} {what}" for what, count in found.counts.items() if count]
    if left_out:
        notes.append(f"{left_out} images have faults and are left out")
    if found.faults:
        kinds = Counter(fault.code for fault in found.faults)
        notes.append("faults of no image, passed over: " + ", ".join(f"{n} {code}" for code, n in kinds.items()))
    return notes
