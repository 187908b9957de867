"""Where the boxes lie and how large they are, as pictures for the page."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cvpeft.data.check.anchors import input_sides, shapes
from cvpeft.data.check.classes import class_counts
from cvpeft.data.check.finding import Case, Split
from cvpeft.html import escape, image_source

__all__ = ["heat_maps", "size_plot"]

HEAT = (36, 48)  # rows and columns of a heat map
MAPS = 12  # classes with a heat map of their own, the most frequent first
DARK, BRIGHT = np.array((20, 24, 60)), np.array((255, 210, 70))  # colours of its ends
DOTS = 2000  # boxes in the picture of sizes
PLOT, EDGE = (420, 300), 40  # px of the picture of sizes, and of its margin
LIMITS = (32, 96)  # px, COCO's borders between small, medium and large


def heat_maps(case: Case) -> str:
    """How often each place of an image, whatever its size, is covered by a box: of all classes, and of each."""
    near, far, labels = _cells(case)
    covered = _coverage(near, far)
    note = f"Bright: covered by up to {int(covered.max())} boxes; all images drawn to one size."
    whole = f"{_heat(covered, 'heat map of boxes over the image area')}<small>{note}</small>"
    if len(case.classes) < 2:
        return whole
    counts = np.sum([class_counts(case, split) for split in case.splits], axis=0)
    most = [k for k in np.argsort(-counts, kind="stable")[:MAPS] if counts[k]]
    of_class = "".join(
        f"<figure>{_heat(_coverage(near[labels == k + 1], far[labels == k + 1]), f'heat map of {case.classes[k]}')}"
        f"<figcaption>{escape(case.classes[k])}, {counts[k]}</figcaption></figure>"
        for k in most
    )
    return f'{whole}<div class="maps">{of_class}</div>'


def _cells(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each box in cells of the heat map: near corner (N, 2) x y, the corner after its last cell (N, 2), class (N,)."""
    grid = np.array(HEAT[::-1])
    parts = []
    for split in case.splits:
        boxes, labels, owner = case.boxes(split)
        sizes = np.array([(image.width, image.height) for image in split.images] or [(1, 1)], float)[owner]
        near = np.clip(boxes[:, :2] / sizes * grid, 0, grid - 1).astype(int)
        far = np.clip(np.ceil((boxes[:, :2] + boxes[:, 2:]) / sizes * grid), near + 1, grid).astype(int)
        parts.append((near, far, labels))
    near, far, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return near, far, labels


def _coverage(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """HEAT: how many boxes cover each cell; a box is added as four corners, which two sums make its area."""
    heat = np.zeros((HEAT[0] + 1, HEAT[1] + 1))
    for xs, ys, sign in ((near, near, 1), (far, near, -1), (near, far, -1), (far, far, 1)):
        np.add.at(heat, (ys[:, 1], xs[:, 0]), sign)
    return heat.cumsum(0).cumsum(1)[:-1, :-1]


def _heat(covered: np.ndarray, alt: str) -> str:
    share = np.sqrt(covered / max(covered.max(), 1))[..., None]
    picture = io.BytesIO()
    Image.fromarray((DARK + share * (BRIGHT - DARK)).round().astype(np.uint8)).save(picture, "PNG")
    return f'<img class="heat" alt="{escape(alt)}" src="{image_source("png", picture.getvalue())}">'


def size_plot(case: Case) -> str:
    """Width against height on logarithmic axes, as SVG: at the input beside the anchors, where these are known."""
    sides = np.concatenate([_sides(case, split) for split in case.splits])
    if not len(sides):
        return ""
    anchors = shapes(case.anchors) if case.anchors else np.zeros((0, 2))
    drawn = sides[np.random.default_rng(0).permutation(len(sides))[:DOTS]]
    both = np.concatenate([drawn, anchors])
    low, high = max(1.0, both.min()), max(both.max() * 1.1, 200.0)

    def place(value: float, axis: int) -> float:
        part = np.log(max(value, low) / low) / np.log(high / low)
        room = PLOT[axis] - EDGE - 8
        return float(EDGE + part * room) if axis == 0 else float(PLOT[1] - EDGE - part * room)

    marks = "".join(_tick(value, place(value, 0), place(value, 1)) for value in _ticks(low, high))
    dots = "".join(f'<circle class="box" r="2.5" cx="{place(w, 0):.1f}" cy="{place(h, 1):.1f}"/>' for w, h in drawn)
    crosses = "".join(
        f'<path class="anchor" d="M{place(w, 0) - 4:.1f} {place(h, 1):.1f}h8m-4 -4v8"/>' for w, h in anchors
    )
    names = (
        f'<text x="{PLOT[0] // 2}" y="{PLOT[1] - 6}" text-anchor="middle">width, px</text>'
        f'<text text-anchor="middle" transform="translate(12 {PLOT[1] // 2}) rotate(-90)">height, px</text>'
    )
    drawing = f'<svg viewBox="0 0 {PLOT[0]} {PLOT[1]}" role="img" aria-label="widths and heights of boxes">'
    return f"{drawing}{marks}{dots}{crosses}{names}</svg><small>{_told(case, sides, len(drawn))}</small>"


def _sides(case: Case, split: Split) -> np.ndarray:
    """(N, 2) width and height of a split's boxes, in pixels of the input, or of the photos where it is not known."""
    return input_sides(case, split, case.anchors.size) if case.anchors else case.boxes(split)[0][:, 2:]


def _told(case: Case, sides: np.ndarray, drawn: int) -> str:
    area = sides.prod(1)
    small, large = int((area < LIMITS[0] ** 2).sum()), int((area > LIMITS[1] ** 2).sum())
    unit = "the photos"
    if case.anchors:
        unit = f"the network's input of {case.anchors.size[0]} x {case.anchors.size[1]}; crosses are its anchors"
    return (
        f"{small} small (below 32 px), {len(sides) - small - large} medium, {large} large (above 96 px), in pixels of "
        f"{unit}. Median {np.median(sides[:, 0]):.0f} x {np.median(sides[:, 1]):.0f} px."
        + (f" {drawn} of {len(sides)} boxes are drawn." if drawn < len(sides) else "")
    )


def _ticks(low: float, high: float) -> list[float]:
    """The powers of four between the two."""
    return [4.0**k for k in range(12) if low <= 4.0**k < high]


def _tick(value: float, x: float, y: float) -> str:
    bottom = PLOT[1] - EDGE
    return (
        f'<path class="axis" d="M{x:.1f} 8V{bottom}M{EDGE} {y:.1f}H{PLOT[0] - 8}"/>'
        f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>'
        f'<text x="{EDGE - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )
