"""Labelled images as small pictures, one by one or on a sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cvpeft.data.coco import CocoData, ImageRecord
from cvpeft.data.faults import refuse_seed
from cvpeft.errors import DataError
from cvpeft.files import refuse_existing, write_whole
from cvpeft.runtime.draw import JPEG_SIDE, draw
from cvpeft.runtime.image import decode, resize

__all__ = ["contact_sheet", "jpeg", "labelled", "write_sheet"]

TILE = 320  # px, longer side of a picture on a sheet
CAPTION, GAP = 18, 8  # px
STEP = TILE + GAP, TILE + CAPTION + GAP  # px from one picture to the next, across and down
GROUND, INK = (24, 27, 32), (225, 228, 232)


def labelled(image: ImageRecord, classes: Sequence[str], side: int) -> Image.Image:
    """The image at `side` pixels of its longer side, with its boxes and their names. Raises DataError as `decode`."""
    scale = min(1.0, side / max(image.height, image.width))
    size = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    pixels, full = decode(image.path, at_least=size)
    boxes = image.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes *= np.tile((size[1] / full[1], size[0] / full[0]), 2)
    return draw(resize(pixels, size), boxes, image.labels, [classes[k - 1] for k in image.labels])


def contact_sheet(images: Sequence[ImageRecord], classes: Sequence[str], *, columns: int = 4) -> Image.Image:
    """Images side by side in rows, the name of each file below it; an unreadable one is an empty place that says so."""
    columns, step = min(columns, len(images)), STEP
    sheet = Image.new("RGB", _sheet_size(len(images), columns), GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, image in enumerate(images):
        left, top = GAP + number % columns * step[0], GAP + number // columns * step[1]
        try:
            picture = labelled(image, classes, TILE)
            sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
            caption = f"{Path(image.file_name).name}  {len(image.boxes)}"
        except DataError as fault:
            caption = f"{Path(image.file_name).name}  E-{fault.code}"
        caption = caption.encode("latin-1", "replace").decode("latin-1")  # Pillow's own font has no other letters
        while pen.textlength(caption, font) > TILE:
            caption = caption[1:]
        pen.text((left, top + TILE + 2), caption, INK, font)
    return sheet


def _sheet_size(images: int, columns: int) -> tuple[int, int]:
    """(width, height) of a sheet."""
    return columns * STEP[0] + GAP, -(-images // columns) * STEP[1] + GAP


def _refuse_long(images: int, columns: int, target: Path) -> None:
    width, height = _sheet_size(images, columns)
    if max(width, height) <= JPEG_SIDE:
        return
    what = f"{images} images in {columns} columns are {width} x {height} px"
    if height > JPEG_SIDE:
        least = -(-images // ((JPEG_SIDE - GAP) // STEP[1]))
        fits = _sheet_size(images, least)[0] <= JPEG_SIDE
        fix = f"raise --columns to {least} or more" if fits else "lower --images"
    else:
        fix = "lower --columns"
    raise DataError("SHEET", what, where=str(target), why=f"a JPEG's sides end at {JPEG_SIDE:,} px", fix=fix)


def write_sheet(target: Path, data: CocoData, *, images: int = 24, seed: int | None = None, columns: int = 4) -> int:
    """Write a contact sheet as JPEG and return how many images are on it: the first ones, or with a seed any.

    DataError where the file is there already, the seed is negative, or the sheet would be too long for a JPEG.
    """
    refuse_existing(target, fix="name another file with --out")
    chosen = np.arange(len(data.images))
    if seed is not None:
        refuse_seed(seed)
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:images])
    shown = [data.images[i] for i in chosen[:images].tolist()]
    _refuse_long(len(shown), min(columns, len(shown)), target)
    write_whole(target, jpeg(contact_sheet(shown, data.classes, columns=columns)), "the sheet")
    return len(shown)


def jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
