"""From network inputs to COCO results in source pixels, and the time that it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cvpeft.data.loader import dead_workers_told
from cvpeft.runtime.tiles import Found, join

if TYPE_CHECKING:
    from cvpeft.data.loader import Batch
    from cvpeft.runtime.image import Letterbox
    from cvpeft.types import Prediction

__all__ = ["latency", "predict"]


def predict(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Detect on every image of the loader; the model's train or eval mode is put back afterwards.

    model: already on `device`; takes uint8 images (B, 3, H, W) and, in eval mode, returns one Prediction per image.
    precision: "fp32" or "bf16" (autocast).
    progress: a bar on stderr, where that is a terminal.
    Returns COCO results, image by image: image_id, category_id (the label, 1..K), score and bbox (x, y, width, height
    in pixels of the upright source image, clipped to it). The tiles of an image give one list, see `join`.
    ResourceError: a loader process died, whatever was being computed meanwhile.
    """
    found: dict[int, list[tuple[Found, Letterbox]]] = {}
    with _inference(model, device, precision), dead_workers_told():
        for batch in tqdm(loader, desc="detect", unit="batch", leave=False, disable=None if progress else True):
            predictions = model(batch.images.to(device, non_blocking=True))  # (B, 3, H, W) -> B predictions
            for prediction, target, place in zip(predictions, batch.targets, batch.letterboxes, strict=True):
                found.setdefault(target["image_id"], []).append((_in_photo(prediction, place), place))
    return [
        row for image_id, tiles in found.items() for row in _coco_results(image_id, join(*zip(*tiles, strict=True)))
    ]


def latency(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    warm_up: int = 3,
) -> dict[str, Any]:
    """Time the model on photos, one by one; decoding and letterboxing are not timed.

    images: network inputs (T, 3, H, W) uint8 of each photo; its T tiles go through the model one after the other.
    warm_up: untimed runs on the first photo, which pay for lazy set-up.
    Returns median_ms and p90_ms per photo (None without one), how many images were timed, the threads that torch may
    use, device and precision.
    """
    photos = [tiles.to(device) for tiles in images]
    with _inference(model, device, precision):
        for tiles in photos[:1] * warm_up:
            _milliseconds(model, tiles)
        times = [_milliseconds(model, tiles) for tiles in photos]
    return {
        "median_ms": float(np.median(times)) if times else None,
        "p90_ms": float(np.percentile(times, 90)) if times else None,
        "images": len(times),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": precision,
    }


@contextmanager
def _inference(model: nn.Module, device: str | torch.device, precision: str) -> Iterator[None]:
    """Eval mode without gradients. Not inference_mode: what a module caches in it could not be trained with later."""
    modes = [(module, module.training) for module in model.modules()]  # one by one: frozen parts stay in eval mode
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _in_photo(prediction: Prediction, place: Letterbox) -> Found:
    network = prediction["boxes"].double().cpu().numpy()  # (N, 4) xyxy; float64, so that the way back adds no rounding
    return Found(place.inverse(network), prediction["scores"].float().cpu().numpy(), prediction["labels"].cpu().numpy())


def _coco_results(image_id: int, found: Found) -> list[dict[str, Any]]:
    corners, sides = found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]  # xyxy -> xywh
    boxes = np.concatenate((corners, sides), 1).tolist()
    return [
        {"image_id": int(image_id), "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(found.labels.tolist(), boxes, found.scores.tolist(), strict=True)
    ]


def _milliseconds(model: nn.Module, tiles: Tensor) -> float:
    """tiles: (T, 3, H, W) of one photo."""
    _finish(tiles.device)
    start = time.perf_counter()
    for tile in tiles.split(1):
        model(tile)
    _finish(tiles.device)
    return (time.perf_counter() - start) * 1000


def _finish(device: torch.device) -> None:
    """A GPU runs behind Python: wait for it, else only the launch is timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
