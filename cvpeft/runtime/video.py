"""A video -> its frames at even times. Needs OpenCV, which nothing else of the runtime does."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.image import MAX_PIXELS

__all__ = ["VIDEOS", "Frame", "frames"]

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".wmv")
SLACK = 0.02  # part of the frames that a container may promise too much


@dataclass(frozen=True)
class Frame:
    """time: seconds from the start of the video. pixels: (h, w, 3) uint8 RGB, upright."""

    video: Path
    time: float
    pixels: np.ndarray

    @property
    def stamp(self) -> str:
        """The time as file names have it: 000012.000 sorts as it runs."""
        return f"{self.time:010.3f}"


def frames(video: Path, every: float = 1.0) -> Iterator[Frame]:
    """The first frame, and then the first one after each `every` seconds; 0: all of them.

    Raises ConfigError where `every` is negative or no number, DataError where the file is absent, OpenCV is, or it
    cannot read the video, and, after the frames before, where the video ends earlier than it says.
    """
    if not 0 <= every < float("inf"):
        raise ConfigError("EVERY", f"the time between frames is {every} s", fix="give seconds, as in --every 1.0")
    if not video.is_file():
        raise _fault(video, "it is a folder, a pipe or a device" if video.exists() else "no such file")
    cv2 = _opencv(video)
    film = cv2.VideoCapture(str(video))
    try:
        yield from _read(cv2, film, video, every)
    finally:
        film.release()


def _read(cv2: Any, film: Any, video: Path, every: float) -> Iterator[Frame]:
    width, height, promised, rate = (_property(film, key) for key in _keys(cv2))
    if width * height > MAX_PIXELS:
        raise _fault(video, f"its frames have {width:.0f}x{height:.0f} pixels, above the limit of {MAX_PIXELS}")
    count, following, time = 0, 0.0, 0.0
    while film.grab():
        # some containers have no times: then the frames are counted
        time = max(_property(film, cv2.CAP_PROP_POS_MSEC) / 1000, count / rate if rate else 0.0) if count else 0.0
        count += 1
        if time + 1e-6 < following:
            continue
        whole, pixels = film.retrieve()
        if not whole or pixels is None:
            break
        yield Frame(video, time, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        following = max(following + every, time) if every else 0.0
    if not count:
        raise _fault(video, "it has no frame that OpenCV can read")
    if count < promised * (1 - SLACK) - 2:
        raise _fault(video, f"it ends after {time:.1f} s: {count} frames instead of {promised:.0f}")


def _keys(cv2: Any) -> tuple[int, ...]:
    return cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS


def _property(film: Any, key: int) -> float:
    """A number of the container; 0 where it has none, or nonsense."""
    value = float(film.get(key))
    return value if 0 < value < 1e9 else 0.0


def _opencv(video: Path) -> Any:
    """OpenCV, named as a string: it is no dependency of the runtime, and must not be loaded by an import of it."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        what, fix = "videos are read by OpenCV, which is not installed", "pip install opencv-python-headless"
        raise DataError("VIDEO", what, where=str(video), fix=fix) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong is told once, by the exception
    return cv2


def _fault(video: Path, what: str) -> DataError:
    fix = "copy the file again from its origin, or convert it to MP4 (H.264)"
    return DataError("VIDEO", what, where=str(video), why="its frames cannot all be searched", fix=fix)
