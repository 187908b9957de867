"""What was found, as files: a COCO json, the list that pycocotools reads, a table, and points for a map."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvpeft import __version__
from cvpeft.files import unwritable, write_whole
from cvpeft.runtime.image import Size
from cvpeft.runtime.onnx_detector import Detections
from cvpeft.runtime.photos import PROGRAM, printable
from cvpeft.runtime.shot import Position, Shot

__all__ = ["COCO_RESULTS", "COLUMNS", "FIX", "GEOJSON", "RESULTS", "TABLE", "Entry", "Findings"]

RESULTS = "predictions.json"
COCO_RESULTS = "coco_results.json"  # the list that pycocotools' loadRes reads
TABLE = "detections.csv"
GEOJSON = "findings.geojson"
COLUMNS = (
    "file_name", "class", "score", "x1", "y1", "x2", "y2", "width", "height", "taken", "latitude", "longitude",
)  # fmt: skip
FIX = "free disk space, or choose another folder for --out"
# What makes a spreadsheet take text for a formula, in its full-width forms too
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
WHERE = "the camera's, from EXIF GPS, not the object's"


@dataclass(frozen=True)
class Entry:
    """One photo that was searched. name, picture: see `Photo`. size: (height, width) of the upright photo."""

    path: Path
    name: str
    picture: str
    size: Size
    found: Detections
    shot: Shot


@dataclass
class Findings:
    """All that one call found. one_name: the IoU from which boxes of other classes gave way, see `Detector`.
    failed: file_name, path and error of what could not be read."""

    model: str
    classes: Sequence[str]
    thresholds: Mapping[str, float]
    one_name: float | None = None
    entries: list[Entry] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        return sum(len(entry.found.boxes) for entry in self.entries)

    def write(self, out: Path) -> None:
        """Write predictions.json, coco_results.json and detections.csv, and findings.geojson if a photo has a position.

        Files of an earlier call are replaced, a map of one is removed where there is no position now. ResourceError:
        one of them cannot be written.
        """
        content = self.coco()
        write_whole(out / RESULTS, _json(content), fix=FIX)  # first: it vouches for the others, see `check_free`
        results = [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in _rows(content)]
        write_whole(out / COCO_RESULTS, _json(results), fix=FIX)
        write_whole(out / TABLE, self.table(), fix=FIX)
        if any(entry.shot.position for entry in self.entries):
            write_whole(out / GEOJSON, _json(self.points()), fix=FIX)
        else:
            _remove(out / GEOJSON)

    def coco(self) -> dict[str, Any]:
        """A COCO file whose annotations have a "score"; what could not be read stands under "failed"."""
        images = [_image(number, entry) for number, entry in enumerate(self.entries, 1)]
        annotations = [row for number, entry in enumerate(self.entries, 1) for row in _annotations(number, entry)]
        return {
            "info": self._info() | {"thresholds": dict(self.thresholds), "one_name": self.one_name},
            "images": images,
            "annotations": [{"id": number, **row} for number, row in enumerate(annotations, 1)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.classes, 1)],
            "failed": self.failed,
        }

    def table(self) -> str:
        """One row a box, RFC 4180. Text that a spreadsheet would take for a formula has an apostrophe before it, so
        that a photo's name cannot run one; the names as they are stand in predictions.json."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for entry in self.entries:
            writer.writerows(_cells(entry))
        return text.getvalue()

    def points(self) -> dict[str, Any]:
        """A FeatureCollection of RFC 7946: one point [longitude, latitude, altitude if known] a box.

        A point lies where the CAMERA stood, which the photo's EXIF block says; where the object lies is not known.
        Boxes of photos without a position are left out. Coordinates are WGS 84, as GPS gives them; the altitude is
        above the sea in most files. Maps in another datum (GCJ-02 in China) must convert them.
        """
        features = [point for entry in self.entries for point in _points(entry)]
        info = self._info() | {"position": WHERE}
        return {"type": "FeatureCollection", "info": info, "features": features}

    def unplaced(self) -> str:
        """One sentence on photos that are on no map; empty where there is none."""
        lost = [entry.shot for entry in self.entries if entry.shot.position is None]
        if not lost:
            return ""
        broken = sum(shot.broken for shot in lost)
        part = f" ({broken} of them a broken one)" if broken else ""
        rest = f" and are not in {GEOJSON}." if len(lost) < len(self.entries) else f", so there is no {GEOJSON}."
        return f"{len(lost)} of {len(self.entries)} photos have no GPS position{part}{rest}"

    def _info(self) -> dict[str, Any]:
        return {"program": PROGRAM, "version": __version__, "model": self.model}


def _image(number: int, entry: Entry) -> dict[str, Any]:
    image = {
        "id": number, "file_name": entry.name, "height": entry.size[0], "width": entry.size[1],
        "path": printable(entry.path), "picture": entry.picture,
    }  # fmt: skip
    return image if entry.shot.taken is None else {**image, "date_captured": entry.shot.taken}


def _annotations(number: int, entry: Entry) -> Iterator[dict[str, Any]]:
    for (x1, y1, x2, y2), label, score in _detections(entry):
        box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
        yield {
            "image_id": number, "category_id": label, "bbox": box, "area": area, "iscrowd": 0, "score": score,
        }  # fmt: skip


def _detections(entry: Entry) -> Iterator[tuple[list[float], int, float]]:
    found = entry.found
    yield from zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)


def _cells(entry: Entry) -> Iterator[list[Any]]:
    height, width = entry.size
    place = entry.shot.position
    shot = [entry.shot.taken or "", *((place.latitude, place.longitude) if place else ("", ""))]
    for name, (box, _, score) in zip(entry.found.names, _detections(entry), strict=True):
        corners = [round(side, 2) for side in box]
        yield [_harmless(entry.name), _harmless(name), round(score, 4), *corners, width, height, *shot]


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _points(entry: Entry) -> Iterator[dict[str, Any]]:
    shot = entry.shot
    if shot.position is None:
        return
    known = {"taken": shot.taken, "heading": shot.heading, "heading_north": shot.north}
    for name, (box, _, score) in zip(entry.found.names, _detections(entry), strict=True):
        properties = {
            "file_name": entry.name, "class": name, "score": round(score, 4), "box": [round(side, 2) for side in box],
            **{key: value for key, value in known.items() if value is not None}, "position": WHERE,
        }  # fmt: skip
        geometry = {"type": "Point", "coordinates": _coordinates(shot.position)}
        yield {"type": "Feature", "geometry": geometry, "properties": properties}


def _coordinates(place: Position) -> list[float]:
    flat = [place.longitude, place.latitude]
    return flat if place.altitude is None else [*flat, place.altitude]


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = content["annotations"]
    return rows


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error, file, "the map of an earlier call", fix=FIX) from error
