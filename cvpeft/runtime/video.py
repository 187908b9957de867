"""A video -> its frames at even times. Needs OpenCV, which nothing else of the runtime does."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.image import MAX_PIXELS

__all__ = ["VIDEOS", "Frame", "frames"]

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".wmv")
SLACK = 0.02  # part of the frames that a container may promise too much, or that are lost within it
LATE = 1.0  # seconds that it may promise too much, as where its sound is longer
JITTER = 0.1  # seconds by which times may run back without being those of another recording


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
    if not os.path.isfile(video):  # Path.is_file raises where a folder may not be entered
        raise _fault(video, "it is a folder, a pipe or a device" if os.path.exists(video) else "no such file")
    _check_name(video)
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
    clock, following = _Clock(1 / rate if rate else 0.0), 0.0
    while film.grab():
        time = clock.read(_property(film, cv2.CAP_PROP_POS_MSEC) / 1000)
        if time + 1e-6 < following:
            continue
        whole, pixels = film.retrieve()
        if not whole or pixels is None:
            raise _fault(video, f"its frame at {time:.1f} s cannot be decoded, nor was what follows")
        yield Frame(video, time, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        following = max(following + every, time) if every else 0.0
    if not clock.count:
        raise _fault(video, "it has no frame that OpenCV can read")
    length = promised * clock.step
    if clock.count < promised * (1 - SLACK) - 2 or clock.time + clock.step < length - LATE:
        told = f" instead of {promised:.0f}" if clock.count < promised else ""
        raise _fault(video, f"it ends after {clock.time:.1f} of {length:.1f} s: {clock.count} frames{told}")


class _Clock:
    """Times of the container -> seconds from the start, which never run back.

    step: seconds of a frame on average, by which frames are counted where the container has no times. The average must
    not stand in for times that are there: a phone that films slower at dusk would be seconds ahead of itself.
    """

    def __init__(self, step: float) -> None:
        self.step, self.count, self.time, self.offset = step, 0, 0.0, 0.0

    def read(self, position: float) -> float:
        """The time of the next frame. position: what the container says of it, 0 where it says nothing."""
        if self.count and not position:
            self.time += self.step
        elif self.count:
            if position + self.offset < self.time - JITTER:  # recordings joined end to end begin at zero again
                self.offset = self.time + self.step - position
            self.time = max(self.time, position + self.offset)
        self.count += 1
        return self.time


def _keys(cv2: Any) -> tuple[int, ...]:
    return cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS


def _property(film: Any, key: int) -> float:
    """A number of the container; 0 where it has none, or nonsense."""
    value = float(film.get(key))
    return value if 0 < value < 1e9 else 0.0


def _check_name(video: Path) -> None:
    """OpenCV ends the process, not the call, where a name is no UTF-8."""
    try:
        os.fsencode(video).decode("utf-8")
    except UnicodeDecodeError as error:
        what, why = "its name is not UTF-8", "OpenCV cannot open it"
        raise DataError("VIDEO", what, where=str(video), why=why, fix="rename the file, or the folder") from error


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
