"""Photographs and a model -> pictures with boxes and one json of what was found; nothing of the user's is touched."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cvpeft import __version__
from cvpeft.data.loader import Batch
from cvpeft.detector.device import pick_device
from cvpeft.detector.saved import LoadedRun, load_run
from cvpeft.errors import ConfigError, DataError
from cvpeft.eval.predict import predict
from cvpeft.eval.report import DEFAULT_THRESHOLD
from cvpeft.files import replacing, write_whole
from cvpeft.runtime.draw import draw
from cvpeft.runtime.image import Letterbox, decode
from cvpeft.runtime.onnx_detector import Detections, Detector
from cvpeft.runtime.tiles import Canvas, TiledPhoto
from cvpeft.types import Target

__all__ = ["DetectionRun", "Photo", "RunDetector", "detect_images", "find_photos", "open_detector"]

RESULTS = "predictions.json"
COCO_RESULTS = "coco_results.json"  # the list that pycocotools' loadRes reads
PROGRAM = "cvpeft predict"  # the mark by which a later run knows its own files
FIX = "free disk space, or choose another folder for --out"
# What cameras and phones write. The decoder reads some of it and says of the rest what it is; nothing is passed over.
PHOTOS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".gif", ".jp2",
)  # fmt: skip


@dataclass(frozen=True)
class DetectionRun:
    """What was done. images: that were searched; boxes: that were found; failed: a sentence for each unreadable one."""

    out: Path
    images: int
    boxes: int
    failed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return DataError.exit_code if self.failed else 0


@dataclass(frozen=True)
class Photo:
    """path: where it lies. name: relative to the folder that was asked for. picture: name of the drawn one."""

    path: Path
    name: str
    picture: str


def detect_images(
    source: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    score: float | None = None,
    overrides: Sequence[str] = (),
    canvas: Canvas | None = None,
) -> DetectionRun:
    """Detect in photographs and write out/NAME.jpg, boxes drawn, out/predictions.json and out/coco_results.json.

    source: a run folder (torch) or an .onnx file (ONNX Runtime). images: see `find_photos`.
    score: lowest score that counts, for all classes; None: each class's own, of the run or the file.
    overrides: `key=value` for the config of a run. canvas: photos are seen in tiles, see `Detector`.
    The first json is a COCO file whose annotations have a "score"; it lists what could not be read under "failed". The
    second is the list of results alone, with the same image ids. Files of an earlier call are replaced.
    DataError: nothing to read. ConfigError: a file in `out` that is not of an earlier call would be overwritten.
    """
    if score is not None and not 0 <= score <= 1:
        raise ConfigError("SCORE", f"the score is {score}", fix="give one in 0..1")
    photos = find_photos(images)
    _check_free(out, photos)
    detector = open_detector(source, overrides, canvas=canvas)
    content = _header(source, detector, score)
    failed: list[str] = []
    for photo in tqdm(photos, desc="detect", unit="image", leave=False, disable=None):
        try:
            found = detector([photo.path], threshold=score)[0]
            size = _draw(photo, found, out)
        except DataError as error:
            failed.append(str(error))
            content["failed"].append({"file_name": photo.name, "path": str(photo.path), "error": str(error)})
        else:
            _add(content, photo, found, size)
    write_whole(out / RESULTS, json.dumps(content, indent=1, ensure_ascii=False), fix=FIX)
    write_whole(out / COCO_RESULTS, json.dumps(_results(content["annotations"]), indent=1), fix=FIX)
    return DetectionRun(out, len(content["images"]), len(content["annotations"]), tuple(failed))


# Which photographs, under which names


def find_photos(images: Sequence[str | Path]) -> list[Photo]:
    """Every photograph once, in the order of the arguments and sorted within each.

    images: files, folders (searched through; hidden ones and other kinds of file left out), or patterns with *, ? and
    **. In folders and patterns, pictures that an earlier call has drawn are left out. Equal names are kept apart:
    street.jpg, street-2.jpg. Raises DataError with all arguments that lead to no photograph.
    """
    faults: list[str] = []
    found: dict[Path, str] = {}
    for argument in images:
        photos = list(_named_by(argument))
        if not photos:
            faults.append(f"{argument} ({_nothing(str(argument))})")
        for path, name in photos:
            found.setdefault(path.resolve(), name)
    if faults or not found:
        what = "; ".join(faults) or "no image is named"
        raise DataError("IMAGES", f"there is nothing to detect on: {what}", fix="name image files, folders or patterns")
    taken: set[str] = set()
    return [Photo(path, name, _free_name(name, taken)) for path, name in found.items()]


def _named_by(argument: str | Path) -> Iterator[tuple[Path, str]]:
    """Path and name of each photograph that one argument stands for."""
    path = Path(argument)
    if path.is_file():
        yield path, path.name
        return
    matches = [path] if path.is_dir() else [Path(match) for match in sorted(glob.glob(str(argument), recursive=True))]
    for match in matches:
        if match.is_dir():
            for photo in _photos_below(match):
                yield photo, photo.relative_to(match).as_posix()
        elif _is_photo(match):
            yield match, match.name


def _photos_below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (file for name in sorted(files) if _is_photo(file := Path(place, name)))


def _is_photo(file: Path) -> bool:
    return file.suffix.lower() in PHOTOS and file.name[0] != "." and not _is_drawn(file)


def _nothing(argument: str) -> str:
    if Path(argument).is_dir():
        return "no photograph in this folder"
    return "the pattern matches no photograph" if glob.has_magic(argument) else "no such file or folder"


def _free_name(name: str, taken: set[str]) -> str:
    """NAME.jpg, or NAME-2.jpg and so on; names that differ in case only are one file on some systems."""
    stem, number = name.removesuffix(Path(name).suffix), 1
    while (free := f"{stem}{f'-{number}' if number > 1 else ''}.jpg").casefold() in taken:
        number += 1
    taken.add(free.casefold())
    return free


# What may be written


def _check_free(out: Path, photos: Sequence[Photo]) -> None:
    """ConfigError where a file would be lost that no earlier call has written."""
    sources = {photo.path for photo in photos}
    targets = [out / photo.picture for photo in photos]
    foreign = [file for file in targets if file.exists() and (file.resolve() in sources or not _is_drawn(file))]
    if not _is_result(out / RESULTS):
        foreign += [file for file in (out / RESULTS, out / COCO_RESULTS) if file.exists()]
    if foreign:
        names = ", ".join(map(str, foreign[:5])) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ConfigError("OUT", f"{names} would be overwritten", where=str(out), fix="choose another folder for --out")


def _is_drawn(file: Path) -> bool:
    """Whether a call of this program made the picture."""
    if file.suffix != ".jpg":
        return False
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            return image.info.get("comment") == PROGRAM.encode()
    except Exception:  # damaged bytes raise errors of many kinds; the decoder will tell of them
        return False


def _is_result(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["info"]["program"] == PROGRAM)
    except (OSError, ValueError, TypeError, KeyError):
        return False


# Models


class RunDetector:
    """A trained run with the interface of `Detector`; its boxes are those of the evaluation."""

    def __init__(self, run: LoadedRun, canvas: Canvas | None = None) -> None:
        self.device = pick_device(run.settings.train.device)
        self.model = run.model.to(self.device)
        self.precision = run.settings.eval.precision
        self.classes, self.size, self.canvas = run.classes, run.settings.data.size, canvas or run.settings.data.canvas
        given: Mapping[str, float] = run.meta.get("thresholds") or {}
        self.thresholds = {name: given.get(name, DEFAULT_THRESHOLD) for name in run.classes}

    def __call__(self, images: Sequence[Path], *, threshold: float | None = None) -> list[Detections]:
        """Detect in photographs, one after the other; threshold: lowest score for every class, None: its own."""
        return [self._detect(image, threshold) for image in images]

    def _detect(self, image: Path, threshold: float | None) -> Detections:
        pixels, full = decode(image, at_least=None if self.canvas == "photo" else self.canvas or self.size)
        photo = TiledPhoto.of(full, self.size, self.canvas)
        batches = (_batch(tile, place) for tile, place in zip(photo.cut(pixels), photo.places, strict=True))
        found = predict(self.model, batches, device=self.device, precision=self.precision, progress=False)
        names = tuple(self.classes[row["category_id"] - 1] for row in found)
        least = [self.thresholds[name] if threshold is None else threshold for name in names]
        scores = np.array([row["score"] for row in found], np.float32)
        keep = np.flatnonzero(scores >= np.asarray(least, np.float32))
        boxes = np.array([row["bbox"] for row in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # x y w h -> x1 y1 x2 y2
        labels = np.array([row["category_id"] for row in found], np.int64)
        return Detections(boxes[keep].astype(np.float32), scores[keep], labels[keep], tuple(names[i] for i in keep))


def _batch(tile: np.ndarray, place: Letterbox) -> Batch:
    tensor = torch.from_numpy(tile.transpose(2, 0, 1).copy())[None]  # (H, W, 3) -> (1, 3, H, W)
    nothing: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 0}
    return Batch(tensor, [nothing], [place], [""])


def open_detector(
    source: Path, overrides: Sequence[str] = (), *, canvas: Canvas | None = None
) -> RunDetector | Detector:
    """The model of a run folder or of an .onnx file. canvas: see `Detector`."""
    if source.is_dir():
        return RunDetector(load_run(source, overrides), canvas)
    if overrides:
        raise ConfigError("SOURCE", f"{source} has no config that {overrides[0]} could change", fix="leave it out")
    return Detector(source, canvas=canvas)


# What is written


def _draw(photo: Photo, found: Detections, out: Path) -> tuple[int, int]:
    """Write the picture and return its (height, width)."""
    pixels, size = decode(photo.path)
    picture = draw(pixels, found.boxes, found.labels, found.names, found.scores)
    with replacing(out / photo.picture, "the picture", fix=FIX) as part:
        picture.save(part, "JPEG", quality=92, comment=PROGRAM)
    return size


def _header(source: Path, detector: RunDetector | Detector, score: float | None) -> dict[str, Any]:
    thresholds = {name: detector.thresholds[name] if score is None else score for name in detector.classes}
    return {
        "info": {"program": PROGRAM, "version": __version__, "model": str(source), "thresholds": thresholds},
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in enumerate(detector.classes, 1)],
        "failed": [],
    }


def _add(content: dict[str, Any], photo: Photo, found: Detections, size: tuple[int, int]) -> None:
    number = len(content["images"]) + 1
    content["images"].append({
        "id": number, "file_name": photo.name, "height": size[0], "width": size[1], "path": str(photo.path),
        "picture": photo.picture,
    })  # fmt: skip
    for (x1, y1, x2, y2), label, score in zip(found.boxes.tolist(), found.labels, found.scores, strict=True):
        content["annotations"].append({
            "id": len(content["annotations"]) + 1, "image_id": number, "category_id": int(label),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "score": float(score),
        })  # fmt: skip


def _results(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in annotations]
