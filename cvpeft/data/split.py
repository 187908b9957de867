"""One COCO json -> several, so that what belongs together lies in one part: a street, a city, copies of one photo.

Photos of one road section show the same potholes: a split by images would test on what was trained. The parts lie
beside the json that they were made from, and share its images.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cvpeft.data.check.pixels import decode_all
from cvpeft.data.coco_file import Lists, read_coco_file, short
from cvpeft.data.faults import refuse_seed
from cvpeft.data.images import find_image, is_file
from cvpeft.data.similar import groups_of, near_links, photo_name
from cvpeft.errors import DataError
from cvpeft.files import write_whole

__all__ = ["Part", "leave_out", "read_shares", "split_json"]

log = logging.getLogger(__name__)

NEAR_DUPLICATES = "near-duplicates"  # among the fields: photos that look alike stay together
DEALS = 200  # ways to deal the groups out that are tried, of few groups
DEALT = 200_000  # groups in all these ways together: many small groups come near to the shares in any of them


@dataclass(frozen=True)
class Part:
    """A json that was written. boxes: class name -> boxes; negatives: images without one."""

    file: Path
    images: int
    groups: int
    negatives: int
    boxes: Mapping[str, int]


def read_shares(texts: Sequence[str]) -> dict[str, float]:
    """`train=0.8` and the like as a dict; DataError where one is something else."""
    shares: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        if not re.fullmatch(r"\w[\w.-]*", name) or not re.fullmatch(r"\d*\.?\d+", share) or name in shares:
            raise DataError("SPLIT", f"the part '{text}'", fix="write NAME=SHARE, such as train=0.8, each name once")
        shares[name] = float(share)
    return shares


def split_json(
    file: Path, shares: Mapping[str, float], *, by: str | Sequence[str] = (), seed: int = 0, allow_leaks: bool = False
) -> list[Part]:
    """Write FILE_NAME.json beside `file` for each name of `shares`, and return what they hold.

    shares: name -> share of the images, in all 1. by: fields of the json's images, or "folder" of their file names;
    images that agree in all of them are a group; empty: each image is one. "near-duplicates" among them joins groups
    that have photos in common by their looks. Copies that Roboflow made of one photo stay together in any case. Groups
    are dealt out so that each part has its share of images, of negatives and of the boxes of each class, as far as
    whole groups allow; seed decides between equals.
    DataError: the json is none, a field is missing, shares make no sense, a part would be empty or its file is there;
    near-duplicates would lie in different parts, unless allow_leaks.
    """
    if len(shares) < 2 or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        told = " ".join(f"{name}={share:g}" for name, share in shares.items())
        raise DataError("SPLIT", f"the parts are {told or 'none'}", fix="name two or more, their shares summing to 1")
    refuse_seed(seed)
    groups = _groups(file, _fields(by), allow_leaks=allow_leaks)
    names, wanted = list(shares), np.array(list(shares.values()))
    dealt = _dealt(_contents(groups), wanted, seed)
    parts = {name: [i for i, part in enumerate(dealt) if names[part] == name] for name in names}
    fix = f"add {NEAR_DUPLICATES} to --by, or keep the split with --allow-leaks"
    _refuse_leaks(groups, parts, fix=fix)
    return _written(groups, parts)


def leave_out(file: Path, by: str | Sequence[str], value: str, *, allow_leaks: bool = False) -> list[Part]:
    """Write FILE_VALUE.json with the images whose field `by` is `value`, and FILE_without_VALUE.json with all others.

    DataError as in `split_json`; also where no image has the value, and where near-duplicates are among the fields:
    joined groups have no value of their own.
    """
    fields = _fields(by)
    if NEAR_DUPLICATES in fields:
        what = f"{NEAR_DUPLICATES} have no value that could be left out"
        raise DataError("SPLIT", what, where=str(file), fix=f"take {NEAR_DUPLICATES} out of --by")
    groups = _groups(file, fields, allow_leaks=allow_leaks)
    inside = [i for i, key in enumerate(groups.keys) if key == value]
    if not inside:
        known = ", ".join(sorted(groups.keys)[:20])
        raise DataError(
            "SPLIT", f"no image's {' '.join(fields)} is {value}", where=str(file), fix=f"choose one of {known}"
        )
    name = re.sub(r"[^\w.-]", "_", value)
    rest = [i for i in range(len(groups.keys)) if i not in set(inside)]
    parts = {name: inside, f"without_{name}": rest}
    _refuse_leaks(groups, parts, fix="take the pairs out of the json, or keep the split with --allow-leaks")
    return _written(groups, parts)


# Groups


@dataclass(frozen=True)
class _Groups:
    """keys: value of the fields (or another mark) of each group; images: those of each group; content: of the json.

    near: numbers of groups that hold near-duplicates of each other, and a name from each; none where leaks are allowed.
    """

    file: Path
    content: Mapping[str, Any]
    keys: Sequence[str]
    images: Sequence[Sequence[Mapping[str, Any]]]
    near: Sequence[tuple[int, int, str, str]] = ()


def _fields(by: str | Sequence[str]) -> list[str]:
    return [field for field in ([by] if isinstance(by, str) else by) if field]


def _groups(file: Path, by: Sequence[str], *, allow_leaks: bool) -> _Groups:
    content = read_coco_file(file)
    _refuse_malformed(content, file)
    _refuse_shared_ids(content, file)
    _refuse_orphans(content, file)
    fields = [field for field in by if field != NEAR_DUPLICATES]
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    first: dict[str, str] = {}  # the group of a photo's first copy, to which the others go
    for image in content["images"]:
        key = first.setdefault(photo_name(str(image["file_name"])), _key(image, fields, file))
        found[key].append(image)
    groups = _Groups(file, content, list(found), list(found.values()))
    if NEAR_DUPLICATES in by:
        return _joined(groups, _near(groups, must=True))
    return groups if allow_leaks else replace(groups, near=_near(groups, must=False))


def _refuse_malformed(content: Lists, file: Path) -> None:
    """DataError at the first entry without what a split goes by; all else is passed on as it is."""
    keys = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
    for part, names in keys.items():
        for number, entry in enumerate(content[part]):
            found = entry if isinstance(entry, dict) else {}
            if all(isinstance(found.get(name), (int, float, str)) for name in names) and found.get("file_name") != "":
                continue
            what = f"the entry is {short(entry)}, not one with {' and '.join(names)}"
            fix = f"cvpeft data check {file} tells all faults of it"
            raise DataError("COCO", what, where=f"{file}: {part}[{number}]", fix=fix)


def _refuse_shared_ids(content: Lists, file: Path) -> None:
    """DataError where two images have one id: in different parts each would have the boxes of both."""
    names: dict[Any, str] = {}
    for image in content["images"]:
        number, name = image["id"], str(image["file_name"])
        if number in names:
            what = f"image id {short(number)} is used by {names[number]} and {name}"
            fix = "join the json files that they come from by cvpeft data merge, which numbers them anew"
            raise DataError("IMGID", what, where=str(file), why="boxes cannot be assigned", fix=fix)
        names[number] = name


def _refuse_orphans(content: Lists, file: Path) -> None:
    """DataError where boxes name an image or a category that is not there: parts would hold none of them."""
    for key, part, code in (("image_id", "images", "IMGID"), ("category_id", "categories", "CAT")):
        known = {entry["id"] for entry in content[part]}
        lost = [number for number, box in enumerate(content["annotations"]) if box[key] not in known]
        if lost:
            example = f"annotations[{lost[0]}]: {key} is {short(content['annotations'][lost[0]][key])}"
            ids = ", ".join(short(entry["id"]) for entry in content[part][:3]) or "none"
            what = f"{len(lost)} annotations name none of the {part}, first {example}, and the ids there are like {ids}"
            why = "boxes would be lost, and their photos count as negatives"
            fix = f"correct the ids; cvpeft data autofix {file} --out FIXED.json mends those that are texts"
            raise DataError(code, what, where=str(file), why=why, fix=fix)


def _near(groups: _Groups, *, must: bool) -> list[tuple[int, int, str, str]]:
    """Groups that hold photos which look alike. DataError where an image cannot be decoded and `must` be.

    Otherwise those that cannot be seen are counted: a json may be split before its photos are copied.
    """
    root = groups.file.parent.resolve()
    places = {}
    for number, images in enumerate(groups.images):
        for image in images:
            places[find_image(root, image["file_name"], str(groups.file))[0]] = (number, str(image["file_name"]))
    if not must:
        places = {path: place for path, place in places.items() if is_file(path)}
    pixels = decode_all(list(places))
    for found in pixels.values():
        if found.fault and must:
            raise found.fault
    seen = {path: found.hash for path, found in pixels.items() if not found.fault}
    if unseen := sum(map(len, groups.images)) - len(seen):
        log.warning("%d images are missing or cannot be decoded: nobody knows what they are copies of", unseen)
    owners = [places[path] for path in seen]
    links = near_links(np.array(list(seen.values()), np.uint64).reshape(-1, 2))
    pairs = ((*owners[i], *owners[j]) for i, j, _ in links.tolist())
    return [(one, other, first, second) for one, first, other, second in pairs if one != other]


def _joined(groups: _Groups, near: Sequence[tuple[int, int, str, str]]) -> _Groups:
    """One group for all that are linked, under the key of the first."""
    of = groups_of(len(groups.keys), [link[:2] for link in near])
    together: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for number, first in enumerate(of.tolist()):
        together[first] += groups.images[number]
    return _Groups(groups.file, groups.content, [groups.keys[first] for first in together], list(together.values()))


def _refuse_leaks(groups: _Groups, parts: Mapping[str, Sequence[int]], *, fix: str) -> None:
    part_of = {number: name for name, chosen in parts.items() for number in chosen}
    leaks = [(first, second) for one, other, first, second in groups.near if part_of[one] != part_of[other]]
    if leaks:
        what = f"{len(leaks)} pairs of near-duplicates would lie in different parts, such as {' and '.join(leaks[0])}"
        why = "what was trained on would be scored"
        raise DataError("LEAK", what, where=str(groups.file), why=why, fix=fix)


def _key(image: Mapping[str, Any], by: Sequence[str], file: Path) -> str:
    name = PurePosixPath(str(image["file_name"]).replace("\\", "/"))
    return " ".join(_value(image, field, name, file) for field in by) if by else str(name)


def _value(image: Mapping[str, Any], field: str, name: PurePosixPath, file: Path) -> str:
    if field == "folder":
        return str(name.parent)
    if image.get(field) is None:
        known = ", ".join(sorted(image.keys() - {"id", "file_name", "width", "height"})) or "none but the usual ones"
        what = f"the image {name} has no field '{field}'"
        fix = f"use folder, {NEAR_DUPLICATES}, or one of its fields: {known}"
        raise DataError("SPLIT", what, where=str(file), fix=fix)
    return str(image[field])


def _contents(groups: _Groups) -> np.ndarray:
    """(G, 2 + K) images, negatives and boxes of each class in each group."""
    classes = {category["id"]: k for k, category in enumerate(groups.content["categories"])}
    boxes: dict[Any, Counter[int]] = defaultdict(Counter)
    for box in groups.content["annotations"]:
        boxes[box["image_id"]][classes.get(box["category_id"], -1)] += 1
    table = np.zeros((len(groups.keys), 2 + len(classes)))
    for row, images in zip(table, groups.images, strict=True):
        for image in images:
            mine = boxes.get(image["id"], Counter())
            row[0] += 1
            row[1] += not mine
            for k, count in mine.items():
                row[2 + k] += count * (k >= 0)
    return table


def _dealt(contents: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """(G,) part of each group: of many ways to deal them out the one that comes nearest to the shares."""
    weight = contents / np.maximum(contents.sum(0), 1)  # (G, 2 + K) share of everything there is
    rng = np.random.default_rng(seed)
    deals = [_deal(weight, wanted, rng) for _ in range(max(1, min(DEALS, DEALT // max(1, len(weight)))))]
    return min(deals, key=lambda deal: _miss(weight, wanted, deal))


def _deal(weight: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Larger groups first, roughly, each to the part that lacks most of what the group holds.

    A part's lack is measured by what it shall have in the end, so that all parts fill up alike.
    """
    order = np.argsort(-weight.sum(1) * rng.uniform(0.5, 1.5, len(weight)), kind="stable")
    chance = 1e-9 * rng.random((len(weight), len(wanted)))  # between parts that lack the same
    lack = np.ones((len(wanted), weight.shape[1]))  # (P, 2 + K), 1 empty .. 0 full
    dealt = np.zeros(len(weight), int)
    for group, luck in zip(order.tolist(), chance, strict=True):
        part = int(np.argmax((lack * weight[group]).sum(1) + luck))
        lack[part] -= weight[group] / wanted[part]
        dealt[group] = part
    return dealt


