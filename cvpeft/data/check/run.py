"""All checks on all splits -> what was found. Nothing of the data is changed, and nothing but a report is written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvpeft.data.check.anchors import check_anchors
from cvpeft.data.check.boxes import check_boxes
from cvpeft.data.check.classes import check_classes
from cvpeft.data.check.copies import check_copies, check_shared
from cvpeft.data.check.finding import Anchors, Case, Finding, Split, error, warning
from cvpeft.data.check.pixels import decode_all
from cvpeft.data.check.whole import check_files, check_sizes
from cvpeft.data.coco import CocoData, Reading, read_coco

__all__ = ["Outcome", "check", "quick_check", "tell_quick_check"]

log = logging.getLogger(__name__)
SHOWN = 20  # findings of each level that are printed
QUICK: tuple[Callable[[Case], Iterator[Finding]], ...] = (check_shared, check_classes)
FULL: tuple[Callable[[Case], Iterator[Finding]], ...] = (*QUICK, check_boxes, check_sizes, check_copies, check_anchors)


@dataclass(frozen=True)
class Outcome:
    """What was looked at, and what was found: errors first."""

    case: Case
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    def lines(self) -> list[str]:
        """The first findings of each level, their counts by code, and what was put right in memory."""
        told = []
        for level in ("error", "warning"):
            texts = [finding.text for finding in self.findings if finding.level == level]
            told += texts[:SHOWN]
            if len(texts) > SHOWN:
                told.append(f"and {len(texts) - SHOWN} more {level}s")
        told += [f"note: {note}" for split in self.case.splits for note in split.reading.data.notes]
        counts = Counter(finding.code for finding in self.findings)
        by_code = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()))
        images = sum(len(split.images) for split in self.case.splits)
        boxes = sum(len(image.boxes) for split in self.case.splits for image in split.images)
        warnings = len(self.findings) - self.errors
        told.append(
            f"{images} images, {boxes} boxes: {self.errors} errors, {warnings} warnings"
            + (f" ({by_code})" if by_code else "")
        )
        return told


def check(
    splits: Mapping[str, Sequence[Path]],
    *,
    classes: Sequence[str] = (),
    anchors: Anchors | None = None,
    skip_unreadable: bool = False,
    allow_missing: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Outcome:
    """Read every json and decode every image of the splits (name -> COCO json files), and tell all that is wrong.

    classes: names in order; empty: those of the first split. skip_unreadable: images that cannot be decoded are
    warnings while they are few. allow_missing: images that are not there are warnings.
    """
    read = _read(splits, classes)
    pixels = decode_all([i.path for split in read for i in split.images], workers=workers, progress=progress)
    case = Case(read, _classes(read, classes), pixels, anchors)
    found = [finding for split in read for finding in _faults(split, allow_missing=allow_missing)]
    found += check_files(case, skip=skip_unreadable)
    for one in FULL:
        found += one(case)
    return Outcome(case, tuple(sorted(found, key=lambda finding: finding.level)))


def quick_check(splits: Mapping[str, CocoData | None]) -> tuple[Finding, ...]:
    """What can be told of loaded splits without opening an image, in milliseconds."""
    read = tuple(Split(name, (), Reading(data, (), ())) for name, data in splits.items() if data)
    case = Case(read, read[0].reading.data.classes)
    return tuple(finding for one in QUICK for finding in one(case))


def tell_quick_check(splits: Mapping[str, CocoData | None]) -> None:
    """Into the log, before the first step: what is found without opening an image, and the command that opens them.

    Images that are in two splits are no error here: whoever lets a run learn its val by heart may mean to.
    """
    for finding in quick_check(splits):
        log.warning(finding.text)
    log.info("json, ids, boxes and files are checked; pixels and copies: cvpeft data check --config CONFIG")


def _read(splits: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> tuple[Split, ...]:
    found: list[Split] = []
    for name, files in splits.items():
        reading = read_coco(files, classes=classes)
        classes = classes or reading.data.classes
        found.append(Split(name, tuple(files), reading))
    return tuple(found)


def _classes(splits: Sequence[Split], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(classes) or next((s.reading.data.classes for s in splits if s.reading.data.classes), ())


def _faults(split: Split, *, allow_missing: bool) -> Iterator[Finding]:
    for fault in split.reading.faults:
        if fault.code != "MISSING":
            yield error(fault)
        else:
            yield (warning if allow_missing else error)(fault, split.reading.missing)
