"""Boxes with class name and score on a picture. Needs numpy and Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["JPEG_SIDE", "colour", "draw", "frame"]

JPEG_SIDE = 65_500  # px, the longest side of a JPEG as libjpeg writes it

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LAST_LATIN = 0xFF
GOLDEN = 0.618034  # steps of the golden ratio around the colour circle keep any number of hues apart
# Pillow's own font has Latin letters only; these are what systems have for Chinese names, tried in turn
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
) -> Image.Image:
    """A copy of the image with its detections; the highest score lies on top.

    image (h, w, 3) uint8 RGB; boxes (N, 4) xyxy in its pixels; labels (N,) 1..K, which choose the colour; names and
    scores (N,). Without scores, as for labels, names stand alone and boxes lie in their order.
    Lines and letters grow with the image, and every line has a dark rim, so that they are seen on any ground.
    A name in a script that the system has no font for is written as "class 3".
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 240))
    letters = max(11, round(min(picture.size) / 32))
    order = np.arange(len(boxes)) if scores is None else np.argsort(np.asarray(scores, dtype=float), kind="stable")
    for i in order:
        frame(pen, boxes[i].tolist(), colour(int(labels[i])), line)
    for i in order:
        font, name = _written(names[i], int(labels[i]), letters)
        text = name if scores is None else f"{name} {scores[i]:.2f}"
        _tag(pen, boxes[i].tolist(), text, colour(int(labels[i])), font, picture.size)
    return picture


@cache
def colour(label: int) -> Colour:
    """The colour of a class, the same in every picture: bright, and far in hue from its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb((0.33 + (label - 1) * GOLDEN) % 1.0, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def frame(pen: ImageDraw.ImageDraw, box: Sequence[float], ink: Colour, line: int) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle((x1 - 1, y1 - 1, max(x1, x2) + 1, max(y1, y2) + 1), outline=BLACK, width=line + 2)
    pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=ink, width=line)


def _tag(
    pen: ImageDraw.ImageDraw, box: Sequence[float], text: str, ink: Colour, font: Font, size: tuple[int, int]
) -> None:
    """Name and score on a filled ground: above the box, in it where there is no room, never outside of the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2, int(bottom - top) // 5)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else min(box[1], size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=ink, outline=BLACK)
    pen.text((x + pad - left, y + pad - top), text, font=font, fill=_contrast(ink))


def _contrast(ground: Colour) -> Colour:
    """Black or white, whichever is easier to read on the ground (luma of Rec. 601)."""
    red, green, blue = ground
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else WHITE


def _written(name: str, label: int, letters: int) -> tuple[Font, str]:
    """A font that has the name's letters, and the name; or the number of the class where there is no such font."""
    if all(ord(letter) <= LAST_LATIN for letter in name):
        return _latin(letters), name
    wide = _wide(letters)
    return (_latin(letters), f"class {label}") if wide is None else (wide, name)


@cache
def _latin(letters: int) -> Font:
    return ImageFont.load_default(letters)


@cache
def _wide(letters: int) -> Font | None:
    for file in WIDE_FONTS:
        try:
            return ImageFont.truetype(file, letters)
        except OSError:
            continue
    return None
