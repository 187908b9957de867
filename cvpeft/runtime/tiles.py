"""A photograph in several network inputs: overlapping tiles at one scale, and one list of boxes out of all of theirs.

A whole road photo shrunk into one input leaves a distant cover a few pixels; tiles keep its size. Evaluation and
deployment call these functions, so that they cannot differ. Needs numpy and Pillow only.
Sizes are (height, width); boxes are x1 y1 x2 y2 in pixels of the upright photo. Letters: T tiles, N boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cvpeft.errors import ConfigError
from cvpeft.runtime.image import MAX_PIXELS, Letterbox, Size, fit, resize

__all__ = ["Canvas", "Found", "TiledPhoto", "check_canvas", "join", "least_size"]

Canvas = Size | Literal["photo"]  # "photo": each photo's own size, nothing is scaled
OVERLAP = 0.25  # least part of a tile's side that its neighbour sees too; what is smaller is whole in one of them
EDGE = 2.0  # pixels of the network input: a box that comes as close to a tile's inner side may go on behind it
SAME = 0.5  # IoU, where both tiles look, from which two boxes are one object


def least_size(size: Size, canvas: Canvas | None) -> Size | None:
    """(height, width) that a decoded photo must keep for tiles of `size`; None: its full size."""
    return None if canvas == "photo" else canvas or size


def check_canvas(canvas: Canvas | None, size: Size) -> None:
    """ConfigError where a canvas is smaller than its tiles of `size`, or larger than any photo may be."""
    if canvas is None or canvas == "photo":
        return
    height, width = canvas
    if height < size[0] or width < size[1] or height * width > MAX_PIXELS:
        what = f"the canvas is {height}x{width}, but must hold tiles of {size[0]}x{size[1]}"
        most = f"{MAX_PIXELS // 10**6} million pixels"
        raise ConfigError("CANVAS", f"{what} and have at most {most}", fix="give HEIGHTxWIDTH in between, or `photo`")


@dataclass(frozen=True)
class TiledPhoto:
    """Where the tiles of a photo lie.

    places: for each tile the geometry between photo and network input. Without a canvas, and for a photo that fits into
    one input, it is the one letterbox of the whole photo.
    """

    places: tuple[Letterbox, ...]
    whole: Letterbox

    @classmethod
    def of(cls, source: Size, size: Size, canvas: Canvas | None = None) -> TiledPhoto:
        """source: size of the photo. size: of a tile. canvas: what the photo is letterboxed into before it is cut."""
        inner = source if canvas == "photo" else fit(source, canvas or size).inner
        room = (max(inner[0], size[0]), max(inner[1], size[1]))  # no tile shows bars alone
        whole = Letterbox(source, room, inner, (room[0] - inner[0]) // 2, (room[1] - inner[1]) // 2)
        corners = [(top, left) for top in _starts(room[0], size[0]) for left in _starts(room[1], size[1])]
        return cls(tuple(_window(whole, top, left, size) for top, left in corners), whole)

    def cut(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """The tiles (H, W, 3) uint8 of a photo (h, w, 3) uint8, which may be decoded at a fraction of its size."""
        canvas = self.whole.paste(resize(image, self.whole.inner))
        for place in self.places:
            top, left = self.whole.top - place.top, self.whole.left - place.left
            yield canvas[top : top + place.size[0], left : left + place.size[1]]


def _starts(room: int, side: int) -> list[int]:
    """Where tiles begin along one axis: evenly spread, as few as cover it with OVERLAP between neighbours."""
    count = 1 if room <= side else math.ceil((room - OVERLAP * side) / (side - OVERLAP * side))
    return [round(i * (room - side) / max(count - 1, 1)) for i in range(count)]


def _window(whole: Letterbox, top: int, left: int, size: Size) -> Letterbox:
    return replace(whole, size=size, top=whole.top - top, left=whole.left - left)


@dataclass(frozen=True)
class Found:
    """What one tile gave: boxes (N, 4) float64 in pixels of the photo, scores (N,) falling, labels (N,) int64."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def join(found: Sequence[Found], places: Sequence[Letterbox]) -> Found:
    """What was found in the tiles of one photo, in one list that falls in score; of a single tile what it gave.

    found: per tile, already in pixels of the photo. places: the tiles.
    Two boxes of one class in two tiles are one object if their parts in the common area overlap by SAME. Of such a pair
    the box that no tile's side cuts is kept; two that are cut become their union: an object larger than the overlap is
    seen in parts. The score is the higher one.
    """
    if len(found) == 1:
        return found[0]
    windows = np.array([_seen(place) for place in places])  # (T, 4)
    tile = np.repeat(np.arange(len(found)), [len(f.scores) for f in found])  # (N,)
    boxes, scores, labels = (np.concatenate([getattr(f, key) for f in found]) for key in ("boxes", "scores", "labels"))
    inner = np.array([_goes_on(place) for place in places])  # (T, 4)
    cut = _cut(boxes, windows[tile], inner[tile], places[0])
    boxes, scores, left = boxes.copy(), scores.copy(), np.ones(len(boxes), bool)
    kept = []
    for i in np.lexsort((-scores, cut)):  # whole ones first, then by score
        if not left[i]:
            continue
        kept.append(i)
        left[i] = False
        members = [i]
        for j in members if cut[i] else (i,):  # `members` grows: an object over three tiles is a chain of parts
            others = np.flatnonzero(left & (labels == labels[i]) & (tile != tile[j]))
            same = others[_common_iou(boxes[j], windows[tile[j]], boxes[others], windows[tile[others]]) > SAME]
            left[same] = False
            members += same.tolist()
        scores[i] = scores[members].max()
        if cut[i]:
            boxes[i] = _union(boxes[members])
    rows = np.array(sorted(kept, key=lambda i: -scores[i]), np.int64)
    return Found(boxes[rows], scores[rows], labels[rows])


