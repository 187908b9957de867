"""One COCO json -> several, so that what belongs together lies in one part: a street, a city, copies of one photo.

Photos of one road section show the same potholes: a split by images would test on what was trained. The parts lie
beside the json that they were made from, and share its images.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cvpeft.data.coco_file import read_coco_file
from cvpeft.data.similar import photo_name
from cvpeft.errors import DataError
from cvpeft.files import write_whole

__all__ = ["Part", "leave_out", "read_shares", "split_json"]

DEALS = 200  # ways to deal the groups out that are tried


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


def split_json(file: Path, shares: Mapping[str, float], *, by: str = "", seed: int = 0) -> list[Part]:
    """Write FILE_NAME.json beside `file` for each name of `shares`, and return what they hold.

    shares: name -> share of the images, in all 1. by: a field of the json's images, or "folder" of their file names;
    empty: each image is a group of its own. Copies that Roboflow made of one photo stay together in any case. Groups
    are dealt out so that each part has its share of images, of negatives and of the boxes of each class, as far as
    whole groups allow; seed decides between equals.
    DataError: the json is none, a field is missing, shares make no sense, a part would be empty or its file is there.
    """
    if len(shares) < 2 or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        told = " ".join(f"{name}={share:g}" for name, share in shares.items())
        raise DataError("SPLIT", f"the parts are {told or 'none'}", fix="name two or more, their shares summing to 1")
    groups = _groups(file, by)
    names, wanted = list(shares), np.array(list(shares.values()))
    dealt = _dealt(_contents(groups), wanted, seed)
    return _written(groups, {name: [i for i, part in enumerate(dealt) if names[part] == name] for name in names})


def leave_out(file: Path, by: str, value: str) -> list[Part]:
    """Write FILE_VALUE.json with the images whose field `by` is `value`, and FILE_without_VALUE.json with all others.

    DataError as in `split_json`; also where no image has the value.
    """
    groups = _groups(file, by)
    inside = [i for i, key in enumerate(groups.keys) if key == value]
    if not inside:
        known = ", ".join(sorted(groups.keys)[:20])
        raise DataError("SPLIT", f"no image's {by} is {value}", where=str(file), fix=f"choose one of {known}")
    name = re.sub(r"[^\w.-]", "_", value)
    rest = [i for i in range(len(groups.keys)) if i not in set(inside)]
    return _written(groups, {name: inside, f"without_{name}": rest})


# Groups


@dataclass(frozen=True)
class _Groups:
    """keys: value of the field (or another mark) of each group; images: those of each group; content: of the json."""

    file: Path
    content: Mapping[str, Any]
    keys: Sequence[str]
    images: Sequence[Sequence[Mapping[str, Any]]]


def _groups(file: Path, by: str) -> _Groups:
    read_coco_file(file)  # says what is wrong with a file that is no COCO json
    content = json.loads(file.read_text("utf-8-sig"))
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    first: dict[str, str] = {}  # the group of a photo's first copy, to which the others go
    for image in content["images"]:
        key = first.setdefault(photo_name(str(image["file_name"])), _key(image, by, file))
        found[key].append(image)
    return _Groups(file, content, list(found), list(found.values()))


def _key(image: Mapping[str, Any], by: str, file: Path) -> str:
    name = PurePosixPath(str(image["file_name"]).replace("\\", "/"))
    if not by:
        return str(name)
    if by == "folder":
        return str(name.parent)
    if image.get(by) is None:
        known = ", ".join(sorted(image.keys() - {"id", "file_name", "width", "height"})) or "none but the usual ones"
        what = f"the image {name} has no field '{by}'"
        raise DataError("SPLIT", what, where=str(file), fix=f"use folder, or one of its fields: {known}")
    return str(image[by])


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
    deals = [_deal(weight, wanted, rng) for _ in range(DEALS)]
    return min(deals, key=lambda deal: _miss(weight, wanted, deal))


def _deal(weight: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Larger groups first, roughly, each to the part that lacks most of what the group holds.

    A part's lack is measured by what it shall have in the end, so that all parts fill up alike.
    """
    order = np.argsort(-weight.sum(1) * rng.uniform(0.5, 1.5, len(weight)), kind="stable")
    lack = np.ones((len(wanted), weight.shape[1]))  # (P, 2 + K), 1 empty .. 0 full
    dealt = np.zeros(len(weight), int)
    for group in order:
        part = int(np.argmax((lack * weight[group]).sum(1) + 1e-9 * rng.random(len(wanted))))
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
        if target.exists() and target.read_text("utf-8") != text:
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
