"""The disagreements of a run and the labels as pictures on one page, and as json."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cvpeft.data.coco import CocoData, ImageRecord
from cvpeft.data.pictures import jpeg
from cvpeft.eval.review import KINDS, Finding
from cvpeft.files import write_whole
from cvpeft.html import escape, image_source, page, section
from cvpeft.runtime.draw import colour, frame
from cvpeft.runtime.image import decode
from cvpeft.runtime.photos import printable

__all__ = ["write_gallery"]

SHOWN = 48  # pictures of a kind
SIDE = 320  # pixels of a picture on the page
CONTEXT = 3.0  # sides of the box that a picture shows
LEAST = 128  # pixels of the photo that a picture shows at least
WHITE = (255, 255, 255)


def write_gallery(
    folder: Path, data: CocoData, found: Mapping[str, Sequence[Finding]], *, title: str, note: str = ""
) -> tuple[Path, Path]:
    """Write review.html, with the first SHOWN findings of each kind as pictures, and review.json with all of them.

    Each file replaces its forerunner as a whole. note: a sentence for the head of the page.
    Raises ResourceError where that fails, DataError for an image that cannot be decoded.
    """
    images = {image.id: image for image in data.images}
    rows = [
        {**asdict(finding), "file_name": printable(record.file_name), "domain": printable(record.domain)}
        for findings in found.values()
        for finding in findings
        for record in (images[finding.image_id],)
    ]
    top = {kind: list(findings[:SHOWN]) for kind, findings in found.items()}
    pictures = _pictures(images, data.classes, [finding for findings in top.values() for finding in findings])
    parts = [f'<p class="quiet">{escape(note)} White: the labels. In colour: what the picture is about.</p>']
    for kind, findings in top.items():
        text = f"<p>{escape(KINDS[kind])}{_first(kind, found, top)}</p>"
        cards = "".join(_card(pictures[f], f, images[f.image_id]) for f in findings)
        parts.append(section(f"{kind}: {len(found[kind])}", f'{text}<div class="photos cut">{cards}</div>'))
    html, table = folder / "review.html", folder / "review.json"
    write_whole(table, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(html, page(title, "\n".join(parts)))
    return html, table


def _first(kind: str, found: Mapping[str, Sequence[Finding]], top: Mapping[str, Sequence[Finding]]) -> str:
    return f" The first {len(top[kind])} are shown." if len(top[kind]) < len(found[kind]) else ""


def _card(image: str, finding: Finding, record: ImageRecord) -> str:
    told = {
        "unlabelled": f"{finding.name} {finding.score:.2f}",
        "other name": f"{finding.name} {finding.score:.2f}, labelled {finding.label}",
        "other place": f"{finding.name} {finding.score:.2f}, IoU {finding.iou:.2f}",
        "missed": f"{finding.label}, best score {finding.score:.2f}",
    }[finding.kind]
    x, y, w, h = (round(side) for side in finding.box)
    where = f"{printable(record.file_name)}, {w} x {h} px at ({x}, {y})"
    return (
        f'<figure><img alt="{escape(finding.kind)}" src="{image}">'
        f"<figcaption><strong>{escape(told)}</strong>{escape(where)}</figcaption></figure>"
    )


def _pictures(
    images: Mapping[int, ImageRecord], classes: Sequence[str], findings: Sequence[Finding]
) -> dict[Finding, str]:
    """The source of each finding's picture; a photo is decoded once, however many findings lie in it."""
    by_image: dict[int, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_image[finding.image_id].append(finding)
    return {
        finding: image_source("jpeg", jpeg(_crop(pixels, images[number], finding, classes)))
        for number, own in by_image.items()
        for pixels in (decode(images[number].path)[0],)
        for finding in own
    }


def _crop(pixels: np.ndarray, record: ImageRecord, finding: Finding, classes: Sequence[str]) -> Image.Image:
    """The square around the finding, with the labels that lie in it."""
    x, y, w, h = finding.box
    side = max(CONTEXT * max(w, h), LEAST)
    left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
    cut = _cut(pixels, (round(left), round(top), round(left + side), round(top + side)))
    pen, scale = ImageDraw.Draw(cut), SIDE / side
    for box in record.boxes.tolist():
        frame(pen, _on_cut(box, left, top, scale), WHITE, 1)
    label = finding.label if finding.kind == "missed" else finding.name
    frame(pen, _on_cut(finding.box, left, top, scale), colour(classes.index(label) + 1), 2)
    return cut


def _cut(pixels: np.ndarray, edges: tuple[int, int, int, int]) -> Image.Image:
    """The rectangle left, top, right, bottom of a photo (H, W, 3) at SIDE x SIDE, black beyond the photo.

    Only what lies in the photo is cut: around a box as large as the photo the whole square has nine times its pixels.
    """
    left, top, right, bottom = edges
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    cut = Image.new("RGB", (SIDE, SIDE))
    if x1 >= x2 or y1 >= y2:
        return cut
    x_scale, y_scale = SIDE / (right - left), SIDE / (bottom - top)
    place = (round((x1 - left) * x_scale), round((y1 - top) * y_scale))
    end = (round((x2 - left) * x_scale), round((y2 - top) * y_scale))
    size = (max(1, end[0] - place[0]), max(1, end[1] - place[1]))
    cut.paste(Image.fromarray(pixels[y1:y2, x1:x2]).resize(size, Image.Resampling.BILINEAR), place)
    return cut


def _on_cut(box: Sequence[float], left: float, top: float, scale: float) -> list[float]:
    """x y w h of the photo -> x1 y1 x2 y2 of the picture."""
    x, y, w, h = box
    return [(x - left) * scale, (y - top) * scale, (x + w - left) * scale, (y + h - top) * scale]
