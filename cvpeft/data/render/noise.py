"""Noise that repeats without a seam, and the few curves that every other part draws with."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["fractal", "slopes", "smoothstep", "to_uint8", "wrap_blur"]


def fractal(rng: np.random.Generator, size: int, cells: int, octaves: int = 4, gain: float = 0.55) -> np.ndarray:
    """(size, size) float32 noise of mean 0 and deviation 1 that tiles; `cells` bumps across in the first octave.

    size must be divisible by cells * 2 ** (octaves - 1): otherwise the seam would show.
    """
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        count = cells << octave
        if count > size:
            break
        total += gain**octave * _octave(rng, size, count)
    total -= total.mean()
    return total / (total.std() + 1e-6)


def _octave(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """One octave: random values on a wrapped grid, enlarged by cubic interpolation."""
    grid = rng.random((count, count), dtype=np.float32) - 0.5
    if count == size:
        return grid
    step = size // count
    padded = cv2.copyMakeBorder(grid, 2, 2, 2, 2, cv2.BORDER_WRAP)
    large = cv2.resize(padded, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    return large[2 * step : 2 * step + size, 2 * step : 2 * step + size]


def wrap_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur that treats the image as a tile."""
    pad = int(3 * sigma) + 1
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_WRAP)
    return cv2.GaussianBlur(padded, (0, 0), sigma)[pad:-pad, pad:-pad]


def slopes(height: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """(H, W, 2) float32 slopes of a tiled height map along columns and rows, `strength` per pixel step."""
    gx = np.roll(height, -1, 1) - np.roll(height, 1, 1)
    gy = np.roll(height, -1, 0) - np.roll(height, 1, 0)
    return np.dstack([gx, gy]) * np.float32(0.5 * strength)


def smoothstep(x: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one. Shapes broadcast."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round and clip to 0..255."""
    return np.clip(image + 0.5, 0.0, 255.0).astype(np.uint8)
