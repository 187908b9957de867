"""The AP of an exported file, by the very code that scores a trained run, and the proof that it is the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.data.coco import CocoData
from cvpeft.data.loader import eval_loader
from cvpeft.data.splits import open_split
from cvpeft.detector.saved import LoadedRun
from cvpeft.errors import ConfigError, ParityError
from cvpeft.eval.predict import predict
from cvpeft.eval.report import Report, report
from cvpeft.runtime.image import Size
from cvpeft.runtime.onnx_detector import Detections, Detector
from cvpeft.types import Prediction

__all__ = ["as_prediction", "detector_ap", "onnx_ap", "proof_data", "same_ap", "spread"]

AP_TOLERANCE = 5e-4  # of torch and ONNX Runtime in float32


def proof_data(loaded: LoadedRun) -> tuple[str, CocoData]:
    """What an export is proven on: the run's val, else test, else train, and the split's name."""
    data = loaded.settings.data
    split = next((name for name in ("val", "test", "train") if getattr(data, name)), None)
    if split is None:
        raise ConfigError("SPLIT", "the config names no data to prove the export on", fix="give data.val=FILE.json")
    return split, open_split(data, split, loaded.classes)


def spread(data: CocoData, count: int) -> CocoData:
    """`count` images at even distances, so that every file, and so every city, has its share; all if there are less."""
    images = data.images
    chosen = [images[i * len(images) // count] for i in range(count)] if len(images) > count else images
    return CocoData(tuple(chosen), data.classes, ())


def onnx_ap(
    path: Path, data: CocoData, size: Size, canvas: Size | None = None, *, batch: int = 1, adapter: Path | None = None
) -> Report:
    """The report of an .onnx file on a data set, as `report` makes it of a trained detector, tiles included.

    size: of the file's input. canvas: see `TiledPhoto`. batch: images in one call of ONNX Runtime. adapter: see
    `Detector.use`.
    """
    return detector_ap(_OnnxModule(path, adapter), data, size, canvas, batch=batch)


def detector_ap(model: nn.Module, data: CocoData, size: Size, canvas: Size | None = None, *, batch: int = 1) -> Report:
    """The same of a detector on the CPU."""
    found = predict(model, eval_loader(data, size, batch=batch, workers=0, canvas=canvas))
    return report(data.ground_truth(), found, data.classes)


def same_ap(
    model: nn.Module,
    path: Path,
    split: str,
    data: CocoData,
    settings: schema.Settings,
    *,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """The AP of a detector and of its file, with the adapter in it, on the same images, as an entry of parity.json.

    ParityError where they are more than AP_TOLERANCE apart. Both are None where the images hold no box.
    """
    d, batch = settings.data, settings.eval.batch
    torch_ap = detector_ap(model, data, d.size, d.canvas, batch=batch)["coco"]["AP"]
    file_ap = onnx_ap(path, data, d.size, d.canvas, batch=batch, adapter=adapter)["coco"]["AP"]
    apart = None if torch_ap is None else abs(torch_ap - file_ap)
    if apart is not None and apart > AP_TOLERANCE:
        what = (
            f"on {len(data.images)} images of {split} the ONNX model has AP {file_ap:.4f}, torch {torch_ap:.4f}: "
            f"{apart:.4f} apart, where {AP_TOLERANCE:g} is allowed"
        )
        raise ParityError("AP", what, why="No model was written")
    return {
        "split": split, "images": len(data.images), "torch": torch_ap, "onnx": file_ap, "difference": apart,
        "allowed": AP_TOLERANCE,
    }  # fmt: skip


def as_prediction(found: Detections) -> Prediction:
    """The same in torch's tensors."""
    boxes, scores, labels = (torch.from_numpy(x) for x in (found.boxes, found.scores, found.labels))
    return Prediction(boxes=boxes, scores=scores, labels=labels)


class _OnnxModule(nn.Module):
    """A file in the place of a detector: images (B, 3, H, W) uint8 -> B predictions."""

    def __init__(self, path: Path, adapter: Path | None) -> None:
        super().__init__()
        self.detector = Detector(path, threads=torch.get_num_threads(), adapter=adapter)

    def forward(self, images: Tensor) -> list[Prediction]:
        return [as_prediction(found) for found in self.detector.raw(images.numpy())]
