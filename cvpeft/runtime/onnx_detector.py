"""An exported file -> detections in pixels of the photo. Needs numpy, Pillow and onnxruntime, no torch.

    detector = Detector("model.onnx")
    for found in detector(["street.jpg"]):
        print(found.names, found.scores, found.boxes)

Letters: B images, N boxes, K rows that the graph gives, H and W the network input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from cvpeft.errors import DataError
from cvpeft.runtime.adapters import CityAdapter, read_adapter
from cvpeft.runtime.image import Letterbox, Size, decode
from cvpeft.runtime.metadata import OUTPUTS, read_metadata, size_fault
from cvpeft.runtime.nms import suppress
from cvpeft.runtime.onnx_file import first_line, memory_fault, open_session, too_much
from cvpeft.runtime.tiles import Canvas, Found, TiledPhoto, check_canvas, join, least_size
from cvpeft.runtime.video import Frame, frames

__all__ = ["Detections", "Detector", "Image", "Loaded", "chosen", "grouped", "load_image", "tiles_of"]


@dataclass(frozen=True)
class Detections:
    """What was found in one image, falling in score."""

    boxes: (
        np.ndarray
    )  # (N, 4) float32 x1 y1 x2 y2 in pixels of the upright photo (of the network input from `Detector.raw`)
    scores: np.ndarray  # (N,) float32
    labels: np.ndarray  # (N,) int64, 1..number of classes
    names: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """pixels: (h, w, 3) uint8 RGB, perhaps decoded at a fraction. size: the photo's full (height, width)."""

    pixels: np.ndarray
    size: Size


Image = str | Path | np.ndarray | Loaded
Tile = tuple[int, np.ndarray, Letterbox]  # which image; (H, W, 3) uint8; where it lies in the photo


