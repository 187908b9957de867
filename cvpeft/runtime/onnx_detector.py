"""An exported file -> detections in pixels of the photo. Needs numpy, Pillow and onnxruntime, no torch.

    detector = Detector("model.onnx")
    for found in detector(["street.jpg"]):
        print(found.names, found.scores, found.boxes)

Letters: B images, N boxes, H and W the network input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from cvpeft.errors import DataError
from cvpeft.runtime.adapters import CityAdapter, read_adapter
from cvpeft.runtime.image import MAX_PIXELS, Letterbox, Size, decode
from cvpeft.runtime.nms import suppress
from cvpeft.runtime.tiles import Canvas, Found, TiledPhoto, join

__all__ = ["Detections", "Detector"]

OUTPUTS = ("boxes", "scores", "labels", "num")
NEEDED = (
    "classes", "input_size", "input_dtype", "score_thresholds", "resize", "pad_value", "color_order", "input_range",
    "nms",
)  # fmt: skip
LAYOUTS = {"float32": "NCHW", "uint8": "NHWC"}  # of the input, by its type
FEED = {
    "resize": "letterbox",
    "pad_value": 114,
    "color_order": "RGB",
    "input_range": [0, 255],
}  # what this program can feed


@dataclass(frozen=True)
class Detections:
    """What was found in one image, falling in score."""

    boxes: (
        np.ndarray
    )  # (N, 4) float32 x1 y1 x2 y2 in pixels of the upright photo (of the network input from `Detector.raw`)
    scores: np.ndarray  # (N,) float32
    labels: np.ndarray  # (N,) int64, 1..number of classes
    names: tuple[str, ...]


class Detector:
    """One exported file, ready to run on the CPU.

    classes: names in order; label 1 is the first. size: (height, width) of the network input. canvas: size that photos
    are letterboxed into and seen in overlapping tiles of `size`; None: a whole photo in one input. thresholds: class
    name -> score from which a box counts. metadata: everything that the file says of itself. Raises DataError for a
    file that cannot be read or that `cvpeft export` did not write.
    """

    def __init__(
        self, path: str | Path, *, threads: int = 0, canvas: Canvas | None = None, adapter: str | Path | None = None
    ) -> None:
        """threads: of onnxruntime; 0: as many as cores. canvas: None: the one that the model was trained with, if any;
        "photo": each photo's own size, nothing scaled down, for orthophotos. adapter: see `use`."""
        self.path = Path(path)
        self._session = _open(self.path, threads)
        self.metadata = _metadata(self._session, self.path)
        self.classes: tuple[str, ...] = tuple(self.metadata["classes"])
        height, width = self.metadata["input_size"]
        self.size: Size = (height, width)
        trained = self.metadata.get("canvas")
        self.canvas: Canvas | None = canvas or (None if trained is None else (trained[0], trained[1]))
        self._takes_bytes = self.metadata["input_dtype"] == "uint8"
        self._nms = self.metadata["nms"]
        self.thresholds: dict[str, float] = {}
        self._with_adapter: Any = None
        self._adapter: CityAdapter | None = None  # kept, as ONNX Runtime holds no reference of its own
        self.use(adapter)

    def __call__(
        self, images: Sequence[str | Path | np.ndarray], *, threshold: float | None = None
    ) -> list[Detections]:
        """Detect in photos, one after the other.

        images: files, or arrays (h, w, 3) uint8 RGB. threshold: lowest score for every class; None: the file's own.
        """
        return [self.detect(*_pixels(image, self.least), threshold=threshold) for image in images]

    @property
    def least(self) -> Size | None:
        """(height, width) that a decoded photo must keep for `detect`; None: its full size."""
        return None if self.canvas == "photo" else self.canvas or self.size

    def detect(self, pixels: np.ndarray, source: Size, *, threshold: float | None = None) -> Detections:
        """Detect in one decoded photo; boxes are in pixels of its full size.

        pixels (h, w, 3) uint8 RGB, perhaps at a fraction of the full (height, width) `source`, see `least`.
        """
        photo = TiledPhoto.of(source, self.size, self.canvas)
        found = join(
            [self._in_photo(*tile) for tile in zip(photo.cut(pixels), photo.places, strict=True)], photo.places
        )
        names = tuple(self.classes[label - 1] for label in found.labels)
        least = [self.thresholds[name] if threshold is None else threshold for name in names]
        keep = np.flatnonzero(found.scores >= np.asarray(least, dtype=np.float32))
        boxes = found.boxes[keep].astype(np.float32)
        return Detections(boxes, found.scores[keep], found.labels[keep], tuple(names[i] for i in keep))

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
        base = str(self.metadata.get("base_sha256"))
        return read_adapter(adapter, base=base, classes=self.classes, shapes=shapes)

    def raw(self, images: np.ndarray) -> list[Detections]:
        """All detections of letterboxed images (B, 3, H, W) RGB 0..255, in pixels of the network input."""
        given = np.ascontiguousarray(images.transpose(0, 2, 3, 1) if self._takes_bytes else images)
        dtype = np.uint8 if self._takes_bytes else np.float32
        outputs = self._session.run(OUTPUTS, {"images": given.astype(dtype, copy=False)}, self._with_adapter)
        found = []
        for boxes, scores, labels, _ in zip(*outputs, strict=True):
            rows = np.flatnonzero(labels)  # padding has label 0, and so has what a one-stage head takes for background
            if not self._nms["inside"]:
                limit, iou = self._nms["max_detections"], self._nms["iou"]
                rows = rows[suppress(boxes[rows], scores[rows], labels[rows], iou)][:limit]
            names = tuple(self.classes[label - 1] for label in labels[rows])
            found.append(Detections(boxes[rows], scores[rows], labels[rows], names))
        return found

    def _in_photo(self, tile: np.ndarray, place: Letterbox) -> Found:
        found = self.raw(tile.transpose(2, 0, 1)[None])[0]
        return Found(place.inverse(found.boxes), found.scores, found.labels)


