"""Windows of large images as network inputs, and four of them in one, so that a step meets four times as many objects.

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
from cvpeft.runtime.image import Size, fit
from cvpeft.types import Target

__all__ = ["mosaic", "window"]


def mosaic(inputs: Sequence[tuple[Tensor, Target]], size: Size, rng: np.random.Generator) -> tuple[Tensor, Target]:
    """A network input of `size`, both sides even: windows of four images, around a box each where there is any.

    inputs: four images (3, h, w) uint8 of one size, at least half of `size`, with their targets; their windows lie side
    by side, two by two. The image id is that of the first.
    """
    canvas = inputs[0][0].new_empty(3, *size)
    half = height, width = size[0] // 2, size[1] // 2
    targets = []
    for (image, target), (down, right) in zip(inputs, ((0, 0), (0, width), (height, 0), half), strict=True):
        part, seen = window(image, target, half, rng)
        canvas[:, down : down + height, right : right + width] = part
        targets.append(seen | {"boxes": seen["boxes"] + torch.tensor((right, down, right, down))})
    return canvas, {
        "boxes": torch.cat([target["boxes"] for target in targets]),
        "labels": torch.cat([target["labels"] for target in targets]),
        "image_id": inputs[0][1]["image_id"],
    }


def window(
    image: Tensor, target: Target, size: Size, rng: np.random.Generator, *, anywhere: bool = False
) -> tuple[Tensor, Target]:
    """A window (3, H, W) of an image (3, h, w) at its scale, around one of its boxes where it has any, or anywhere.

    Boxes are clipped to what is seen; those that keep too little of themselves are dropped.
    """
    boxes = target["boxes"].double().numpy()  # (N, 4)
    top, left = _place(boxes[:0] if anywhere else boxes, image.shape[1:], size, rng)
    seen, labels = keep(boxes - (left, top, left, top), target["labels"].numpy(), fit(size, size))
    return image[:, top : top + size[0], left : left + size[1]], {
        "boxes": torch.from_numpy(seen.astype(np.float32)),
        "labels": torch.from_numpy(labels),
        "image_id": target["image_id"],
    }


def _place(boxes: np.ndarray, size: Sequence[int], part: Size, rng: np.random.Generator) -> tuple[int, int]:
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