def _miss(weight: np.ndarray, wanted: np.ndarray, dealt: np.ndarray) -> float:
    """How far the parts are from their shares; images count for as much as negatives and classes together."""
    got = np.stack([weight[dealt == part].sum(0) for part in range(len(wanted))])  # (P, 2 + K)
    square = np.square(got - wanted[:, None])
    return float(square[:, 0].sum() + square[:, 1:].mean(1).sum())


# Files


def _written(groups: _Groups, parts: Mapping[str, Sequence[int]]) -> list[Part]:
    texts: dict[Path, str] = {}
    made = []
    for name, chosen in parts.items():
        target = groups.file.with_name(f"{groups.file.stem}_{name}.json")
        images = [image for i in chosen for image in groups.images[i]]
        if not images:
            what = f"{len(groups.keys)} groups leave nothing for {name}"
            raise DataError("SPLIT", what, where=str(groups.file), fix="group by something finer, or name fewer parts")
        ids = {image["id"] for image in images}
        boxes = [box for box in groups.content["annotations"] if box["image_id"] in ids]
        texts[target] = json.dumps({**groups.content, "images": images, "annotations": boxes})
        made.append(_part(target, images, boxes, len(chosen), groups.content["categories"]))
    for target, text in texts.items():
        if os.path.lexists(target) and not (target.is_file() and target.read_bytes() == text.encode()):
            why, fix = "It would be lost", "move it away"
            raise DataError("EXISTS", "another file has this name", where=str(target), why=why, fix=fix)
    for target, text in texts.items():
        write_whole(target, text)
    return made


def _part(
    target: Path,
    images: Sequence[Mapping[str, Any]],
    boxes: Sequence[Mapping[str, Any]],
    groups: int,
    categories: Sequence[Mapping[str, Any]],
) -> Part:
    names = {category["id"]: str(category["name"]) for category in categories}
    counts = Counter(names.get(box["category_id"], "?") for box in boxes)
    held = {box["image_id"] for box in boxes}
    negatives = sum(image["id"] not in held for image in images)
    return Part(target, len(images), groups, negatives, {name: counts[name] for name in names.values()})
