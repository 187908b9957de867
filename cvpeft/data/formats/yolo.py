"""YOLO: beside each image, or in `labels` for `images`, a text file with a row `class x y w h` for each object.

x y is the centre; all four are parts of the upright image's sides. Rows of a class and points of a polygon, as
segmentation and oriented boxes have them, become the boxes around the points. Where data.yaml has kpt_shape, rows are
those of poses: a box, then keypoints, which are left out. Class names stand in data.yaml, or in classes.txt (Label
Studio) or obj.names (CVAT, darknet); data.yaml may name the folders or lists of images of each split, otherwise folders
called train, valid, test do. Roboflow's `../train/images` beside train/ is found. An image without a text file shows
nothing, as YOLO has it.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cvpeft.config.reader import Fault, Origin, RefusedError, parse
from cvpeft.data.coco_file import is_id, short
from cvpeft.data.convert.found import Found, Label, Photo, hull
from cvpeft.data.convert.tree import Tree, folder_split, key
from cvpeft.errors import DataError
from cvpeft.runtime.image import Size

__all__ = ["matches", "read"]

NAMES = ("classes.txt", "obj.names", "predefined_classes.txt")
NO_LABELS = re.compile(r"(classes|predefined_classes|train|val|valid|test|trainval|notes|readme.*)\.txt", re.IGNORECASE)
POLYGONS = "polygons are replaced by the upright boxes around them"
KEYPOINTS = "rows have keypoints, which are left out; their boxes are kept"
FARTHEST = 2.0  # part of a side that no box lies at, however carelessly it was drawn; these are pixels
DIGITS = 4  # of a box in pixels; the files hold six of its parts


def matches(tree: Tree) -> bool:
    return bool(_yamls(tree) or _names_files(tree)) and (bool(_label_files(tree)) or not tree.ending(".xml", ".json"))


def read(tree: Tree) -> Found:
    """DataError where the class names cannot be had, or no image is there."""
    found = Found()
    every_yaml, lists = _yamls(tree), _names_files(tree)
    file = next(iter([*every_yaml, *lists]), "")
    settings = _settings(tree, file)
    found.classes = _class_names(tree, file, settings)
    keypoints = _keypoints(settings, str(tree.root / file))
    labels = _label_files(tree)
    own = _own_names(labels, every_yaml, lists)
    _refuse_other_names(tree, own, file, found.classes)
    yamls = [one for one in dict.fromkeys([file, *own.values()]) if one in every_yaml]
    splits: dict[str, str] = {}
    for one in yamls:
        _read_splits(tree, one, splits, found)
    misplaced = _misplaced(tree, labels)
    for name in tree.images:
        if splits and name not in splits:
            found.counts[f"images are in no split of {' and '.join(yamls)[:200]}; left out"] += 1
            continue
        split = splits[name] if splits else folder_split(name)
        photo = _photo(tree, name, split, labels.get(key(name)), keypoints, found)
        found.photos.append(photo)
        if key(name) not in labels and (other := misplaced.get(PurePosixPath(name).stem)):
            what = f"{other} is called like it, but lies neither beside it nor in `labels` for `images`"
            why, fix = "the photo would count as showing nothing", "move that file there, or away"
            photo.faults.append(DataError("PLACE", what, where=str(tree.root / name), why=why, fix=fix))
    for stem, label in labels.items():
        if stem not in tree.by_key:
            fault = DataError("MISSING", "the labels have no image", where=str(tree.root / label))
            found.faults.append(fault)
    return found


# Classes and splits


def _yamls(tree: Tree) -> list[str]:
    """Those that speak of names, the nearest to the root first, data.yaml before others."""
    files = [f for f in tree.ending(".yaml", ".yml") if re.search(r"^names\s*:", tree.text(f), re.MULTILINE)]
    return sorted(files, key=lambda f: (f.count("/"), PurePosixPath(f).stem != "data", f))


def _names_files(tree: Tree) -> list[str]:
    """Lists of names; a text file of one of these names that has a photo holds its labels."""
    listed = (name for name in tree.files if PurePosixPath(name).name in NAMES)
    return [name for name in listed if not (name.endswith(".txt") and _may_be_labels(tree, name))]


def _own_names(labels: dict[str, str], yamls: list[str], lists: list[str]) -> dict[str, str]:
    """Folder of labels -> the yaml, else the list of names, that lies nearest above it, where one does."""
    folders = sorted({PurePosixPath(name).parent for name in labels.values()})
    own = {str(folder): _nearest(yamls, folder) or _nearest(lists, folder) for folder in folders}
    return {folder: file for folder, file in own.items() if file}


def _refuse_other_names(tree: Tree, own: dict[str, str], file: str, classes: list[str]) -> None:
    """DataError where labels have other names of their own, as two exports side by side may have."""
    for folder, other in own.items():
        if other == file:
            continue
        names = _class_names(tree, other, _settings(tree, other))
        if names != classes:
            what = f"the labels in {folder} have other class names than {file}: {', '.join(names)[:100]}"
            fix = f"import each folder by itself and join them by cvpeft data merge, or move {file} away"
            raise DataError("NAMES", what, where=str(tree.root / other), why="classes would be mixed up", fix=fix)


def _nearest(files: list[str], folder: PurePosixPath) -> str:
    """Of some files the first one in a folder, or in the nearest above it; empty where none lies there."""
    above = {PurePosixPath(file).parent: file for file in reversed(files)}
    return next((above[place] for place in (folder, *folder.parents) if place in above), "")


def _settings(tree: Tree, file: str) -> dict[str, Any]:
    """What a yaml says; nothing of a list of names, or where there is no file."""
    if not file or PurePosixPath(file).name in NAMES:
        return {}
    origin = Origin(str(tree.root / file), 1, tree.root)
    faults: list[Fault] = []
    try:
        node = parse(tree.text(file), origin, faults)
    except RefusedError as refused:
        faults.append(refused.fault)
        node = None
    if faults or node is None:
        raise DataError("YAML", faults[0].what, where=str(faults[0].origin))
    plain = node.plain()
    return plain if isinstance(plain, dict) else {}


def _class_names(tree: Tree, file: str, settings: dict[str, Any]) -> list[str]:
    names = settings.get("names")
    where = str(tree.root / file)
    if isinstance(names, dict):  # index -> name, which may leave out none
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise DataError("NAMES", f"names has the indices {', '.join(names)}, not 0..{len(names) - 1}", where=where)
        names = [names[str(i)] for i in range(len(names))]
    if PurePosixPath(file).name in NAMES:
        # An empty line before the last name has a number too, or all classes behind it would become others.
        names = [line.strip() for line in tree.text(file).rstrip().splitlines()]
    if not isinstance(names, list) or not names:
        what, fix = "the names of the classes are not there", "write data.yaml with `names: [first, second]`"
        raise DataError("NAMES", what, where=where, fix=fix)
    if "nc" in settings and settings["nc"] != len(names):
        raise DataError("NAMES", f"nc is {settings['nc']}, but there are {len(names)} names", where=where)
    return [str(name).strip() for name in names]


def _keypoints(settings: dict[str, Any], where: str) -> int:
    """How many numbers follow the box in a row of poses; 0 where data.yaml speaks of none."""
    shape = settings.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and is_id(shape[0]) and shape[0] > 0 and shape[1] in (2, 3)):
        fix = "write the count of keypoints and the numbers of each: kpt_shape: [17, 3]"
        raise DataError("POSE", f"kpt_shape is {short(shape)}", where=where, fix=fix)
    return int(shape[0] * shape[1])


def _read_splits(tree: Tree, file: str, splits: dict[str, str], found: Found) -> None:
    """Into `splits`, image -> split, the images that data.yaml names."""
    settings = _settings(tree, file)
    shared: dict[tuple[str, str], list[str]] = {}
    for word, split in (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test")):
        entries = settings.get(word)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            named = _named(tree, file, str(settings.get("path") or ""), str(entry))
            if not named:
                found.counts[f"entries of {file} name no image that is there ({word}: {entry})"] += 1
            for name in named:
                if splits.setdefault(name, split) != split:
                    shared.setdefault((splits[name], split), []).append(name)
    for (one, other), names in shared.items():
        what = f"{len(names)} images are in {one} and in {other}, the first is {names[0]}"
        why, fix = (
            "what was trained on would be scored",
            "name other folders there, or split again by cvpeft data split",
        )
        found.faults.append(DataError("SPLIT", what, where=str(tree.root / file), why=why, fix=fix))


def _named(tree: Tree, file: str, base: str, entry: str) -> list[str]:
    """The images of a folder or a list that data.yaml names; the place may be that of the machine it was made on."""
    here = PurePosixPath(file).parts[:-1]
    steps = [p for p in f"{base}/{entry}".replace("\\", "/").split("/") if p not in ("", ".", "..")]
    for start in range(len(steps) + 1):
        place = "/".join([*here, *steps[start:]])
        if place.endswith(".txt") and place in tree.files:
            lines = [line.strip() for line in tree.text(place).splitlines() if line.strip()]
            return [name for line in lines if (name := tree.match(line, file))]
        if start < len(steps) or not steps:
            inside = [n for n in tree.images if n.startswith(f"{place}/" if place else "")]
            if inside:
                return inside
    return []


# Labels


def _label_files(tree: Tree) -> dict[str, str]:
    """Text files of labels by what they share with their images; of two, the one in a folder `labels`."""
    beside = {str(PurePosixPath(name).parent) for name in tree.images}
    files: dict[str, str] = {}
    for name in tree.ending(".txt"):
        path = PurePosixPath(name)
        known_list = NO_LABELS.fullmatch(path.name) and not _may_be_labels(tree, name)
        if (_in_labels(path) or str(path.parent) in beside) and not known_list:
            files.setdefault(key(name), name)
            if _in_labels(path):
                files[key(name)] = name
    return files


def _misplaced(tree: Tree, labels: dict[str, str]) -> dict[str, str]:
    """Text files that are no photo's, by their names without ending."""
    owned = {label for stem, label in labels.items() if stem in tree.by_key}
    texts = map(PurePosixPath, sorted({*tree.ending(".txt")} - owned))
    return {path.stem: str(path) for path in texts if not NO_LABELS.fullmatch(path.name)}


