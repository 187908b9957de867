"""What a call may write: nothing of the user's, and the files of an earlier call."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cvpeft.errors import ConfigError
from cvpeft.runtime.photos import PROGRAM, STAMP, Photo, is_drawn
from cvpeft.runtime.results import COCO_RESULTS, COLUMNS, GEOJSON, RESULTS, TABLE

__all__ = ["check_free"]


def check_free(out: Path, photos: Sequence[Photo]) -> None:
    """ConfigError where a file would be lost that no earlier call has written.

    Pictures have a mark, predictions.json and findings.geojson too; a predictions.json with it vouches for the list
    beside it, and for a table that has our columns and no other.
    """
    sources = {photo.path for photo in photos}
    targets = [file for photo in photos for file in _there(out, photo)]
    # resolve() raises in a circle of links
    foreign = [file for file in targets if Path(os.path.realpath(file)) in sources or not is_drawn(file)]
    vouched = _is_marked(out / RESULTS)
    ours = {
        RESULTS: vouched,
        COCO_RESULTS: vouched,
        TABLE: vouched and _is_table(out / TABLE),
        GEOJSON: _is_marked(out / GEOJSON),
    }
    foreign += [out / name for name, mine in ours.items() if os.path.lexists(out / name) and not mine]
    if foreign:
        names = ", ".join(map(str, foreign[:5])) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ConfigError("OUT", f"{names} would be overwritten", where=str(out), fix="choose another folder for --out")


def _there(out: Path, photo: Photo) -> list[Path]:
    """The files that are there already, and that the pictures of a photo or a video would replace."""
    target = out / photo.picture
    if not photo.is_video:
        return [target] if os.path.lexists(target) else []
    pattern = re.compile(re.escape(target.name) + STAMP)
    return [file for file in sorted(target.parent.glob("*.jpg")) if pattern.fullmatch(file.name)]


def _is_marked(file: Path) -> bool:
    """Whether a json has the mark under "info"."""
    try:
        return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8"))["info"]["program"] == PROGRAM)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_table(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return file.is_file() and lines.readline(1000).strip() == ",".join(COLUMNS)
    except (OSError, ValueError):
        return False
