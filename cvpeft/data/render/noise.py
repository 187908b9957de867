"""Noise that repeats without a seam, and the few curves that every other part draws with."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = [
    "Slopes", "along", "distance", "fractal", "fraction", "slopes", "smoothstep", "sparse_blur", "to_uint8",
    "wrap_blur",
]  # fmt: skip


def fractal(rng: np.random.Generator, size: int, cells: int, octaves: int = 4, gain: float = 0.55) -> np.ndarray:
    """(size, size) float32 noise of mean 0 and deviation 1 that tiles; `cells` bumps across in the first octave.

    size must be divisible by cells * 2 ** (octaves - 1): otherwise the seam would show.
    """
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        count = cells << octave
        if count > size:
            break
        part = _octave(rng, size, count)
        part *= gain**octave
        total += part
    total -= total.mean()
    total /= total.std() + 1e-6
    return total


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


def sparse_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """cv2.GaussianBlur of an (H, W) float32 image >= 0 that is mostly zero, to the same bits.

    Only what the kernel reaches from something is worked on, in bands of rows and then of columns.
    """
    kernel = cv2.getGaussianKernel(round(8 * sigma + 1) | 1, sigma, cv2.CV_32F)  # the length that OpenCV would take
    one, reach = np.ones((1, 1), np.float32), len(kernel) // 2 + 1
    wide, whole = np.zeros_like(image), np.zeros_like(image)
    for rows in _bands(len(image), 32):
        left, right = _reached(image[rows].max(axis=0), reach)
        wide[rows, left:right] = cv2.sepFilter2D(image[rows, left:right], -1, kernel, one) if right else 0
    for columns in _bands(image.shape[1], 128):
        top, bottom = _reached(wide[:, columns].max(axis=1), reach)
        whole[top:bottom, columns] = cv2.sepFilter2D(wide[top:bottom, columns], -1, one, kernel) if bottom else 0
    return whole


def _bands(length: int, width: int) -> list[slice]:
    return [slice(start, start + width) for start in range(0, length, width)]


def _reached(line: np.ndarray, reach: int) -> tuple[int, int]:
    """Start and end of what is not zero and of `reach` around it; in steps of 16: OpenCV rounds odd ends otherwise."""
    at = np.flatnonzero(line)
    if len(at) == 0:
        return 0, 0
    return max(0, (int(at[0]) - reach) // 16 * 16), min(len(line), -(-(int(at[-1]) + 1 + reach) // 16) * 16)


Slopes = tuple[np.ndarray, np.ndarray]  # (H, W) along columns and along rows


def slopes(height: np.ndarray, strength: float = 1.0) -> Slopes:
    """Slopes of a tiled height map, `strength` per pixel step."""
    padded = cv2.copyMakeBorder(height, 1, 1, 1, 1, cv2.BORDER_WRAP)
    gx = padded[1:-1, 2:] - padded[1:-1, :-2]
    gy = padded[2:, 1:-1] - padded[:-2, 1:-1]
    gx *= np.float32(0.5 * strength)
    gy *= np.float32(0.5 * strength)
    return gx, gy


def along(slope: Slopes, way: np.ndarray) -> np.ndarray:
    """(H, W) float32 slope along the vector `way`."""
    return cv2.scaleAdd(slope[1], float(way[1]), slope[0] * np.float32(way[0]))


def smoothstep(x: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one. Shapes broadcast."""
    t = (x - low) / (high - low)
    np.clip(t, 0.0, 1.0, out=t)
    bend = 2.0 * t
    np.subtract(3.0, bend, out=bend)
    t *= t
    t *= bend
    return t


def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """np.hypot of float32, to the same bits and in half the time: a square has room in a float64."""
    both = np.square(x, dtype=np.float64) + np.square(y, dtype=np.float64)
    return np.sqrt(both, out=both).astype(np.float32)


def fraction(x: np.ndarray) -> np.ndarray:
    """x % 1.0, of which NumPy makes a slow division."""
    return x - np.floor(x)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round and clip to 0..255."""
    image = image + 0.5
    np.clip(image, 0.0, 255.0, out=image)
    return cv2.convertScaleAbs(np.floor(image, out=image))  # of whole numbers it is exact, and faster than astype
