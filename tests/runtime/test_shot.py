"""EXIF: where the camera was and when, and everything that is broken in it counts as not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from cvpeft.runtime.shot import Position, Shot, read_shot

GPS, EXIF = ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif
BERLIN: dict[int, Any] = {1: "N", 2: (52, 31, 12.025), 3: "E", 4: (13, 24, 17.834)}


def photo(file: Path, gps: dict[int, Any] | None = None, exif: dict[int, Any] | None = None) -> Path:
    """A photo with these tags; a value of None takes a tag of BERLIN out."""
    block = Image.Exif()
    block[0x010F] = "a camera"  # Pillow takes a block of sub-blocks alone for an empty one
    block.get_ifd(GPS).update({key: value for key, value in {**BERLIN, **(gps or {})}.items() if value is not None})
    block.get_ifd(EXIF).update(exif or {})
    Image.new("RGB", (16, 16)).save(file, exif=block)
    return file


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_position_is_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    place = read_shot(photo(tmp_path / f"a.{suffix}")).position
    assert place is not None
    assert place.latitude == pytest.approx(52.52000694, abs=1e-7)
    assert place.longitude == pytest.approx(13.40495389, abs=1e-7)
    assert place.altitude is None


def test_south_and_west_are_negative(tmp_path: Path) -> None:
    gps = {1: "S", 2: (33, 52, 4.0), 3: "W", 4: (70.5, 0, 0)}
    place = read_shot(photo(tmp_path / "a.jpg", gps)).position
    assert place == Position(pytest.approx(-70.5), pytest.approx(-33.86777778), None)


@pytest.mark.parametrize(
    "gps",
    [
        {2: (IFDRational(1, 0), 31, 12)},
        {4: (13, 24, IFDRational(0, 0))},
        {2: (90, 0, 0.5)},
        {4: (181, 0, 0)},
        {2: (52, 61, 0)},
        {2: (52, 31)},
        {1: None},
        {3: None},
        {2: None},
        {1: "X"},
        {1: "NS"},
        {3: ""},
        {2: (0, 0, 0), 4: (0, 0, 0)},
    ],
)
def test_a_broken_position_is_none(tmp_path: Path, gps: dict[int, Any]) -> None:
    shot = read_shot(photo(tmp_path / "a.jpg", gps))
    assert shot.position is None
    assert shot.broken


@pytest.mark.parametrize(
    ("gps", "altitude"),
    [
        ({5: b"\0", 6: 34.5}, 34.5),
        ({5: b"\1", 6: 12.0}, -12.0),
        ({6: 34.5}, 34.5),
        ({5: b"\0", 6: IFDRational(1, 0)}, None),
        ({5: b"\0", 6: 60_000.0}, None),
        ({5: b"\1", 6: 5_000.0}, None),
    ],
)
def test_altitude(tmp_path: Path, gps: dict[int, Any], altitude: float | None) -> None:
    place = read_shot(photo(tmp_path / "a.jpg", gps)).position
    assert place is not None
    assert place.altitude == altitude


@pytest.mark.parametrize(
    ("gps", "wanted"),
    [
        ({16: "T", 17: 271.5}, (271.5, "true")),
        ({16: "M", 17: 0.0}, (0.0, "magnetic")),
        ({17: 90.0}, (90.0, None)),
        ({16: "T", 17: 361.0}, (None, None)),
        ({16: "T", 17: IFDRational(5, 0)}, (None, None)),
        ({16: "T"}, (None, None)),
    ],
)
def test_heading(tmp_path: Path, gps: dict[int, Any], wanted: tuple[float | None, str | None]) -> None:
    shot = read_shot(photo(tmp_path / "a.jpg", gps))
    assert (shot.heading, shot.north) == wanted


@pytest.mark.parametrize(
    ("exif", "taken"),
    [
        ({0x9003: "2024:05:01 12:33:10"}, "2024-05-01T12:33:10"),
        ({0x9003: "2024:05:01 12:33:10", 0x9011: "+02:00"}, "2024-05-01T12:33:10+02:00"),
        ({0x9003: "2024:05:01 12:33:10", 0x9011: "soon"}, "2024-05-01T12:33:10"),
        ({0x9003: "0000:00:00 00:00:00"}, None),
        ({0x9003: "    :  :     :  :  "}, None),
        ({0x9003: '=cmd|"/c calc"!A1'}, None),
        ({}, None),
    ],
)
def test_time(tmp_path: Path, exif: dict[int, Any], taken: str | None) -> None:
    assert read_shot(photo(tmp_path / "a.jpg", exif=exif)).taken == taken


def test_no_exif_and_no_image_is_no_shot(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg")
    assert read_shot(tmp_path / "a.jpg") == Shot()
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert read_shot(tmp_path / "b.jpg") == Shot()
    Image.new("RGB", (16, 16)).save(tmp_path / "c.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    assert read_shot(tmp_path / "c.jpg") == Shot()
