"""The faces of covers: height maps of cast iron, and the colours that rust, dirt and wheels give them.

A face is a square canvas of (N, N) pixels over [-1, 1] x [-1, 1], row 0 at the top; the lid fills the unit disc or the
unit square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.blend import mix, scale
from cvpeft.data.render.noise import distance, fractal, fraction, smoothstep

__all__ = ["LIDS", "PATTERNS", "Material", "disc", "face", "grid", "lid"]

WORDS = (
    "WATER",
    "SEWER",
    "DRAIN",
    "CITY WORKS",
    "STORM",
    "TELECOM",
    "ELECTRIC",
    "GAS",
    "D400",
    "EN 124",
    "CABLE",
    "FIRE",
)


@dataclass(frozen=True)
class Material:
    """iron: colour of clean metal, 0..255; rust, wear, dirt: 0..1; tint: factors."""

    iron: float
    rust: float
    wear: float
    dirt: float
    tint: tuple[float, float, float]


@lru_cache(maxsize=32)
def grid(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (1, n), y (n, 1) and radius (n, n) of the pixels of a canvas, float32: work on x alone is one row."""
    at = ((np.arange(n) + 0.5) / n * 2 - 1).astype(np.float32)
    x, y = at[None, :], at[:, None]
    return x, y, distance(x, y)


def _angle(n: int) -> np.ndarray:
    """(n, n) float32 angle of the pixels of a canvas."""
    x, y, _ = grid(n)
    return np.arctan2(y, x)


def disc(n: int, radius: float, square: bool = False) -> np.ndarray:
    """(n, n) float32 coverage of a centred disc (or square with rounded corners) of half width `radius`."""
    x, y, r = grid(n)
    if square:
        inner = radius * 0.94
        corner = distance(np.maximum(np.abs(x) - inner, 0), np.maximum(np.abs(y) - inner, 0))
        r = np.where(corner > 0, inner + corner, np.maximum(np.abs(x), np.abs(y)))
    return np.clip((radius - r) * n / 2 + 0.5, 0, 1)


def _wave(phase: np.ndarray, duty: float, soft: float) -> np.ndarray:
    """Raised for `duty` of each unit of `phase`, with flanks of width `soft`."""
    t = fraction(phase)
    t -= 0.5
    np.abs(t, out=t)
    t *= 2
    return smoothstep(t, duty + soft, duty - soft)


# --- cover patterns -------------------------------------------------------------------------------------------------


