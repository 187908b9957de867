"""How layers meet, in place, and what else NumPy is slow at where the last axis has length 3.

OpenCV spreads a grey image over three channels, and three numbers are laid out as one row of the image: then the last
axis is a whole row long.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["four", "lay", "mix", "scale", "three"]

Colour = Sequence[float] | np.ndarray  # three numbers, or an image


def mix(view: np.ndarray, colour: Colour, alpha: np.ndarray) -> None:
    """view (H, W, 3) float32 becomes view * (1 - alpha) + colour * alpha; alpha (H, W) float32 0..1."""
    colour = np.asarray(colour, np.float32)
    flat = colour.ndim == 1
    layer = (np.tile(colour, view.shape[1]) - _rows(view)).reshape(view.shape) if flat else colour - view
    layer *= three(alpha)
    view += layer


def lay(view: np.ndarray, colour: Colour, mask: np.ndarray) -> None:
    """`mix` by an (H, W) uint8 coverage 0..255, where it is not zero."""
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return
    part, colour = (slice(y, y + h), slice(x, x + w)), np.asarray(colour, np.float32)
    mix(view[part], colour if colour.ndim == 1 else colour[part], mask[part] * np.float32(1 / 255))


def scale(view: np.ndarray, factor: Colour) -> None:
    """view (H, W, 3) float32 is multiplied by an (H, W) image or by three numbers."""
    factor = np.asarray(factor, np.float32)
    if factor.ndim == 1:
        rows = _rows(view)
        rows *= np.tile(factor, view.shape[1])
    else:
        view *= three(factor)


def three(grey: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 with (H, W) in each channel."""
    return cv2.cvtColor(np.asarray(grey, np.float32), cv2.COLOR_GRAY2RGB)


def four(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, 4) float32 of a colour and its coverage."""
    return cv2.insertChannel(np.asarray(alpha, np.float32), cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), 3)


def _rows(view: np.ndarray) -> np.ndarray:
    """(H, W * 3) window on the same memory: images and their cut-outs have whole pixels side by side."""
    return view.reshape(len(view), -1)
