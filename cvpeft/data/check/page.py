"""What was found, as one page with pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from cvpeft import html
from cvpeft.data.check.classes import class_counts
from cvpeft.data.check.finding import Case, Finding
from cvpeft.data.check.plots import heat_maps, size_plot
from cvpeft.data.check.run import Outcome
from cvpeft.data.coco import ImageRecord
from cvpeft.data.pictures import jpeg, labelled
from cvpeft.errors import DataError
from cvpeft.html import escape, image_source, section

__all__ = ["page"]

LISTED = 200  # findings of each level on the page; all are in the json
PHOTOS, SIDE = 12, 640  # images that are shown, px of their longer side


def page(outcome: Outcome, program: str) -> str:
    """The page as HTML; `program` is the mark by which a later call knows it."""
    case = outcome.case
    parts = [
        _verdict(outcome),
        _list("Errors", "error", outcome),
        _list("Warnings", "warning", outcome),
        section("Images and boxes", _table(case)),
        '<div class="pair">',
        section("Where boxes lie", heat_maps(case)),
        section("How large boxes are", size_plot(case)),
        "</div>",
        section("Images to look at first", _photos(outcome)),
    ]
    title = "Data check: " + ", ".join(split.name for split in case.splits)
    return html.page(title, "\n".join(part for part in parts if part), generator=program)


def _verdict(outcome: Outcome) -> str:
    warnings = len(outcome.findings) - outcome.errors
    kind = "error" if outcome.errors else "warning" if warnings else "fine"
    files = ", ".join(str(file) for split in outcome.case.splits for file in split.files)
    count = f"{outcome.errors} {_plural('error', outcome.errors)}, {warnings} {_plural('warning', warnings)}"
    return f'<p class="verdict {kind}">{count}</p><p class="quiet">{escape(files)}</p>'


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _list(title: str, level: str, outcome: Outcome) -> str:
    found = [finding for finding in outcome.findings if finding.level == level]
    if not found:
        return ""
    counts = ", ".join(f"{n} {code}" for code, n in Counter(f.code for f in found).most_common())
    rows = "".join(_row(finding) for finding in found[:LISTED])
    more = f"<p>and {len(found) - LISTED} more in the json report</p>" if len(found) > LISTED else ""
    return section(title, f'<p class="quiet">{escape(counts)}</p><ol class="findings">{rows}</ol>{more}')


def _row(finding: Finding) -> str:
    code, _, text = finding.text.partition(" ")
    return f'<li><code class="{finding.level}">{escape(code)}</code> {escape(text)}</li>'


def _table(case: Case) -> str:
    """Images, negatives and the boxes of each class, a column for each split."""
    head = "".join(f"<th>{escape(split.name)}</th>" for split in case.splits)
    counts = np.array([class_counts(case, split) for split in case.splits])  # (splits, K)
    images = [len(split.images) for split in case.splits]
    empty = [sum(not len(image.boxes) for image in split.images) for split in case.splits]
    rows = [_cells("images", images), _cells("images without boxes", empty), _cells("boxes", counts.sum(1).tolist())]
    top = max(1, int(counts.max(initial=0)))
    rows += [_cells(name, counts[:, k].tolist(), top) for k, name in enumerate(case.classes)]
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _cells(name: str, values: list[int], top: int = 0) -> str:
    def cell(value: int) -> str:
        bar = f'<span class="bar" style="--part:{value / top:.3f}"></span>' if top and value else ""
        return f"<td>{bar}{value}</td>"

    return f"<tr><td>{escape(name)}</td>{''.join(map(cell, values))}</tr>"


def _photos(outcome: Outcome) -> str:
    """Those with the most findings, errors counting for ten; none where nothing is wrong."""
    weight: Counter[Path] = Counter()
    codes: dict[Path, dict[str, None]] = defaultdict(dict)
    for finding in outcome.findings:
        for path in finding.images:
            weight[path] += (10 if finding.level == "error" else 1) + (len(finding.images) < 10)
            codes[path].setdefault(finding.code)
    records = {image.path: (split.name, image) for split in outcome.case.splits for image in split.images}
    shown = [path for path, _ in weight.most_common() if path in records][:PHOTOS]
    figures = "".join(_figure(*records[path], " ".join(codes[path]), outcome.case.classes) for path in shown)
    return f'<div class="photos">{figures}</div>' if figures else ""


def _figure(split: str, image: ImageRecord, codes: str, classes: tuple[str, ...]) -> str:
    try:
        source = image_source("jpeg", jpeg(labelled(image, classes, SIDE), 80))
        picture = f'<img alt="{escape(image.file_name)} with its boxes" src="{source}">'
    except DataError as fault:
        picture = f"<p>{escape(str(fault))}</p>"
    boxes = f"{len(image.boxes)} {'box' if len(image.boxes) == 1 else 'boxes'}"
    caption = escape(f"{split}: {image.file_name}, {boxes}, {codes}")
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
