"""Ground tiles (colour and relief that repeat without a seam) and how the camera sees them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.noise import fractal, slopes, smoothstep, to_uint8, wrap_blur

__all__ = ["RECIPES", "Tile", "look", "macro", "tile"]

FADE = 0.35  # levels over which one level of a tile gives way to the next: little is warped twice
FLAT = 4  # from this level on no relief is left
SLOPE_UNIT = 48.0  # grey levels per unit of slope in the stored relief
RGB = tuple[float, float, float]
Painted = tuple[np.ndarray, np.ndarray]  # colour (S, S, 3) float32 0..255, height (S, S) float32 px


@dataclass(frozen=True)
class Tile:
    """A square of ground of side `metres`; each level of `rgb` and `relief` has half the pixels of the one before.

    rgb: (S + 1, S + 1, 3) uint8; relief: two (S + 1, S + 1) uint8, 128 + SLOPE_UNIT * slope along columns and along
    rows, and none from level FLAT on. The last row and column repeat the first.
    """

    metres: float
    rgb: tuple[np.ndarray, ...]
    relief: tuple[tuple[np.ndarray, np.ndarray], ...]


# --- labels of the stones -------------------------------------------------------------------------------------------


def _cells(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(S, S) column and row number of a square grid of `count` cells across."""
    at = (np.arange(size) * count // size).astype(np.int32)
    return np.meshgrid(at, at)


def _bond(size: int, across: int, rows: int, shift: float) -> np.ndarray:
    """Rows of stones, each row moved by `shift` of a stone against the one before."""
    x = np.arange(size) / size * across
    row = (np.arange(size) * rows // size).astype(np.int32)
    column = np.floor(x[None, :] + (row[:, None] * shift) % 1.0).astype(np.int32) % across
    return row[:, None] * across + column


def _herringbone(size: int, count: int) -> np.ndarray:
    """Stones of 1 x 2 cells that meet at right angles; `count` is divisible by 4."""
    i, j = _cells(size, count)
    turn = (i - j) % 4
    i = np.where(turn == 1, i - 1, i) % count
    j = np.where(turn == 2, j - 1, j) % count
    return (j * count + i).astype(np.int32)


def _setts(rng: np.random.Generator, size: int, rows: int) -> np.ndarray:
    """Hewn stones: every row has its own widths, and no edge is straight."""
    wobble = size / rows * 0.09
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    along = (x + wobble * fractal(rng, size, 64, 2)) % size
    across = (y + wobble * fractal(rng, size, 64, 2) + 0.6 * wobble * fractal(rng, size, 8, 2)) % size
    row = (across * rows / size).astype(np.int32)
    labels = np.zeros((size, size), np.int32)
    for r in range(rows):
        widths = rng.uniform(0.75, 1.45, rows)
        cuts = np.cumsum(widths) / widths.sum() * size
        here = row == r
        at = (along[here] + rng.uniform(0, size)) % size
        labels[here] = r * rows + np.searchsorted(cuts, at).clip(0, rows - 1)
    return labels


def _to_joint(labels: np.ndarray) -> np.ndarray:
    """(S, S) float32 px from the nearest border between two stones."""
    same = (labels == np.roll(labels, 1, 0)) & (labels == np.roll(labels, 1, 1))
    padded = cv2.copyMakeBorder(same.astype(np.uint8), 64, 64, 64, 64, cv2.BORDER_WRAP)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[64:-64, 64:-64]


# --- surfaces -------------------------------------------------------------------------------------------------------


def _grain(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Fine noise of deviation 1 with grains of about `sigma` px."""
    noise = rng.standard_normal((size, size), dtype=np.float32)
    noise = wrap_blur(noise, sigma) if sigma > 0 else noise
    return noise / noise.std()


def _asphalt(rng: np.random.Generator, tone: float, stone: float, contrast: float, warm: float) -> Painted:
    """Stones in tar: dark binder, stones of `stone` px that are lighter the more the road is worn."""
    size = 1024
    coarse, fine = _grain(rng, size, stone), _grain(rng, size, 0.7)
    stones = smoothstep(coarse, 0.1, 1.3)
    pits = smoothstep(_grain(rng, size, stone * 0.8), 1.5, 2.3)
    cloud = fractal(rng, size, 16, 3)
    grey = tone * (1 + contrast * (0.55 * stones - 0.2 - 0.55 * pits) + 0.045 * fine + 0.03 * cloud)
    bright = smoothstep(_grain(rng, size, stone * 0.7), 2.2, 2.9)
    grey += 70 * contrast * bright
    hue = 1 + np.array([0.03, 0.0, -0.04]) * warm
    tinted = grey[..., None] * (hue + 0.01 * fractal(rng, size, 32, 3)[..., None] * np.array([1, 0, -1.0]))
    return tinted.astype(np.float32), 1.2 * stones - 1.6 * pits + 0.2 * fine


def _concrete(rng: np.random.Generator, tone: float, broom: float) -> Painted:
    """Cement skin: clouds, sand, pores, and the strokes of the broom."""
    size = 1024
    cloud, fine = fractal(rng, size, 16, 4), _grain(rng, size, 0.6)
    strokes = cv2.GaussianBlur(
        cv2.copyMakeBorder(_grain(rng, size, 0), 64, 64, 64, 64, cv2.BORDER_WRAP), (0, 0), 20, sigmaY=0.8
    )
    strokes = strokes[64:-64, 64:-64] / strokes.std()
    pores = smoothstep(_grain(rng, size, 1.3), 2.3, 2.9)
    grey = tone * (1 + 0.03 * cloud + 0.025 * fine + broom * 0.02 * strokes - 0.35 * pores)
    rgb = grey[..., None] * (
        np.array([1.01, 1.0, 0.97]) + 0.006 * fractal(rng, size, 16, 3)[..., None] * np.array([1, 0, -1])
    )
    return rgb.astype(np.float32), 0.25 * fine + broom * 0.35 * strokes - 1.5 * pores


def _paving(
    rng: np.random.Generator, labels: np.ndarray, palette: list[RGB], *, joint: float, bevel: float,
    dome: float = 0.0, spread: float = 0.08, joint_rgb: RGB = (96, 90, 80), grain: float = 0.05,
) -> Painted:  # fmt: skip
    """Stones of one label each: own colour, rounded edges, sand and moss in the joints (`joint`, `bevel` in px)."""
    size = len(labels)
    count = int(labels.max()) + 1
    colours = np.array(palette, np.float32)[rng.integers(0, len(palette), count)]
    colours *= rng.normal(1.0, spread, (count, 1)).astype(np.float32)
    edge = _to_joint(labels) + 0.8 * fractal(rng, size, 64, 3)
    body = smoothstep(edge, joint * 0.5, joint * 0.5 + bevel)
    fine, cloud = _grain(rng, size, 0.8), fractal(rng, size, 32, 4)
    stone = colours[labels] * (1 + grain * fine + 0.06 * cloud)[..., None]
    stone *= (0.88 + 0.12 * smoothstep(edge, 0, 3 * bevel + 4))[..., None]
    moss = 0.6 * smoothstep(fractal(rng, size, 8, 4), 0.5, 2.2)[..., None]
    sand = (
        np.array(joint_rgb, np.float32)
        * (1 + 0.12 * fine)[..., None]
        * (1 - moss * np.array([0.35, 0.18, 0.5], np.float32))
    )
    rgb = sand * (1 - body[..., None]) + stone * body[..., None]
    height = 2.0 * body + dome * np.sqrt(np.clip(edge, 0, None)) + 0.5 * cloud * body + 0.25 * fine
    return rgb, height


RECIPES: dict[str, tuple[float, Callable[[np.random.Generator], Painted]]] = {
    "asphalt_old": (2.0, lambda rng: _asphalt(rng, 122, 1.4, 0.42, 0.7)),
    "asphalt_new": (1.8, lambda rng: _asphalt(rng, 72, 1.3, 0.5, -0.4)),
    "asphalt_coarse": (2.1, lambda rng: _asphalt(rng, 100, 1.8, 0.62, 0.4)),
    "concrete": (3.0, lambda rng: _concrete(rng, 158, 1.0)),
    "bricks_red": (5.76, lambda rng: _paving(
        rng, _bond(1536, 28, 56, 0.5), [(134, 98, 86), (144, 108, 95), (122, 92, 83), (138, 113, 102)],
        joint=3, bevel=2.5)),
    "bricks_grey": (5.76, lambda rng: _paving(
        rng, _herringbone(1536, 56), [(132, 128, 122), (120, 117, 113), (142, 134, 124), (128, 118, 110)],
        joint=3, bevel=3)),
    "setts": (5.0, lambda rng: _paving(
        rng, _setts(rng, 1536, 44), [(122, 118, 114), (104, 102, 102), (136, 128, 120), (114, 106, 100)],
        joint=4, bevel=5, dome=0.9, spread=0.12, joint_rgb=(82, 76, 66), grain=0.08)),
    "slabs": (6.0, lambda rng: _paving(
        rng, _bond(1536, 12, 15, 0.5), [(168, 162, 152), (158, 154, 147), (176, 168, 156)],
        joint=3, bevel=2, spread=0.05, joint_rgb=(104, 98, 88))),
}  # fmt: skip


@lru_cache(maxsize=16)
def tile(name: str) -> Tile:
    """The tile of a recipe, made once per process; the same on every machine and in every process."""
    metres, paint = RECIPES[name]
    rgb, height = paint(np.random.default_rng(zlib.crc32(name.encode())))
    relief = to_uint8(128 + SLOPE_UNIT * slopes(height))
    columns, rows = _levels(relief[..., 0])[:FLAT], _levels(relief[..., 1])[:FLAT]
    return Tile(metres, _levels(to_uint8(rgb)), tuple(zip(columns, rows, strict=True)))


@lru_cache(maxsize=1)
def macro() -> Tile:
    """Slow variation over 48 m, so that no tile is seen to repeat: three independent noises in one image."""
    rng = np.random.default_rng(48)
    noise = [fractal(rng, 512, cells, octaves) for cells, octaves in ((8, 6), (4, 6), (16, 5))]
    return Tile(48.0, _levels(to_uint8(128 + 40 * np.dstack(noise))), ())


def _levels(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """The image and its halves down to about 8 px, each with its first row and column repeated at the end."""
    levels = [image]
    while levels[-1].shape[0] % 2 == 0 and levels[-1].shape[0] > 8:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return tuple(cv2.copyMakeBorder(level, 0, 1, 0, 1, cv2.BORDER_WRAP) for level in levels)


# --- seen by the camera ---------------------------------------------------------------------------------------------


def look(tile: Tile, place: np.ndarray, size: tuple[int, int], rows: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A tile as the camera sees it in the rows [rows): colour (H, W, 3) 0..255 and slopes (H, W, 2), both float32.

    place: (3, 3) from ground metres to pixels. Rows differ in distance, so each takes the level of the tile whose
    pixels are about as large as its own, with a short fade from one level to the next: no shimmer far away, full
    detail near. Outside the rows everything is zero.
    """
    colour, slope = np.zeros((*size, 3), np.float32), np.zeros((*size, 2), np.float32)
    level = _level(tile, place, size, rows)
    for i, rgb in enumerate(tile.rgb):
        weight = np.clip(0.5 + (0.5 - np.abs(level - i)) / FADE, 0, 1).astype(np.float32)
        used = np.flatnonzero(weight > 0)
        if len(used) == 0:
            continue
        part = slice(int(used[0]), int(used[-1]) + 1)
        weight = weight[part, None]
        maps = _maps(place, tile.metres, len(rgb) - 1, size[1], part)
        seen = cv2.remap(rgb, *maps, cv2.INTER_LINEAR)
        # One factor per row: as an (H, W * C) matrix NumPy runs along the rows.
        colour[part] += (seen.reshape(len(weight), -1) * weight).reshape(seen.shape)
        if i < len(tile.relief):
            for axis, image in enumerate(tile.relief[i]):
                slope[part, :, axis] += (cv2.remap(image, *maps, cv2.INTER_LINEAR) - np.float32(128)) * weight
    slope *= np.float32(1 / SLOPE_UNIT)
    return colour, slope


def _maps(place: np.ndarray, metres: float, pixels: int, width: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of a tile of `pixels` px for each pixel of the image's rows, (h, width) float32, in [0, pixels).

    Wrapping here and not by BORDER_WRAP makes remap three times as fast. Row 0 of a tile lies farthest along Y, so
    that nothing is seen in a mirror.
    """
    m = (np.diag([pixels / metres, -pixels / metres, 1.0]) @ np.linalg.inv(place)).astype(np.float32)
    u = np.arange(width, dtype=np.float32) + np.float32(0.5)
    v = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5))[:, None]
    depth = 1 / (m[2, 0] * u + (m[2, 1] * v + m[2, 2]))
    x, y = ((m[k, 0] * u + (m[k, 1] * v + m[k, 2])) * depth - np.float32(0.5) for k in (0, 1))
    return x - pixels * np.floor(x / pixels), y - pixels * np.floor(y / pixels)


def _level(tile: Tile, place: np.ndarray, size: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
    """(H,) level of each row: log2 of the tile's pixels under one pixel of the image; far outside 0.. beyond `rows`."""
    h, w = size
    v = np.arange(h) + 0.5
    inverse = np.linalg.inv(place)

    def ground(u: float, v: np.ndarray) -> np.ndarray:
        q = np.stack([np.full_like(v, u), v, np.ones_like(v)], 1) @ inverse.T
        return np.asarray(q[:, :2] / q[:, 2:])

    across = np.linalg.norm(ground(w / 2 + 0.5, v) - ground(w / 2 - 0.5, v), axis=1)
    along = np.linalg.norm(ground(w / 2, v + 0.5) - ground(w / 2, v - 0.5), axis=1)
    footprint = across**0.4 * along**0.6 * (len(tile.rgb[0]) - 1) / tile.metres
    level = np.clip(np.log2(np.maximum(footprint, 1e-3)) - 0.25, 0, len(tile.rgb) - 1)
    level[: rows[0]] = level[rows[1] :] = -9.0
    return level
