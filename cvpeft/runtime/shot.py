"""When and where a photograph was taken, from its EXIF block; what is broken in it counts as not there."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from cvpeft.runtime.image import FORMATS

__all__ = ["Position", "Shot", "read_shot"]

TAKEN, OFFSET = 0x9003, 0x9011  # DateTimeOriginal, OffsetTimeOriginal
GPS = ExifTags.GPS
NORTHS = {"T": "true", "M": "magnetic"}
DEEPEST, HIGHEST = -500.0, 10_000.0  # metres; no photograph of a street comes from beyond


@dataclass(frozen=True)
class Position:
    """Where the CAMERA was, in degrees of WGS 84; east and north are positive. altitude: metres, None: not known."""

    longitude: float
    latitude: float
    altitude: float | None


@dataclass(frozen=True)
class Shot:
    """taken: ISO 8601, local time unless it ends in an offset. heading: degrees that the camera looked to, 0..360 from
    north. north: which one, "true" or "magnetic". broken: the file has a GPS position of which none can be made."""

    taken: str | None = None
    position: Position | None = None
    heading: float | None = None
    north: str | None = None
    broken: bool = False


def read_shot(file: Path) -> Shot:
    """What the EXIF block of a photograph says; never raises for what stands in the file."""
    if not os.path.isfile(file):  # a pipe would be waited for
        return Shot()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                exif = image.getexif()
            return _shot(exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # a broken EXIF block raises whatever its parser met first
        return Shot()


def _shot(exif: Mapping[int, Any], gps: Mapping[int, Any]) -> Shot:
    position = _position(gps)
    heading = _real(gps.get(GPS.GPSImgDirection))
    if heading is None or not 0 <= heading <= 360:
        heading = None
    north = None if heading is None else NORTHS.get(_text(gps.get(GPS.GPSImgDirectionRef)))
    tried = any(gps.get(key) is not None for key in (GPS.GPSLatitude, GPS.GPSLongitude))
    return Shot(_taken(exif), position, heading, north, broken=tried and position is None)


def _position(gps: Mapping[int, Any]) -> Position | None:
    latitude = _degrees(gps.get(GPS.GPSLatitude), gps.get(GPS.GPSLatitudeRef), "NS", 90)
    longitude = _degrees(gps.get(GPS.GPSLongitude), gps.get(GPS.GPSLongitudeRef), "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:  # cameras without a fix write 0, 0
        return None
    return Position(longitude, latitude, _altitude(gps))


def _degrees(value: Any, reference: Any, signs: str, most: int) -> float | None:
    """Degrees, minutes, seconds and a letter -> signed degrees; None where one of them is missing or impossible."""
    letter = _text(reference)
    if len(letter) != 1 or letter not in signs or not isinstance(value, (tuple, list)) or len(value) != 3:
        return None
    parts = [_real(part) for part in value]
    if any(part is None or part < 0 for part in parts):
        return None
    degrees, minutes, seconds = (part or 0.0 for part in parts)
    total = degrees + minutes / 60 + seconds / 3600
    if minutes > 60 or seconds > 60 or total > most:
        return None
    return round(-total if letter == signs[1] else total, 8)  # about a millimetre


def _altitude(gps: Mapping[int, Any]) -> float | None:
    value = _real(gps.get(GPS.GPSAltitude))
    if value is None or value < 0:
        return None
    below = gps.get(GPS.GPSAltitudeRef) in (1, b"\x01", 3, b"\x03")  # 2 and 3 are EXIF 3.0's, above the ellipsoid
    value = round(-value if below else value, 3)
    return value if DEEPEST <= value <= HIGHEST else None


def _taken(exif: Mapping[int, Any]) -> str | None:
    try:
        taken = datetime.strptime(_text(exif.get(TAKEN)), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None
    try:
        return datetime.fromisoformat(taken + _text(exif.get(OFFSET))).isoformat()
    except ValueError:
        return taken


def _real(value: Any) -> float | None:
    """A rational as a finite number; None for a denominator of zero and whatever else is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """A text of EXIF; empty where there is none. Some cameras pad with zeros, or write bytes."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text.replace("\0", "").strip().upper() if isinstance(text, str) else ""
