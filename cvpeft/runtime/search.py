"""Photographs, videos and a model -> pictures with boxes, and files; nothing of the user's is touched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cvpeft.errors import ConfigError, DataError, visible
from cvpeft.files import replacing
from cvpeft.runtime.draw import JPEG_SIDE, draw
from cvpeft.runtime.image import decode
from cvpeft.runtime.onnx_detector import Detections, Detector, Loaded
from cvpeft.runtime.onnx_detector import Image as Source
from cvpeft.runtime.photos import PROGRAM, Photo, find_photos, printable
from cvpeft.runtime.protect import check_free
from cvpeft.runtime.results import FIX, Entry, Findings
from cvpeft.runtime.shot import Shot, read_shot
from cvpeft.runtime.tiles import Canvas
from cvpeft.runtime.video import Frame, frames

__all__ = ["DetectionRun", "Model", "search", "search_onnx", "tell"]


class Model(Protocol):
    """What `search` needs of a model; `Detector` is one, and a trained run in torch another."""

    classes: tuple[str, ...]
    thresholds: dict[str, float]

    def load(self, image: Source) -> Loaded: ...

    def __call__(
        self,
        images: Sequence[Source],
        *,
        threshold: float | None = None,
        one_name: float | None = None,
        batch: int = 1,
    ) -> list[Detections]: ...


@dataclass(frozen=True)
class DetectionRun:
    """What was done. images: that were searched; boxes: that were found; failed: a sentence for each unreadable one;
    unplaced: a sentence on photos without a GPS position, or nothing."""

    out: Path
    images: int
    boxes: int
    failed: tuple[str, ...]
    unplaced: str = ""

    @property
    def exit_code(self) -> int:
        return DataError.exit_code if self.failed else 0


@dataclass(frozen=True)
class _Shown:
    """One photo or frame that could be read. pixels: of a frame; a photo is read again to be drawn at full size."""

    path: Path
    name: str
    picture: str
    loaded: Loaded
    pixels: np.ndarray | None


def search(
    opener: Callable[[], Model],
    source: str,
    images: Sequence[str | Path],
    out: Path,
    *,
    score: float | None = None,
    one_name: float | None = None,
    batch: int = 1,
    every: float = 1.0,
) -> DetectionRun:
    """Detect and write out/NAME.jpg, boxes drawn, and the files of `Findings.write`.

    opener: makes the model, once all else is known to be right. source: its name, for the files.
    images: see `find_photos`. score: lowest score that counts, for all classes; None: each class's own.
    one_name: IoU from which boxes of any classes are one object, which gets its best name; see `Detector`.
    batch: network inputs fed at once. every: seconds between the frames of a video.
    What cannot be read is told in `failed`, and the others are done. Files of an earlier call are replaced.
    DataError: nothing to read. ConfigError: a file in `out` that is not of an earlier call would be overwritten.
    ResourceError: a picture cannot be written, or the model asks for too much memory. Whatever ends the search, Ctrl+C
    too, what was found before is written.
    """
    _check(score, one_name, batch, every)
    photos = find_photos(images)
    check_free(out, photos)
    model = opener()
    least = {name: model.thresholds[name] if score is None else score for name in model.classes}
    findings = Findings(source, model.classes, least, one_name)
    ask = partial(model, threshold=score, one_name=one_name, batch=batch)
    group: list[_Shown] = []
    try:
        for shown in _progress(_readable(model, photos, every, findings)):
            group.append(shown)
            if len(group) == batch:
                _search_group(ask, group, out, findings)
                group = []
        _search_group(ask, group, out, findings)
    except BaseException:  # Ctrl+C and the end of memory too: hours of work may lie in the entries
        if findings.entries:
            with suppress(Exception):  # it would hide the first
                findings.write(out)
        raise
    findings.write(out)
    failed = tuple(entry["error"] for entry in findings.failed)
    return DetectionRun(out, len(findings.entries), findings.boxes, failed, findings.unplaced())


def search_onnx(
    source: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    canvas: Canvas | None = None,
    adapter: Path | None = None,
    **options: Any,
) -> DetectionRun:
    """`search` with an exported file. canvas, adapter: see `Detector`. options: score, one_name, batch, every."""
    return search(lambda: Detector(source, canvas=canvas, adapter=adapter), printable(source), images, out, **options)


def tell(done: DetectionRun) -> int:
    """What was done on the terminal; returns the exit code: 2 where something could not be read."""
    for sentence in (*done.failed, done.unplaced):
        if sentence:
            print(sentence, file=sys.stderr)
    counts = f"{done.boxes} boxes in {done.images} images, {len(done.failed)} unreadable"
    print(f"{counts}: {visible(printable(done.out))}")
    return done.exit_code


def _check(score: float | None, one_name: float | None, batch: int, every: float) -> None:
    if score is not None and not 0 <= score <= 1:
        raise ConfigError("SCORE", f"the score is {score}", fix="give one in 0..1")
    if one_name is not None and not 0 <= one_name <= 1:
        raise ConfigError("ONE_NAME", f"the overlap one_name is {one_name}", fix="give an IoU in 0..1, such as 0.7")
    if batch < 1:
        raise ConfigError("BATCH", f"the batch is {batch}", fix="give 1 or more")
    if not 0 <= every < float("inf"):
        raise ConfigError("EVERY", f"the time between frames is {every} s", fix="give seconds, as in --every 1.0")


def _readable(model: Model, photos: Sequence[Photo], every: float, findings: Findings) -> Iterator[_Shown]:
    """Each photo and frame that can be read; the others are noted."""
    for photo in photos:
        try:
            if photo.is_video:
                for frame in frames(photo.path, every):
                    yield _frame(photo, frame, model)
            else:
                yield _Shown(photo.path, photo.name, photo.picture, model.load(photo.path), None)
        except DataError as error:
            _note(findings, photo.name, photo.path, error)


def _frame(photo: Photo, frame: Frame, model: Model) -> _Shown:
    name, picture = f"{photo.name}#t={frame.time:.3f}", f"{photo.picture}_{frame.stamp}.jpg"
    return _Shown(photo.path, name, picture, model.load(frame.pixels), frame.pixels)


def _search_group(
    ask: Callable[[list[Loaded]], list[Detections]], group: Sequence[_Shown], out: Path, findings: Findings
) -> None:
    """Photos of one batch; where that fails each one alone, so that a failure is told of the photo that it is of."""
    if not group:
        return
    try:
        found = ask([shown.loaded for shown in group])
    except DataError as error:
        if len(group) == 1:
            _note(findings, group[0].name, group[0].path, error)
            return
        for shown in group:
            _search_group(ask, [shown], out, findings)
        return
    for shown, one in zip(group, found, strict=True):
        _keep(shown, one, out, findings)


def _keep(shown: _Shown, found: Detections, out: Path, findings: Findings) -> None:
    try:
        pixels = decode(shown.path)[0] if shown.pixels is None else shown.pixels
    except DataError as error:  # it was whole a moment ago
        _note(findings, shown.name, shown.path, error)
        return
    picture = draw(pixels, found.boxes, found.labels, found.names, found.scores)
    picture.thumbnail((JPEG_SIDE, JPEG_SIDE))  # changes larger ones only
    with replacing(out / shown.picture, "the picture", fix=FIX) as part:
        picture.save(part, "JPEG", quality=92, comment=PROGRAM)
    shot = read_shot(shown.path) if shown.pixels is None else Shot()
    size = (pixels.shape[0], pixels.shape[1])
    findings.entries.append(Entry(shown.path, shown.name, shown.picture, size, found, shot))


def _note(findings: Findings, name: str, path: Path, error: DataError) -> None:
    findings.failed.append({"file_name": name, "path": printable(path), "error": printable(str(error))})


def _progress(shown: Iterator[_Shown]) -> Iterator[_Shown]:
    """Counts on stderr where that is a terminal; tqdm is no dependency of the runtime."""
    visible = sys.stderr.isatty()
    for number, one in enumerate(shown, 1):
        if visible:
            print(f"\rdetect: {number} images", end="", file=sys.stderr, flush=True)
        yield one
    if visible:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