def _in_labels(path: PurePosixPath) -> bool:
    return any(part.lower().startswith("label") for part in path.parts[:-1])


def _may_be_labels(tree: Tree, name: str) -> bool:
    """Whether a text file, whatever its name, has a photo: that of its key, which lies beside it or it in `labels`."""
    path, photos = PurePosixPath(name), tree.by_key.get(key(name), [])
    return any(_in_labels(path) or PurePosixPath(photo).parent == path.parent for photo in photos)


def _photo(tree: Tree, name: str, split: str, label: str | None, keypoints: int, found: Found) -> Photo:
    photo = Photo(name, split=split)
    if label is None:
        found.counts["images have no text file, so they show nothing"] += 1
    try:
        photo.stated = size = tree.size(name)  # the rows are parts of it, and state none
        if label is None:
            return photo
        tree.of_labels(name, str(tree.root / label))  # two images with one stem cannot share their labels
        rows = [(i, line) for i, line in enumerate(tree.text(label).splitlines(), 1) if line.strip()]
    except DataError as fault:
        photo.faults.append(fault)
        return photo
    for number, line in rows:
        photo.take(partial(_label, line, size, keypoints, found, f"{tree.root / label}:{number}"))
    return photo


def _label(line: str, size: Size, keypoints: int, found: Found, where: str) -> Label:
    try:
        first, *values = [float(text) for text in line.split()]
    except ValueError as error:
        raise DataError("ROW", f"the row {line[:60]!r} does not consist of numbers", where=where) from error
    if not all(map(math.isfinite, (first, *values))):
        raise DataError("ROW", f"the row {line[:60]!r} holds what is no number", where=where)
    if first != int(first) or not 0 <= first < len(found.classes):
        what = f"the class is {first:g}, but the names are 0..{len(found.classes) - 1}"
        raise DataError("CLASS", what, where=where, fix="correct the row, or the names in data.yaml")
    x, y, w, h = _box(values, keypoints, found, where)
    height, width = size
    box = [round(v, DIGITS) for v in (x * width, y * height, w * width, h * height)]
    return Label(found.classes[int(first)], box, where)


def _box(values: list[float], keypoints: int, found: Found, where: str) -> list[float]:
    """x y w h, in parts of the image's sides, of the numbers that follow the class."""
    if keypoints:
        if len(values) != 4 + keypoints:
            what = f"the row has {len(values) + 1} numbers, not a class, x y w h and {keypoints} of keypoints"
            raise DataError("ROW", what, where=where, fix="correct the row, or kpt_shape in data.yaml")
        found.counts[KEYPOINTS] += 1
        values = values[:4]
    if len(values) == 5:
        why, fix = "a sixth number is a detector's score", "labels have five; give the labels that people made"
        raise DataError("ROW", "the row has six numbers", where=where, why=why, fix=fix)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        what = f"the row has {len(values) + 1} numbers, not a class and x y w h or three or more points"
        raise DataError("ROW", what, where=where)
    if max(map(abs, values)) > FARTHEST:
        what = f"the row has numbers up to {max(map(abs, values)):g}, and they are parts of the image's sides, 0..1"
        raise DataError("ROW", what, where=where, fix="divide pixels by the width and the height of the image")
    if len(values) > 4:
        found.counts[POLYGONS] += 1
        return hull(values[::2], values[1::2])
    x, y, w, h = values
    if w < 0 or h < 0:
        what, fix = f"width and height are {w:g} and {h:g}, a negative size", "draw the box anew"
        raise DataError("ROW", what, where=where, fix=fix)
    return [x - w / 2, y - h / 2, w, h]
