"""What was found, as one page with pictures."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cvpeft import html
from cvpeft.data.check.classes import class_counts
from cvpeft.data.check.finding import Case, Finding
from cvpeft.data.check.run import Outcome
from cvpeft.data.coco import ImageRecord
from cvpeft.data.pictures import jpeg, labelled
from cvpeft.errors import DataError
from cvpeft.html import escape, image_source, section

__all__ = ["page"]

LISTED = 200  # findings of each level on the page; all are in the json
PHOTOS, SIDE = 12, 640  # images that are shown, px of their longer side
DOTS = 2000  # boxes in the picture of sizes
HEAT = (36, 48)  # rows and columns of the heat map
DARK, BRIGHT = np.array((20, 24, 60)), np.array((255, 210, 70))  # colours of its ends
PLOT, EDGE = (420, 300), 40  # px of the picture of sizes, and of its margin
LIMITS = (32, 96)  # px, COCO's borders between small, medium and large


def page(outcome: Outcome, program: str) -> str:
    """The page as HTML; `program` is the mark by which a later call knows it."""
    case = outcome.case
    parts = [
        _verdict(outcome),
        _list("Errors", "error", outcome),
        _list("Warnings", "warning", outcome),
        section("Images and boxes", _table(case)),
        '<div class="pair">',
        section("Where boxes lie", _heat(case)),
        section("How large boxes are", _sizes(case)),
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


def _heat(case: Case) -> str:
    """How often each place of an image, whatever its size, is covered by a box."""
    heat = np.zeros((HEAT[0] + 1, HEAT[1] + 1))
    for split in case.splits:
        boxes, _, owner = case.boxes(split)
        if len(boxes):
            sizes = np.array([(image.width, image.height) for image in split.images], float)[owner]
            near = np.clip(boxes[:, :2] / sizes * HEAT[::-1], 0, np.array(HEAT[::-1]) - 1).astype(int)
            far = np.clip(np.ceil((boxes[:, :2] + boxes[:, 2:]) / sizes * HEAT[::-1]), near + 1, HEAT[::-1]).astype(int)
            for x, y, sign in ((near[:, 0], near[:, 1], 1), (far[:, 0], near[:, 1], -1), (near[:, 0], far[:, 1], -1),
                               (far[:, 0], far[:, 1], 1)):  # fmt: skip
                np.add.at(heat, (y, x), sign)
    heat = heat.cumsum(0).cumsum(1)[:-1, :-1]  # a box as four corners becomes its area
    share = np.sqrt(heat / max(heat.max(), 1))[..., None]
    picture = io.BytesIO()
    Image.fromarray((DARK + share * (BRIGHT - DARK)).round().astype(np.uint8)).save(picture, "PNG")
    alt = "heat map of boxes over the image area"
    note = f"Bright: covered by up to {int(heat.max())} boxes; all images drawn to one size."
    return f'<img class="heat" alt="{alt}" src="{image_source("png", picture.getvalue())}"><small>{note}</small>'


def _sizes(case: Case) -> str:
    """Width against height on logarithmic axes, as SVG."""
    sides = np.concatenate([case.boxes(split)[0][:, 2:] for split in case.splits] or [np.zeros((0, 2))])
    if not len(sides):
        return ""
    shown = sides[np.random.default_rng(0).permutation(len(sides))[:DOTS]]
    low, high = max(1.0, shown.min()), max(shown.max() * 1.1, 200.0)

    def place(value: float, axis: int) -> float:
        part = np.log(max(value, low) / low) / np.log(high / low)
        room = PLOT[axis] - EDGE - 8
        return float(EDGE + part * room) if axis == 0 else float(PLOT[1] - EDGE - part * room)

    marks = "".join(_tick(value, place(value, 0), place(value, 1)) for value in _ticks(low, high))
    dots = "".join(f'<circle class="box" r="2.5" cx="{place(w, 0):.1f}" cy="{place(h, 1):.1f}"/>' for w, h in shown)
    names = (
        f'<text x="{PLOT[0] // 2}" y="{PLOT[1] - 6}" text-anchor="middle">width, px</text>'
        f'<text text-anchor="middle" transform="translate(12 {PLOT[1] // 2}) rotate(-90)">height, px</text>'
    )
    area = sides.prod(1)
    small, large = int((area < LIMITS[0] ** 2).sum()), int((area > LIMITS[1] ** 2).sum())
    note = (
        f"{small} small (below 32 px), {len(sides) - small - large} medium, {large} large (above 96 px), in pixels of "
        f"the photos. Median {np.median(sides[:, 0]):.0f} x {np.median(sides[:, 1]):.0f} px."
        + (f" {len(shown)} of {len(sides)} boxes are drawn." if len(shown) < len(sides) else "")
    )
    drawing = f'<svg viewBox="0 0 {PLOT[0]} {PLOT[1]}" role="img" aria-label="widths and heights of boxes">'
    return f"{drawing}{marks}{dots}{names}</svg><small>{note}</small>"


def _ticks(low: float, high: float) -> Iterator[float]:
    value = 1.0
    while value < high:
        if value >= low:
            yield value
        value *= 4 if value in (1, 4, 16, 64, 256, 1024) else 2


def _tick(value: float, x: float, y: float) -> str:
    bottom = PLOT[1] - EDGE
    return (
        f'<path class="axis" d="M{x:.1f} 8V{bottom}M{EDGE} {y:.1f}H{PLOT[0] - 8}"/>'
        f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>'
        f'<text x="{EDGE - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


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