def _checker(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y, _ = grid(n)
    count = rng.uniform(5, 9)
    a, b = (x + y) * count / 1.4, (x - y) * count / 1.4
    return _wave(a, 0.62, 0.14) * _wave(b, 0.62, 0.14)


def _waffle(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y, _ = grid(n)
    count = rng.uniform(4, 8)
    groove = rng.random() < 0.4
    squares = _wave(x * count, 0.7, 0.12) * _wave(y * count, 0.7, 0.12)
    return 1 - squares if groove else squares


def _tread(rng: np.random.Generator, n: int) -> np.ndarray:
    """Lozenges that stand across each other, as on checker plate."""
    x, y, _ = grid(n)
    count = rng.uniform(4, 6.5)
    a, b = x * count, y * count
    cell = (np.floor(a) + np.floor(b)) % 2
    p, q = fraction(a) - 0.5, fraction(b) - 0.5
    long, short = np.where(cell > 0, p, q), np.where(cell > 0, q, p)
    return smoothstep(np.abs(long) / 0.46 + np.abs(short) / 0.2, 1.15, 0.85)


def _ribs(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y, _ = grid(n)
    bars = _wave(x * rng.uniform(5, 9), 0.55, 0.12)
    gaps = int(rng.integers(1, 5))
    return bars * (1 - _wave(y * gaps / 2 + 0.25 * gaps, 0.12, 0.05))


def _radial(rng: np.random.Generator, n: int) -> np.ndarray:
    """Rings of wedges, twice as many outside as inside."""
    r = grid(n)[2]
    turn = _angle(n) / (2 * np.pi)
    inner, outer = int(rng.integers(6, 13)), int(rng.integers(14, 29))
    low = _wave(turn * inner, 0.62, 0.12) * _band(r, 0.26, 0.52)
    high = _wave(turn * outer, 0.6, 0.15) * _band(r, 0.58, 0.93)
    return np.maximum(np.maximum(low, high), smoothstep(r, 0.2, 0.16))


def _rings(rng: np.random.Generator, n: int) -> np.ndarray:
    r = grid(n)[2]
    rings = _wave(r * rng.uniform(4, 7) + 0.2, 0.55, 0.15)
    spokes = int(rng.choice([0, 4, 6, 8]))
    return np.maximum(rings, _wave(_angle(n) / (2 * np.pi) * spokes, 0.1, 0.04) * (r < 0.95)) if spokes else rings


def _studs(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y, _ = grid(n)
    count = rng.uniform(5, 8.5)
    b = y * count / 0.866
    a = x * count + 0.5 * (np.floor(b) % 2)
    return smoothstep(distance(fraction(a) - 0.5, (fraction(b) - 0.5) * 0.866), 0.36, 0.22)


def _logo(rng: np.random.Generator, n: int) -> np.ndarray:
    """A coat of arms in the middle of a pattern."""
    r = grid(n)[2]
    field = PATTERNS[str(rng.choice(["checker", "waffle", "studs", "radial"]))](rng, n)
    size = rng.uniform(0.28, 0.42)
    field = np.where(r < size, 0.12, field)
    field = np.maximum(field, _band(r, size - 0.05, size))
    word = str(rng.choice(WORDS))[:3]
    return np.maximum(field, _text(n, word, size * 1.1) * (r < size))


def _letters(rng: np.random.Generator, n: int) -> np.ndarray:
    """A band of letters around a smaller pattern, or across the middle."""
    _, y, r = grid(n)
    field = PATTERNS[str(rng.choice(["checker", "waffle", "studs", "ribs", "tread"]))](rng, n)
    if rng.random() < 0.5:
        half = rng.uniform(0.12, 0.2)
        field = np.where(np.abs(y) < half + 0.05, 0.1, field)
        return np.maximum(field, _text(n, str(rng.choice(WORDS)), 1.5, half) * (np.abs(y) < half + 0.03))
    ring = _around(n, f"{rng.choice(WORDS)}  {rng.choice(WORDS)}  ")
    field = np.where(r > 0.66, ring, field)
    return np.maximum(field, np.maximum(_band(r, 0.63, 0.68), _band(r, 0.94, 1.0)))


def _band(r: np.ndarray, low: float, high: float) -> np.ndarray:
    return smoothstep(r, low - 0.01, low + 0.01) * smoothstep(r, high + 0.01, high - 0.01)


@lru_cache(maxsize=256)
def _written(words: str) -> tuple[int, int]:
    """Width and height of letters at scale 1; OpenCV takes a millisecond to tell."""
    (w, h), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, 1.0, 2)
    return w, h


def _text(n: int, word: str, width: float, half: float = 0.2) -> np.ndarray:
    """(n, n) raised letters in the middle, at most `width` wide and 2 * half high (canvas units)."""
    canvas = np.zeros((n, n), np.uint8)
    w, h = _written(word)
    scale = min(width * n / 2 / w, half * n / h)
    thick = max(1, round(scale * 3))
    (w, h), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_DUPLEX, scale, thick)
    cv2.putText(canvas, word, ((n - w) // 2, (n + h) // 2), cv2.FONT_HERSHEY_DUPLEX, scale, 255, thick, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def _around(n: int, words: str) -> np.ndarray:
    """(n, n) letters along a ring between radius 0.7 and 0.92, read from outside."""
    length, depth = 4 * n, n
    strip = np.zeros((length, depth), np.uint8)  # rows: angle, columns: radius
    flat = np.zeros((int(0.24 * depth / 2), length), np.uint8)
    w, h = _written(words)
    scale = min(length / w, 0.85 * len(flat) / h)
    cv2.putText(
        flat, words, (4, len(flat) - 2), cv2.FONT_HERSHEY_DUPLEX, scale, 255, max(1, round(2.5 * scale)), cv2.LINE_AA
    )
    start = int(0.70 * depth)
    part = cv2.rotate(flat, cv2.ROTATE_90_CLOCKWISE)[:, ::-1][:, ::-1]
    strip[:, start : start + part.shape[1]] = part[:, : depth - start]
    # Without WARP_FILL_OUTLIERS the corners would keep what the memory held before.
    flags = cv2.WARP_INVERSE_MAP | cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    return cv2.warpPolar(strip, (n, n), (n / 2, n / 2), n / 2, flags).astype(np.float32) / 255


PATTERNS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "checker": _checker,
    "waffle": _waffle,
    "tread": _tread,
    "ribs": _ribs,
    "radial": _radial,
    "rings": _rings,
    "studs": _studs,
    "logo": _logo,
    "letters": _letters,
}


# --- plain lids of the class `circle` -------------------------------------------------------------------------------

LIDS: dict[str, tuple[tuple[float, float], tuple[tuple[float, float, float], ...]]] = {
    # name: diameter in metres, colours
    "iron": ((0.22, 0.45), ((92, 88, 84), (112, 106, 100), (100, 82, 68))),
    "valve": ((0.14, 0.24), ((84, 80, 78), (70, 92, 128), (110, 84, 66))),
    "concrete": ((0.35, 0.6), ((168, 164, 156), (150, 146, 138))),
    "plastic": ((0.16, 0.3), ((58, 60, 62), (60, 104, 150), (70, 112, 84), (176, 150, 70))),
}


def lid(
    kind: str, rng: np.random.Generator, n: int, material: Material, square: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A plain round lid: colour (n, n, 3) float32 and height (n, n); a rim, a notch or a knob, no pattern."""
    x, y, r = grid(n)
    r = np.maximum(np.abs(x), np.abs(y)) if square else r
    colours = LIDS[kind][1]
    colour = np.array(colours[rng.integers(len(colours))], np.float32) * np.array(material.tint, np.float32)
    height = 0.8 * _band(r, 0.86, 1.1) if rng.random() < 0.6 else np.zeros_like(r)
    detail = rng.integers(4)
    if detail == 0:
        height = height - smoothstep(distance(x, y - 0.55), 0.13, 0.08)
    elif detail == 1:
        height = height - smoothstep(np.maximum(np.abs(x) / 0.34, np.abs(y) / 0.08), 1.1, 0.9)
    elif detail == 2:
        height = height + 0.7 * smoothstep(r, 0.2, 0.14)
    rgb = np.full((n, n, 3), colour, np.float32)
    scale(rgb, (1 + 0.05 * _noise(rng, n, 3)) * (1 - 0.35 * np.clip(-height, 0, 1)))
    if kind != "plastic":
        rgb = _stain(rng, rgb, np.zeros_like(r), material, 0.5 if kind == "concrete" else 1.0)
    return rgb, height


def face(
    pattern: str, rng: np.random.Generator, n: int, material: Material, square: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A cover's face: colour (n, n, 3) float32 0..255 and height (n, n) float32 0..1."""
    x, y, r = grid(n)
    r = np.maximum(np.abs(x), np.abs(y)) if square else r
    height = PATTERNS[pattern](rng, n) * smoothstep(r, 0.97, 0.93)
    height = np.maximum(height, 0.9 * _band(r, 0.94, 1.2) * (rng.random() < 0.6))
    top = material.iron * (0.95 + 0.75 * material.wear)
    low = material.iron * (0.5 + 0.1 * material.wear)
    worn = np.clip(1 + 0.18 * _noise(rng, n, 2), 0.5, 1.4)
    grey = low + (top * worn - low) * height
    rgb = cv2.merge([grey * part for part in material.tint])
    return _holes(rng, _stain(rng, rgb, height, material, 1.0), height)


def _noise(rng: np.random.Generator, n: int, cells: int) -> np.ndarray:
    """Noise of deviation 1 over a canvas of any size."""
    return cv2.resize(fractal(rng, 128, 1 << cells, 4), (n, n), interpolation=cv2.INTER_LINEAR)


def _stain(
    rng: np.random.Generator, rgb: np.ndarray, height: np.ndarray, material: Material, amount: float
) -> np.ndarray:
    """Rust in patches, and dirt in what lies low."""
    rust = amount * material.rust * smoothstep(_noise(rng, len(rgb), 2), -0.6, 1.2)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    mix(rgb, cv2.merge([1.3 * grey, 0.86 * grey, 0.6 * grey]), rust)
    dirt = amount * material.dirt * (1 - 0.8 * height) * smoothstep(_noise(rng, len(rgb), 2), -0.8, 1.5)
    mix(rgb, (118, 106, 88), 0.75 * dirt)
    return rgb


def _within(off: np.ndarray, reach: float) -> slice:
    """The pixels of a rising line of distances that are less than `reach` away."""
    return slice(*np.searchsorted(off, (-reach, reach)))


def _holes(rng: np.random.Generator, rgb: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pick holes or vents, or none."""
    n = len(rgb)
    x, y, _ = grid(n)
    count = int(rng.choice([0, 1, 2, 4, 8]))
    start, far, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.55, 0.85), rng.uniform(0.035, 0.065)
    if not count:
        return rgb, height
    dark = np.zeros((n, n), np.float32)
    for i in range(count):
        angle = start + 2 * np.pi * i / count
        dx, dy = x - far * math.cos(angle), y - far * math.sin(angle)
        part = _within(dy[:, 0], size * 1.2), _within(dx[0], size * 1.2)
        hole = smoothstep(distance(dx[:, part[1]], dy[part[0]]), size * 1.2, size * 0.8)
        dark[part] = np.maximum(dark[part], hole)
    scale(rgb, 1 - 0.85 * dark)
    return rgb, height * (1 - dark)
