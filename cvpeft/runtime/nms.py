"""Non-maximum suppression in numpy: for files that leave it to the program that runs them, and across classes."""

from __future__ import annotations

import numpy as np

__all__ = ["suppress"]


def suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> np.ndarray:
    """Rows that survive, best first: no box overlaps a better one of its class by more than `iou`.

    boxes (N, 4) xyxy, scores (N,), labels (N,).
    """
    rows = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    while len(rows):
        best, rows = rows[0], rows[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rows, :2])
        high = np.minimum(boxes[best, 2:], boxes[rows, 2:])
        both = np.clip(high - low, 0, None).prod(1)
        # as a product, so that boxes without an area divide by nothing
        rows = rows[(both <= iou * (areas[best] + areas[rows] - both)) | (labels[rows] != labels[best])]
    return np.array(kept, np.int64)
