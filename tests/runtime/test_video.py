"""Frames of a video at even times; what cannot be read, or ends early, is told after what could be."""

from __future__ import annotations

import os
import struct
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.video import _Clock, frames

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


def test_the_last_seconds_are_missed_too(tmp_path: Path) -> None:
    """A card that was pulled out leaves zeros; they are less than the frames that containers promise in vain."""
    file = video(tmp_path / "drive.avi", 2000)
    content = file.read_bytes()
    end = content.rfind(b"idx1")
    lost = int(end * 0.015)
    file.write_bytes(content[: end - lost] + bytes(lost) + content[end:])
    found = frames(file, 10.0)
    assert next(found).time == 0
    with pytest.raises(DataError, match=r"it ends after 19\d\.\d of 200\.0 s: 19\d\d frames instead of 2000"):
        list(found)


def slowing(file: Path, first: int, rate: int, then: int, slow: int) -> Path:
    """An mp4 of `first` frames at `rate` a second and `then` at `slow`, as a phone films into the dusk."""
    video(file, first + then, code="mp4v")
    durations = [(first, rate), (then, slow)]

    def patched(content: bytes) -> bytes:
        whole, at = b"", 0
        while at < len(content):
            size, kind = struct.unpack(">I4s", content[at : at + 8])
            body, at = content[at + 8 : at + size], at + size
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                body = patched(body)
            elif kind == b"edts":
                continue
            elif kind == b"mdhd":
                ticks = patched.ticks = struct.unpack(">I", body[12:16])[0]  # type: ignore[attr-defined]
                body = body[:16] + struct.pack(">I", sum(n * ticks // r for n, r in durations)) + body[20:]
            elif kind == b"stts":
                ticks = patched.ticks  # type: ignore[attr-defined]
                body = struct.pack(">II", 0, 2) + b"".join(struct.pack(">II", n, ticks // r) for n, r in durations)
            whole += struct.pack(">I4s", len(body) + 8, kind) + body
        return whole

    file.write_bytes(patched(file.read_bytes()))
    return file


def test_times_are_those_of_the_container_where_its_rate_changes(tmp_path: Path) -> None:
    found = list(frames(slowing(tmp_path / "dusk.mp4", 100, 20, 50, 5), 0))
    wanted = [k / 20 for k in range(101)] + [5 + k / 5 for k in range(1, 50)]
    assert [frame.time for frame in found] == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(
    ("positions", "times"),
    [
        ([0, 0.5, 1.0], [0, 0.5, 1.0]),
        ([0, 0, 0], [0, 0.1, 0.2]),  # no times: counted
        ([0, 0.1, 0.2, 0, 0.1], [0, 0.1, 0.2, 0.3, 0.4]),  # two recordings joined end to end
        ([0, 5.0, 0.04, 0.08], [0, 5.0, 5.1, 5.14]),
        ([0, 0.2, 0.16, 0.24], [0, 0.2, 0.2, 0.24]),
    ],
)
def test_times_never_run_back(positions: list[float], times: list[float]) -> None:
    clock = _Clock(0.1)
    assert [clock.read(position) for position in positions] == pytest.approx(times)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/stra\xdfe.avi"))
    video(tmp_path / "a.avi", 1).rename(file)
    with pytest.raises(DataError, match=r"E-VIDEO .* its name is not UTF-8"):
        list(frames(file))


def test_a_frame_that_cannot_be_decoded_is_told_after_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Torn:
        def __init__(self, name: str) -> None:
            self.film, self.left = capture(name), 2

        def retrieve(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return self.film.retrieve() if self.left >= 0 else (False, None)

        def __getattr__(self, name: str) -> object:
            return getattr(self.film, name)

    capture = cv2.VideoCapture
    file = video(tmp_path / "drive.avi", 60)
    monkeypatch.setattr(cv2, "VideoCapture", Torn)
    found = frames(file, 1.0)
    assert [next(found).time, next(found).time] == [0, 1]
    with pytest.raises(DataError, match=r"its frame at 2\.0 s cannot be decoded"):
        next(found)


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
