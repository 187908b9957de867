"""Frames of a video at even times; what cannot be read, or ends early, is told after what could be."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.video import frames

RATE = 10


def video(file: Path, count: int = 30, size: tuple[int, int] = (48, 64), code: str = "MJPG") -> Path:
    """Frame k is grey of 8 k: its time can be told from its pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    film = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*code), RATE, size[::-1])
    for k in range(count):
        film.write(np.full((*size, 3), 8 * (k % 30), np.uint8))
    film.release()
    return file


@pytest.mark.parametrize(("suffix", "code"), [("avi", "MJPG"), ("mp4", "mp4v")])
@pytest.mark.parametrize(("every", "shown"), [(1.0, [0, 10, 20]), (0.25, [0, 3, 5, 8]), (0, [0, 1, 2, 3]), (60, [0])])
def test_frames_are_those_of_their_time(tmp_path: Path, suffix: str, code: str, every: float, shown: list[int]) -> None:
    found = list(frames(video(tmp_path / f"drive.{suffix}", code=code), every))
    assert [round(frame.time * RATE) for frame in found][: len(shown)] == shown
    for frame in found:
        assert frame.pixels.shape == (48, 64, 3)
        assert abs(frame.pixels.mean() - 8 * round(frame.time * RATE)) < 4
    assert all(a.time < b.time for a, b in pairwise(found))
    assert found[0].stamp == "000000.000"


def test_frames_are_rgb(tmp_path: Path) -> None:
    film = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    film.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))  # OpenCV's red
    film.release()
    (frame,) = frames(tmp_path / "a.avi")
    assert frame.pixels[24, 32, 0] > 200 > frame.pixels[24, 32, 2]


def test_a_video_that_ends_early_gives_its_frames_first(tmp_path: Path) -> None:
    file = video(tmp_path / "drive.avi", 60)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    found = frames(file, 1.0)
    assert next(found).time == 0
    with pytest.raises(DataError, match=r"E-VIDEO .*drive\.avi - it ends after"):
        list(found)


@pytest.mark.parametrize("content", [b"", b"no video", bytes(5000), b"\0\0\0\x18ftypmp42" + bytes(3000)])
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "drive.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"E-VIDEO .*drive\.mp4 - it has no frame"):
        list(frames(tmp_path / "drive.mp4"))


def test_wrong_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(frames(tmp_path / "no.mp4"))
    with pytest.raises(DataError, match="a folder"):
        list(frames(tmp_path))
    for every in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="the time between frames"):
            list(frames(tmp_path / "no.mp4", every))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match="OpenCV, which is not installed") as told:
        list(frames(video(tmp_path / "a.avi", 1)))
    assert "pip install opencv-python-headless" in str(told.value)
