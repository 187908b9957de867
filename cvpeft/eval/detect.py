"""A trained run on photographs: the search of the runtime with a model in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvpeft.data.loader import Batch
from cvpeft.detector.device import pick_device
from cvpeft.detector.saved import LoadedRun, load_run
from cvpeft.errors import ConfigError
from cvpeft.eval.predict import predict
from cvpeft.eval.report import thresholds
from cvpeft.runtime.onnx_detector import (
    Detections,
    Detector,
    Image,
    Loaded,
    Tile,
    chosen,
    grouped,
    load_image,
    tiles_of,
)
from cvpeft.runtime.photos import printable
from cvpeft.runtime.search import DetectionRun, search
from cvpeft.runtime.tiles import Canvas, Found, check_canvas, least_size
from cvpeft.types import Target

__all__ = ["RunDetector", "detect_images", "open_detector"]


def detect_images(
    source: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    canvas: Canvas | None = None,
    score: float | None = None,
    one_name: float | None = None,
    batch: int = 1,
    every: float = 1.0,
) -> DetectionRun:
    """Detect in photographs and videos, and write what was found into `out`, see `runtime.search.search`.

    source: a run folder (torch) or an .onnx file (ONNX Runtime). overrides: `key=value` for the config of a run.
    canvas: photos are seen in tiles, see `Detector`. The others, and what is raised: see there.
    """
    name = printable(source)
    return search(
        lambda: open_detector(source, overrides, canvas=canvas),
        name, images, out, score=score, one_name=one_name, batch=batch, every=every,
    )  # fmt: skip


class RunDetector:
    """A trained run with the interface of `Detector`; its boxes are those of the evaluation."""

    def __init__(self, run: LoadedRun, canvas: Canvas | None = None) -> None:
        self.device = pick_device(run.settings.train.device)
        self.model = run.model.to(self.device)
        self.precision = run.settings.eval.precision
        check_canvas(canvas, run.settings.data.size)
        self.classes, self.size, self.canvas = run.classes, run.settings.data.size, canvas or run.settings.data.canvas
        self.thresholds = thresholds(run.meta)

    def load(self, image: Image) -> Loaded:
        """An image as far decoded as this model needs it; raises DataError as `decode` does."""
        return load_image(image, least_size(self.size, self.canvas))

    def __call__(
        self,
        images: Sequence[Image],
        *,
        threshold: float | None = None,
        one_name: float | None = None,
        batch: int = 1,
    ) -> list[Detections]:
        """Detect in photographs; threshold: lowest score for every class, None: its own. batch: inputs fed at once.
        one_name: see `Detector`."""
        tiles = tiles_of((self.load(image) for image in images), self.size, self.canvas)
        batches = (_batch(group) for group in grouped(tiles, batch))
        rows = predict(self.model, batches, device=self.device, precision=self.precision, progress=False)
        found: list[list[dict[str, Any]]] = [[] for _ in images]
        for row in rows:
            found[row["image_id"]].append(row)
        return [chosen(_found(rows), self.classes, self.thresholds, threshold, one_name) for rows in found]


def _batch(group: Sequence[Tile]) -> Batch:
    tensor = torch.from_numpy(np.stack([tile.transpose(2, 0, 1) for _, tile, _ in group]))  # (B, 3, H, W)
    targets: list[Target] = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": number}
        for number, _, _ in group
    ]
    return Batch(tensor, targets, [place for _, _, place in group], [""] * len(group))


def _found(rows: Sequence[Mapping[str, Any]]) -> Found:
    """COCO results of one photo -> its boxes, x y w h -> x1 y1 x2 y2."""
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([row["score"] for row in rows], np.float32)
    return Found(boxes, scores, np.array([row["category_id"] for row in rows], np.int64))


def open_detector(
    source: Path, overrides: Sequence[str] = (), *, canvas: Canvas | None = None
) -> RunDetector | Detector:
    """The model of a run folder or of an .onnx file. canvas: see `Detector`."""
    if source.is_dir():
        return RunDetector(load_run(source, overrides), canvas)
    if overrides:
        raise ConfigError("SOURCE", f"{source} has no config that {overrides[0]} could change", fix="leave it out")
    return Detector(source, canvas=canvas)