def _pixels(image: str | Path | np.ndarray, at_least: Size | None) -> tuple[np.ndarray, Size]:
    if not isinstance(image, np.ndarray):
        return decode(Path(image), at_least=at_least)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        what = f"an image array is {image.dtype} of shape {image.shape}, but must be uint8 RGB (height, width, 3)"
        raise DataError("IMAGE", what)
    return image, (image.shape[0], image.shape[1])


def _open(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise DataError("MODEL", "no such file", where=str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is wrong is told once, by the exception
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise DataError("MODEL", f"ONNX Runtime cannot read it: {reason}", where=str(path)) from error


def _metadata(session: Any, path: Path) -> dict[str, Any]:
    """The file's own description, checked; DataError tells everything that is wrong with it."""
    try:
        found = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    except (json.JSONDecodeError, RecursionError) as error:
        raise _foreign(path, "its metadata is not JSON") from error
    missing = [key for key in NEEDED if key not in found]
    if missing:
        raise _foreign(path, f"its metadata lacks {', '.join(missing)}")
    faults = [f"{key} is {found[key]!r}, not {value!r}" for key, value in FEED.items() if found[key] != value]
    classes, size, thresholds = found["classes"], found["input_size"], found["score_thresholds"]
    if not _is_canvas(found.get("canvas"), size):
        faults.append(f"canvas is {found['canvas']!r}, no height and width of at least input_size")
    if not _names(classes):
        faults.append(f"classes is {classes!r}, not a list of names")
    elif not isinstance(thresholds, dict) or not all(_number(thresholds.get(name)) for name in classes):
        faults.append(f"score_thresholds is {thresholds!r}, without a number for each class")
    if not _is_nms(found["nms"]):
        faults.append(f"nms is {found['nms']!r}, without inside, iou and max_detections")
    if LAYOUTS.get(str(found["input_dtype"])) != found.get("input_layout"):
        faults.append(f"input_dtype is {found['input_dtype']!r} and input_layout {found.get('input_layout')!r}")
    sides = size if isinstance(size, list) else []
    if list(session.get_inputs()[0].shape[1:]) != ([*sides, 3] if found["input_dtype"] == "uint8" else [3, *sides]):
        faults.append(f"input_size is {size!r}, but the input's shape is {session.get_inputs()[0].shape}")
    if {output.name for output in session.get_outputs()} != set(OUTPUTS):
        faults.append(f"its outputs are {', '.join(output.name for output in session.get_outputs())}")
    if faults:
        raise _foreign(path, "; ".join(faults))
    return found


def _names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _is_canvas(value: Any, size: Any) -> bool:
    """None, or two whole numbers that hold a network input and are no bomb."""
    if value is None or not (isinstance(size, list) and all(_number(s) for s in size)):  # told of on its own
        return value is None or isinstance(value, list)
    sides = isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)
    return sides and math.prod(value) <= MAX_PIXELS and all(side >= s for side, s in zip(value, size, strict=False))


def _is_nms(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("inside")) is not bool:
        return False
    return type(value.get("max_detections")) is int and _number(value.get("iou")) and 0 <= value["iou"] <= 1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _foreign(path: Path, what: str) -> DataError:
    why = "How to feed it and what its outputs mean is not known"
    return DataError(
        "MODEL", f"not a model of `cvpeft export`: {what}", where=str(path), why=why, fix="cvpeft export RUN"
    )
