"""The two ways in which layers meet, in place, through OpenCV: NumPy is slow where the last axis has length 3."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["mix", "scale"]

Colour = Sequence[float] | np.ndarray  # three numbers, or an image


def mix(view: np.ndarray, colour: Colour, alpha: np.ndarray) -> None:
    """view (H, W, 3) float32 becomes view * (1 - alpha) + colour * alpha; alpha (H, W) float32 0..1."""
    colour = np.asarray(colour, np.float32)
    if colour.ndim == 1:
        colour = cv2.merge([np.full(view.shape[:2], part, np.float32) for part in colour])
    alpha = np.asarray(alpha, np.float32)
    weight = cv2.merge([alpha, alpha, alpha])
    view[:] = cv2.add(view, cv2.multiply(cv2.subtract(colour, view), weight))


def scale(view: np.ndarray, factor: Colour) -> None:
    """view (H, W, 3) float32 is multiplied by an (H, W) image or by three numbers."""
    factor = np.asarray(factor, np.float32)
    if factor.ndim == 1:
        view[:] = cv2.transform(view, np.diag(factor))
    else:
        view[:] = cv2.multiply(view, cv2.merge([factor, factor, factor]))