class Detector:
    """One exported file, ready to run on the CPU.

    classes: names in order; label 1 is the first. size: (height, width) of the network input. canvas: size that photos
    are letterboxed into and seen in overlapping tiles of `size`; None: a whole photo in one input. thresholds: class
    name -> score from which a box counts. metadata: everything that the file says of itself. Raises DataError for a
    file that cannot be read or that `cvpeft export` did not write, ResourceError for one that asks for too much memory,
    ConfigError for a canvas that tiles cannot be cut from.
    """

    def __init__(
        self, path: str | Path, *, threads: int = 0, canvas: Canvas | None = None, adapter: str | Path | None = None
    ) -> None:
        """threads: of onnxruntime; 0: as many as cores. canvas: None: the one that the model was trained with, if any;
        "photo": each photo's own size, nothing scaled down, for orthophotos. adapter: see `use`."""
        self.path = Path(path)
        self._session = open_session(self.path, threads)
        self.metadata = read_metadata(self._session, self.path)
        self.classes: tuple[str, ...] = tuple(self.metadata["classes"])
        height, width = self.metadata["input_size"]
        self.size: Size = (height, width)
        check_canvas(canvas, self.size)
        trained = self.metadata.get("canvas")
        self.canvas: Canvas | None = canvas or (None if trained is None else (trained[0], trained[1]))
        self._takes_bytes = self.metadata["input_dtype"] == "uint8"
        self._nms = self.metadata["nms"]
        self.thresholds: dict[str, float] = {}
        self._with_adapter: Any = None
        self._adapter: CityAdapter | None = None  # kept, as ONNX Runtime holds no reference of its own
        self.use(adapter)

    def use(self, adapter: str | Path | None) -> None:
        """From now on find what this city's .onnx_adapter was trained for; None: what the base file itself was.

        DataError: it cannot be read, belongs to another base, or this file has no place for adapters.
        """
        found = None if adapter is None else self._read(Path(adapter))
        options = None
        if found:
            options = onnxruntime.RunOptions()
            options.add_active_adapter(found.handle)
        self._adapter, self._with_adapter = found, options
        self.thresholds = dict(found.thresholds if found else self.metadata["score_thresholds"])

    def _read(self, adapter: Path) -> CityAdapter:
        shapes = {value.name: tuple(value.shape) for value in self._session.get_overridable_initializers()}
        if not shapes:
            what, fix = "it has no place for adapters", "use the base.onnx of `cvpeft export BASE --adapters RUN`"
            raise DataError("ADAPTER", what, where=str(self.path), fix=fix)
        return read_adapter(adapter, base=self.metadata, shapes=shapes)

    def __call__(
        self,
        images: Iterable[Image],
        *,
        threshold: float | None = None,
        one_name: float | None = None,
        batch: int = 1,
    ) -> list[Detections]:
        """Detect in photos.

        images: files, or arrays (h, w, 3) uint8 RGB. threshold: lowest score for every class; None: the file's own.
        one_name: of boxes that count and overlap by more than this IoU, whatever their classes, only the best is kept;
        None: an object may be found under several names.
        batch: network inputs that are fed at once, be they photos or tiles of one; the boxes do not depend on it.
        Raises DataError for an image that cannot be read.
        """
        photos: dict[int, list[tuple[Found, Letterbox]]] = {}
        for group in grouped(tiles_of((self.load(image) for image in images), self.size, self.canvas), batch):
            found = self.raw(np.stack([tile.transpose(2, 0, 1) for _, tile, _ in group]))
            for (number, _, place), one in zip(group, found, strict=True):
                photos.setdefault(number, []).append((_in_photo(one, place), place))
        joined = (join(*zip(*tiles, strict=True)) for tiles in photos.values())
        return [chosen(found, self.classes, self.thresholds, threshold, one_name) for found in joined]

    def load(self, image: Image) -> Loaded:
        """An image as far decoded as this model needs it; raises DataError as `decode` does."""
        return load_image(image, self.least)

    @property
    def least(self) -> Size | None:
        """(height, width) that a decoded photo must keep; None: its full size."""
        return least_size(self.size, self.canvas)

    def frames(
        self, video: str | Path, *, every: float = 1.0, threshold: float | None = None
    ) -> Iterator[tuple[Frame, Detections]]:
        """Detect in the frames of a video, `every` so many seconds; needs OpenCV. Raises as `video.frames` does."""
        for frame in frames(Path(video), every):
            yield frame, self([frame.pixels], threshold=threshold)[0]

    def raw(self, images: np.ndarray) -> list[Detections]:
        """All detections of letterboxed images (B, 3, H, W) RGB 0..255, in pixels of the network input.

        H and W are `size`, or what metadata["free_size"] allows.
        Raises DataError for other sizes, and where the graph cannot be run or gives what are no boxes and scores.
        """
        if fault := size_fault(self.metadata, images.shape[2:]):
            what = f"it {fault}, this one is {images.shape[2]} x {images.shape[3]}"
            why, fix = "another size moves boxes or cannot be run", "letterbox the image to such a size"
            raise DataError("SIZE", what, where=str(self.path), why=why, fix=fix)
        most = len(images) if self._batch is None else self._batch
        parts = [self._run(images[start : start + most]) for start in range(0, len(images), most)]
        return [self._detections(*rows) for part in parts for rows in zip(*part, strict=True)]

    @property
    def _batch(self) -> int | None:
        """How many images the graph is given at once; None: any number."""
        if self.metadata.get("precision") == "int8 dynamic":  # its ranges span a batch: neighbours would move boxes
            return 1
        first = self._session.get_inputs()[0].shape[0]
        return first if isinstance(first, int) else None

    def _run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (B, K, 4), scores (B, K) and labels (B, K) of images (B, 3, H, W)."""
        given = images.transpose(0, 2, 3, 1) if self._takes_bytes else images
        given = np.ascontiguousarray(given, dtype=np.uint8 if self._takes_bytes else np.float32)
        try:
            outputs = self._session.run(OUTPUTS, {"images": given}, self._with_adapter)
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            if too_much(error):
                raise memory_fault(self.path) from error
            raise self._broken(f"cannot be run: {first_line(error)}") from error
        boxes, scores, labels, count = map(np.asarray, outputs)
        rows = scores.shape
        if len(rows) != 2 or rows[0] != len(images) or boxes.shape != (*rows, 4) or labels.shape != rows:
            raise self._broken(f"gives boxes {boxes.shape}, scores {rows} and labels {labels.shape}")
        if (boxes.dtype.kind, scores.dtype.kind, labels.dtype.kind) != ("f", "f", "i"):
            raise self._broken(f"gives boxes {boxes.dtype}, scores {scores.dtype} and labels {labels.dtype}")
        if count.dtype.kind != "i" or count.shape != rows[:1] or not ((count >= 0) & (count <= rows[1])).all():
            raise self._broken(f"says that of {rows[1]} rows {count.tolist()} are filled"[:300])
        return boxes, scores, labels

    def _detections(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
        rows = np.flatnonzero(labels)  # padding has label 0, and so has what a one-stage head takes for background
        boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
        if not ((labels >= 0) & (labels <= len(self.classes))).all():
            raise self._broken(f"gives labels beyond its {len(self.classes)} classes")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
            raise self._broken("gives boxes or scores that are not finite, or boxes with a negative side")
        if not self._nms["inside"]:
            rows = suppress(boxes, scores, labels, self._nms["iou"])[: self._nms["max_detections"]]
            boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
        return Detections(boxes, scores, labels, tuple(self.classes[label - 1] for label in labels))

    def _broken(self, what: str) -> DataError:
        fix = "take the file from its origin again, or export the run again"
        return DataError("OUTPUT", f"the model {what}", where=str(self.path), why="no box of it can be used", fix=fix)


def chosen(
    found: Found,
    classes: Sequence[str],
    thresholds: Mapping[str, float],
    threshold: float | None,
    one_name: float | None = None,
) -> Detections:
    """Those whose score counts; threshold: the lowest for every class, None: each class's own. one_name: see
    `Detector`."""
    names = tuple(classes[label - 1] for label in found.labels)
    least = [thresholds[name] if threshold is None else threshold for name in names]
    keep = np.flatnonzero(found.scores >= np.asarray(least, dtype=np.float32))
    if one_name is not None:
        keep = keep[suppress(found.boxes[keep], found.scores[keep], np.zeros(len(keep)), one_name)]
    boxes = found.boxes[keep].astype(np.float32)
    return Detections(boxes, found.scores[keep], found.labels[keep], tuple(names[i] for i in keep))


def load_image(image: Image, at_least: Size | None) -> Loaded:
    """A file decoded, see `decode`; an array looked at."""
    if isinstance(image, Loaded):
        return image
    if not isinstance(image, np.ndarray):
        return Loaded(*decode(Path(image), at_least=at_least))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        what = f"an image array is {image.dtype} of shape {image.shape}, but must be uint8 RGB (height, width, 3)"
        raise DataError("IMAGE", what)
    return Loaded(image, (image.shape[0], image.shape[1]))


def tiles_of(images: Iterable[Loaded], size: Size, canvas: Canvas | None) -> Iterator[Tile]:
    """Every tile of every image, in order; one image is held at a time."""
    for number, image in enumerate(images):
        photo = TiledPhoto.of(image.size, size, canvas)
        for tile, place in zip(photo.cut(image.pixels), photo.places, strict=True):
            yield number, tile, place


def grouped(tiles: Iterable[Tile], count: int) -> Iterator[list[Tile]]:
    """Lists of `count` tiles; the last one may be shorter."""
    group: list[Tile] = []
    for tile in tiles:
        group.append(tile)
        if len(group) >= count:
            yield group
            group = []
    if group:
        yield group


def _in_photo(found: Detections, place: Letterbox) -> Found:
    return Found(place.inverse(found.boxes), found.scores, found.labels)
