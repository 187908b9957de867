"""The full list of findings as json, and the page to look at; an earlier report of ours is replaced, nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from cvpeft import __version__
from cvpeft.data.check.classes import class_counts
from cvpeft.data.check.page import page
from cvpeft.data.check.run import Outcome
from cvpeft.errors import DataError
from cvpeft.files import write_whole

__all__ = ["JSON", "PAGE", "check_target", "write_report"]

PROGRAM = "cvpeft data check"  # the mark by which a later call knows the files of an earlier one
JSON, PAGE = "check_report.json", "check_report.html"


def check_target(folder: Path) -> None:
    """DataError where a report would take the place of a file that is none of ours."""
    for name in (JSON, PAGE):
        target = folder / name
        if os.path.lexists(target) and not _is_ours(target):
            what, fix = "another file has this name", "choose another folder with --out"
            raise DataError("EXISTS", what, where=str(target), why="it would be lost", fix=fix)


def _is_ours(target: Path) -> bool:
    try:
        return not target.is_symlink() and PROGRAM.encode() in target.read_bytes()[:2000]
    except OSError:
        return False


def write_report(folder: Path, outcome: Outcome) -> tuple[Path, Path]:
    """Write check_report.json and check_report.html into the folder; returns their paths."""
    check_target(folder)
    write_whole(folder / JSON, json.dumps(_content(outcome), indent=1, ensure_ascii=True), "the report")
    write_whole(folder / PAGE, page(outcome, PROGRAM), "the report")
    return folder / JSON, folder / PAGE


def _content(outcome: Outcome) -> dict[str, Any]:
    case = outcome.case
    return {
        "info": {"program": PROGRAM, "version": __version__},
        "errors": outcome.errors,
        "warnings": len(outcome.findings) - outcome.errors,
        "counts": dict(sorted(Counter(finding.code for finding in outcome.findings).items())),
        "splits": {
            split.name: {
                "files": [str(file) for file in split.files],
                "images": len(split.images),
                "negatives": sum(not len(image.boxes) for image in split.images),
                "boxes": dict(zip(case.classes, class_counts(case, split).tolist(), strict=True)),
                "notes": list(split.reading.data.notes),
            }
            for split in case.splits
        },
        "findings": [finding.entry() for finding in outcome.findings],
    }
