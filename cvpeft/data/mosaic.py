"""Parts of four images in one network input, so that a step meets four times as many small objects.

After the mosaic of Bochkovskiy et al. 2020 (YOLOv4, arXiv 2004.10934), but at the scale of a whole image: an object of
ten pixels is learnt at ten pixels, as it will have to be found.
Letters: H height, W width, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cvpeft.data.transforms import keep
from cvpeft.runtime.image import fit
from cvpeft.types import Target

__all__ = ["mosaic"]


def mosaic(inputs: Sequence[tuple[Tensor, Target]], rng: np.random.Generator) -> tuple[Tensor, Target]:
    """A quarter of each of four network inputs, around one of its boxes where it has any; side by side, two by two.

    inputs: four images (3, H, W) uint8 of one size, H and W even, with their targets. Boxes are clipped to what is
    seen; those that keep too little of themselves are dropped. The image id is that of the first.
    """
    canvas = torch.empty_like(inputs[0][0])
    half = height, width = canvas.shape[1] // 2, canvas.shape[2] // 2
    boxes, labels = list[np.ndarray](), list[np.ndarray]()
    for (image, target), (down, right) in zip(inputs, ((0, 0), (0, width), (height, 0), half), strict=True):
        own = target["boxes"].double().numpy()  # (N, 4)
        top, left = _window(own, image.shape[1:], half, rng)
        canvas[:, down : down + height, right : right + width] = image[:, top : top + height, left : left + width]
        seen, kept = keep(own - (left, top, left, top), target["labels"].numpy(), fit(half, half))
        boxes.append(np.add(seen, (right, down, right, down)))
        labels.append(kept)
    return canvas, {
        "boxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
        "labels": torch.from_numpy(np.concatenate(labels)),
        "image_id": inputs[0][1]["image_id"],
    }


def _window(boxes: np.ndarray, size: Sequence[int], part: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a part of the image: anywhere, but where there are boxes around one of them, whole if it fits."""
    held = boxes[rng.integers(len(boxes))] if len(boxes) else None
    corner = []
    for axis, (room, length) in enumerate(zip(size, part, strict=True)):
        low, high = 0.0, float(room - length)
        if held is not None:
            start, end = held[1 - axis], held[3 - axis]
            low, high = np.clip(sorted((end - length, start)), low, high)
        corner.append(round(low + (high - low) * rng.random()))
    return corner[0], corner[1]
