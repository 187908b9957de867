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
    in pixels of the upright source image, clipped to it).
    """
    results: list[dict[str, Any]] = []
    with _inference(model, device, precision):
        for batch in tqdm(loader, desc="detect", unit="batch", leave=False, disable=None if progress else True):
            predictions = model(batch.images.to(device, non_blocking=True))  # (B, 3, H, W) -> B predictions
            for prediction, target, letterbox in zip(predictions, batch.targets, batch.letterboxes, strict=True):
                results += _coco_results(prediction, target["image_id"], letterbox)
    return results


def latency(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    warm_up: int = 3,
) -> dict[str, Any]:
    """Time the model on uint8 images (3, H, W), one by one; decoding and letterboxing are not timed.

    warm_up: untimed runs on the first image, which pay for lazy set-up.
    Returns median_ms and p90_ms per image (None without images), how many images were timed, the threads that torch may
    use, device and precision.
    """
    singles = [image[None].to(device) for image in images]  # (1, 3, H, W) each
    with _inference(model, device, precision):
        for image in singles[:1] * warm_up:
            model(image)
        times = [_milliseconds(model, image) for image in singles]
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


def _coco_results(prediction: Prediction, image_id: int, letterbox: Letterbox) -> list[dict[str, Any]]:
    network = prediction["boxes"].double().cpu().numpy()  # (N, 4) xyxy; float64, so that the way back adds no rounding
    boxes = np.asarray(letterbox.inverse(network), dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]  # xyxy -> xywh
    labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
    return [
        {"image_id": int(image_id), "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes.tolist(), scores, strict=True)
    ]


def _milliseconds(model: nn.Module, image: Tensor) -> float:
    _finish(image.device)
    start = time.perf_counter()
    model(image)
    _finish(image.device)
    return (time.perf_counter() - start) * 1000


def _finish(device: torch.device) -> None:
    """A GPU runs behind Python: wait for it, else only the launch is timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