def _seen(place: Letterbox) -> np.ndarray:
    """The part of the photo that a tile shows (4,)."""
    return place.inverse(np.array([[0, 0, place.size[1], place.size[0]]]))[0]


def _goes_on(place: Letterbox) -> tuple[bool, bool, bool, bool]:
    """Behind which of a tile's sides (left, top, right, bottom) the photo goes on.

    In whole pixels of the network input: what `_seen` gives is rounded, and need not be the photo's border exactly.
    """
    (height, width), (rows, columns) = place.size, place.inner
    return place.left < 0, place.top < 0, place.left + columns > width, place.top + rows > height


def _cut(boxes: np.ndarray, windows: np.ndarray, inner: np.ndarray, place: Letterbox) -> np.ndarray:
    """Whether a box (N, 4) touches an inner side (N, 4) of its window (N, 4) -> (N,)."""
    y, x = EDGE * place.source[0] / place.inner[0], EDGE * place.source[1] / place.inner[1]
    near = np.abs(boxes - windows) <= (x, y, x, y)
    return np.asarray((near & inner).any(1))


def _common_iou(box: np.ndarray, window: np.ndarray, boxes: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) and boxes (N, 4) within what both their windows show -> (N,); 0 where they show nothing."""
    low, high = np.maximum(window[:2], windows[:, :2]), np.minimum(window[2:], windows[:, 2:])  # (N, 2)
    one, other = _clipped(box[None], low, high), _clipped(boxes, low, high)
    both = _area(np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:]))
    union = _area(one[:, :2], one[:, 2:]) + _area(other[:, :2], other[:, 2:]) - both
    return np.divide(both, union, out=np.zeros(len(boxes)), where=union > 0)


def _clipped(boxes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.concatenate((np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)), 1)


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(high - low, 0, None).prod(1))


def _union(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2].min(0), boxes[:, 2:].max(0)))
