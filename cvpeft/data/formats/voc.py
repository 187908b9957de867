"""Pascal VOC: an xml for each image (LabelImg, Roboflow, CVAT), in `Annotations` for `JPEGImages`, or beside it.

Corners are taken as they stand, as today's tools write them; VOC2012's own count from 1, half a pixel off. An xml
belongs to the image of its own name; only where there is none, to that of its <filename>, which tools leave stale,
and without its suffix. ImageSets/Main says which split an image is in, else folders called train, valid, test do.
CVAT's rotated boxes, told by an attribute, become the upright boxes around them.
An object marked <difficult> becomes a crowd, as VOC's own rule has it: it counts neither for nor against in scoring and
is not trained on. Files with a DOCTYPE are refused: entities are how an xml exhausts memory or reads other files.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import NoReturn

from cvpeft.data.convert.found import Found, Label, Photo
from cvpeft.data.convert.tree import Tree, folder_split, key, split_of
from cvpeft.errors import DataError
from cvpeft.runtime.image import Size

__all__ = ["matches", "read"]

OTHER_NAME = "xml files have another name than their image, which was found by <filename>"
STALE = "xml files state another <filename> than their own; the image of their own name was taken"
DIFFICULT = "objects marked difficult are crowds: neither trained on nor scored"


def matches(tree: Tree) -> bool:
    return any("<annotation" in tree.text(name)[:4096] for name in tree.ending(".xml")[:20])


def read(tree: Tree) -> Found:
    found = Found(loose_sizes=True)
    sets = _image_sets(tree)

    def split(image: str) -> str:
        return sets.get(key(image), "") if sets else folder_split(image)

    for file in tree.ending(".xml"):
        where = str(tree.root / file)
        try:
            root = _parse(tree, file)
            image = _image(tree, file, root, found)
        except DataError as fault:
            found.blame(tree.by_key.get(key(file), []), fault)
            continue
        photo = Photo(image, split=split(image), stated=_stated(root))
        for number, item in enumerate(root.iter("object")):
            photo.take(partial(_label, item, found, f"{where}: object {number}"))
        found.photos.append(photo)
    found.classes = found.names()
    found.leave_unlabelled(tree.images, split)
    return found


class _Builder(ET.TreeBuilder):
    """Stops at a DOCTYPE, before any entity is declared."""

    def doctype(self, *_: object) -> NoReturn:
        raise ValueError("it has a DOCTYPE")


def _parse(tree: Tree, file: str) -> ET.Element:
    where = str(tree.root / file)
    try:
        root = ET.fromstring(tree.text(file), ET.XMLParser(target=_Builder()))  # noqa: S314 - see _Builder
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise DataError("XML", f"the xml cannot be read ({error})", where=where, fix="export it again") from error
    if root.tag != "annotation":
        raise DataError("XML", f"the xml holds <{root.tag[:40]}>, not <annotation>", where=where)
    return root


def _image(tree: Tree, file: str, root: ET.Element, found: Found) -> str:
    where = str(tree.root / file)
    stated = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    if own := tree.of_labels(file, where):
        if stated and PurePosixPath(own).stem not in (stated, PurePosixPath(stated).stem):
            found.counts[STALE] += 1
        return own
    for name in (stated, f"{stated}.jpg") if stated else ():  # with its suffix, and without
        other = tree.of_labels(str(PurePosixPath(file).with_name(name)), where) or tree.match(name, file)
        if other:
            found.counts[OTHER_NAME] += 1
            return other
    what = f"the labels have no image: neither {PurePosixPath(file).stem} nor the <filename> {stated[:100]!r} is there"
    raise DataError("MISSING", what, where=where)


def _stated(root: ET.Element) -> Size | None:
    try:
        return int(float(root.findtext("size/height", "0"))), int(float(root.findtext("size/width", "0")))
    except (ValueError, OverflowError):
        return None


def _label(item: ET.Element, found: Found, where: str) -> Label:
    name = (item.findtext("name") or "").strip()
    texts = [item.findtext(f"bndbox/{corner}", "") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text) for text in texts)
    except ValueError as error:
        what = f"xmin ymin xmax ymax are {', '.join(text.strip() or 'absent' for text in texts)[:80]}"
        raise DataError("BOX", what, where=where) from error
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise DataError("BOX", f"the corners are {', '.join(texts)[:80]}, which are no numbers", where=where)
    if x2 < x1 or y2 < y1:
        what, fix = f"xmin ymin xmax ymax are {', '.join(texts)[:80]}, a negative size", "swap the two corners"
        raise DataError("BOX", what, where=where, fix=fix)
    difficult = (item.findtext("difficult") or "").strip().lower() in ("1", "true")
    if difficult:
        found.counts[DIFFICULT] += 1
    fields = {"difficult": 1} if difficult else {}
    return Label(name, [x1, y1, x2 - x1, y2 - y1], where, _rotation(item, where), crowd=difficult, fields=fields)


def _rotation(item: ET.Element, where: str) -> float:
    """Degrees about the box's centre; CVAT writes the box as it was before it was turned."""
    text = item.findtext("attributes/attribute[name='rotation']/value", "").strip()
    try:
        degrees = float(text or 0)
    except ValueError:
        degrees = math.nan
    if not math.isfinite(degrees):
        raise DataError("BOX", f"the rotation is {text[:60]!r}, not a number of degrees", where=where)
    return degrees


def _image_sets(tree: Tree) -> dict[str, str]:
    """What an image shares with its labels -> split, by ImageSets/Main/train.txt and the like, where these are."""
    sets: dict[str, str] = {}
    for file in tree.ending(".txt"):
        path = PurePosixPath(file)
        split = split_of([path.stem])
        if split and path.parts[-3:-1] == ("ImageSets", "Main"):
            for line in filter(str.strip, tree.text(file).splitlines()):
                stem = _listed(tree, path.parts[:-3], line)
                if sets.setdefault(stem, split) != split:
                    what = f"{line.strip()} is in {sets[stem]} and in {split}"
                    raise DataError("SPLIT", what, where=str(tree.root / file), why="it would be trained and scored")
    return sets


def _listed(tree: Tree, above: Sequence[str], line: str) -> str:
    """What the image of a line, such as `7`, `7 -1`, `7.jpg` or `street 7`, shares with its labels.

    Names may hold spaces, so the longest beginning of the line that is an image's counts, else its first word.
    """
    words = line.strip().split(" ")
    for name in (" ".join(words[:end]).strip() for end in range(len(words), 0, -1)):
        for stem in (key("/".join([*above, name + ".jpg"])), key("/".join([*above, name]))):
            images = tree.by_key.get(stem, [])
            if any(PurePosixPath(name).name in (PurePosixPath(i).stem, PurePosixPath(i).name) for i in images):
                return stem
    return key("/".join([*above, line.split()[0] + ".jpg"]))
