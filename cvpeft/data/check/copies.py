"""Photos that are there twice: in one split they weigh double, in two they make the figures too good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cvpeft.data.check.finding import Case, Finding, error, warning
from cvpeft.data.similar import groups_of, is_copy, near_links, photo_name
from cvpeft.errors import DataError

__all__ = ["check_copies", "check_shared"]

APART = "cvpeft data split FILE --by near-duplicates keeps them in one part"
Groups = list[list[tuple[str, Path]]]  # of (split, image)


def check_shared(case: Case) -> Iterator[Finding]:
    """The same file in two splits; needs no pixels."""
    owners: dict[str, dict[str, Path]] = defaultdict(dict)
    for split in case.splits:
        for image in split.images:
            owners[str(image.path)][split.name] = image.path
    shared: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for places in owners.values():
        if len(places) > 1:
            shared[tuple(places)].append(next(iter(places.values())))
    for names, paths in shared.items():
        what = f"{len(paths)} images are in {' and in '.join(names)}, the first is {paths[0].name}"
        why = "what was trained on would be scored"
        yield error(DataError("LEAK", what, why=why, fix="list each image in one split"), paths)


def check_copies(case: Case) -> Iterator[Finding]:
    """Equal bytes, then Roboflow's copies by their name, then looks; a group that one has told is not told again."""
    told: dict[Path, set[tuple[str, int]]] = defaultdict(set)  # the groups that have told of an image
    for kind, groups in (("bytes", _equal(case)), ("name", _named(case)), ("looks", _similar(case))):
        fresh = [group for group in groups if not set.intersection(*(told[path] for _, path in group))]
        for number, group in enumerate(fresh):
            for _, path in group:
                told[path].add((kind, number))
        yield from _tell(kind, fresh)


def _equal(case: Case) -> Groups:
    found: dict[str, dict[Path, str]] = defaultdict(dict)
    for split in case.splits:
        for image in split.images:
            if (pixels := case.pixels.get(image.path)) and pixels.sha256:
                found[pixels.sha256].setdefault(image.path, split.name)
    return [[(name, path) for path, name in group.items()] for group in found.values() if len(group) > 1]


def _named(case: Case) -> Groups:
    """Only what has Roboflow's mark: two cameras may both have a photo 0001."""
    found: dict[str, dict[Path, str]] = defaultdict(dict)
    for split in case.splits:
        for image in split.images:
            if is_copy(image.file_name):
                found[photo_name(image.file_name)].setdefault(image.path, split.name)
    return [[(name, path) for path, name in group.items()] for group in found.values() if len(group) > 1]


def _similar(case: Case) -> Groups:
    places = {
        image.path: split.name
        for split in case.splits
        for image in split.images
        if image.path in case.pixels and not case.pixels[image.path].fault
    }
    paths = list(places)
    hashes = np.array([case.pixels[path].hash for path in paths], np.uint64).reshape(-1, 2)
    groups: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for path, group in zip(paths, groups_of(len(paths), near_links(hashes)).tolist(), strict=True):
        groups[group].append((places[path], path))
    return [group for group in groups.values() if len(group) > 1]


WORDS = {  # kind -> what a group of several is, code within a split, whether a leak of it is certain
    "bytes": ("are the same file, byte for byte", "COPY", True),
    "name": ("are copies that Roboflow made of one photo", "RFCOPY", False),
    "looks": ("look almost the same", "NEAR", False),
}


def _tell(kind: str, groups: Groups) -> Iterator[Finding]:
    """Each leak by itself; copies within a split as one sentence for each split."""
    words, code, certain = WORDS[kind]
    within: dict[str, list[list[Path]]] = defaultdict(list)
    for group in groups:
        splits = dict.fromkeys(name for name, _ in group)
        if len(splits) == 1:
            within[next(iter(splits))].append([path for _, path in group])
            continue
        shown = ", ".join(f"{next(p.name for s, p in group if s == name)} ({name})" for name in splits)
        what = f"{len(group)} images in {' and '.join(splits)} {words}: {shown}"
        fault = DataError("LEAK", what, why="what was trained on would be scored", fix=APART)
        yield (error if certain else warning)(fault, [path for _, path in group])
    for name, found in within.items():
        paths = [path for group in found for path in group]
        what = f"{len(paths)} images in {len(found)} groups {words}, such as {found[0][0].name} and {found[0][1].name}"
        fix = "take copies out; frames of a video may stay, but count as few"
        yield warning(DataError(code, what, where=name, why="they weigh more than others", fix=fix), paths)
