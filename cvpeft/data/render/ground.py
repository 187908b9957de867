"""Ground tiles (colour and relief that repeat without a seam) and how the camera sees them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.noise import Slopes, fractal, slopes, smoothstep, to_uint8, wrap_blur

__all__ = ["RECIPES", "Tile", "look", "macro", "paint_tile"]

FADE = 0.35  # levels over which one level of a tile gives way to the next: little is warped twice
FLAT = 4  # from this level on no relief is left
SLOPE_UNIT = 48.0  # grey levels per unit of slope in the stored relief
RGB = tuple[float, float, float]
Painted = tuple[np.ndarray, np.ndarray]  # colour (S, S, 3) float32 0..255, height (S, S) float32 px


@dataclass(frozen=True)
class Tile:
    """A square of ground of side `metres`; each level of `face` and `relief` has half the pixels of the one before.

    face: (S + 1, S + 1, 4) uint8, colour and 128 + SLOPE_UNIT * slope along columns; relief: (S + 1, S + 1) uint8, the
    same along rows, and none from level FLAT on. The last row and column repeat the first. Four channels are warped
    more than twice as fast as three, so the slope costs nothing there.
    """

    metres: float
    face: tuple[np.ndarray, ...]
    relief: tuple[np.ndarray, ...]


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
    return _tinted(grey, hue, 0.01 * fractal(rng, size, 32, 3)), 1.2 * stones - 1.6 * pits + 0.2 * fine


def _tinted(grey: np.ndarray, hue: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(S, S, 3) float32: grey in a colour that `shift` moves between red and blue from place to place."""
    wide = shift.astype(np.float64)
    return cv2.merge(
        [(grey * (part + wide * way)).astype(np.float32) for part, way in zip(hue, (1, 0, -1), strict=True)]
    )


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
    rgb = _tinted(grey, np.array([1.01, 1.0, 0.97]), 0.006 * fractal(rng, size, 16, 3))
    return rgb, 0.25 * fine + broom * 0.35 * strokes - 1.5 * pores


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
    tone, worn = 1 + grain * fine + 0.06 * cloud, 0.88 + 0.12 * smoothstep(edge, 0, 3 * bevel + 4)
    moss, dust, gap = 0.6 * smoothstep(fractal(rng, size, 8, 4), 0.5, 2.2), 1 + 0.12 * fine, 1 - body
    channels = []  # one by one: three at a time take NumPy several times as long
    for colour, sand, green in zip(colours.T, joint_rgb, (0.35, 0.18, 0.5), strict=True):
        stone = colour.take(labels)
        stone *= tone
        stone *= worn
        stone *= body
        channels.append(sand * dust * (1 - green * moss) * gap + stone)
    rgb = cv2.merge(channels)
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


def paint_tile(name: str) -> Tile:
    """The tile of a recipe, in tenths of a second; the same on every machine and in every process."""
    metres, paint = RECIPES[name]
    rgb, height = paint(np.random.default_rng(zlib.crc32(name.encode())))
    columns, rows = (_levels(to_uint8(128 + SLOPE_UNIT * slope)) for slope in slopes(height))
    return Tile(metres, _faces(_levels(to_uint8(rgb)), columns), rows[:FLAT])


def _faces(colours: tuple[np.ndarray, ...], slope: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Colour and slope in one image per level."""
    both = zip(colours, slope, strict=True)
    return tuple(cv2.insertChannel(grey, cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), 3) for rgb, grey in both)


@lru_cache(maxsize=1)
def macro() -> Tile:
    """Slow variation over 48 m, so that no tile is seen to repeat: three independent noises in one image."""
    rng = np.random.default_rng(48)
    noise = [fractal(rng, 512, cells, octaves) for cells, octaves in ((8, 6), (4, 6), (16, 5))]
    levels = _levels(to_uint8(128 + 40 * np.dstack(noise)))
    return Tile(48.0, tuple(cv2.cvtColor(level, cv2.COLOR_RGB2RGBA) for level in levels), ())


def _levels(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """The image and its halves down to about 8 px, each with its first row and column repeated at the end."""
    levels = [image]
    while levels[-1].shape[0] % 2 == 0 and levels[-1].shape[0] > 8:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return tuple(cv2.copyMakeBorder(level, 0, 1, 0, 1, cv2.BORDER_WRAP) for level in levels)


# --- seen by the camera ---------------------------------------------------------------------------------------------


def look(tile: Tile, place: np.ndarray, size: tuple[int, int], rows: tuple[int, int]) -> tuple[np.ndarray, Slopes]:
    """A tile as the camera sees it in the rows [rows): colour (H, W, 3) 0..255 and two slopes (H, W), all float32.

    place: (3, 3) from ground metres to pixels. Rows differ in distance, so each takes the level of the tile whose
    pixels are about as large as its own, with a short fade from one level to the next: no shimmer far away, full
    detail near. Outside the rows everything is zero.
    """
    colour, slope = np.zeros((*size, 3), np.float32), (np.zeros(size, np.float32), np.zeros(size, np.float32))
    level = _level(tile, place, size, rows)
    for i, face in enumerate(tile.face):
        weight = np.clip(0.5 + (0.5 - np.abs(level - i)) / FADE, 0, 1).astype(np.float32)
        used = np.flatnonzero(weight > 0)
        if len(used) == 0:
            continue
        part = slice(int(used[0]), int(used[-1]) + 1)
        maps = _maps(place, tile.metres, len(face) - 1, size[1], part)
        seen = cv2.remap(face, *maps, cv2.INTER_LINEAR)
        _fade_in(colour[part], cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB), weight[part])
        if i < len(tile.relief):
            columns, lines = cv2.extractChannel(seen, 3), cv2.remap(tile.relief[i], *maps, cv2.INTER_LINEAR)
            for view, grey in zip(slope, (columns, lines), strict=True):
                _fade_in(view[part], grey - np.float32(128), weight[part])
    for view in slope:
        view *= np.float32(1 / SLOPE_UNIT)
    return colour, slope


def _fade_in(view: np.ndarray, seen: np.ndarray, weight: np.ndarray) -> None:
    """Add an image to a window on another, with one factor per row."""
    cuts = np.flatnonzero(np.diff(weight == 1)) + 1
    for start, stop in itertools.pairwise((0, *cuts.tolist(), len(weight))):
        if weight[start] == 1:  # then no other level is seen here
            view[start:stop] = seen[start:stop]
        else:
            # As an (H, W * C) matrix NumPy runs along the rows.
            rows, part = view[start:stop].reshape(stop - start, -1), seen[start:stop].reshape(stop - start, -1)
            rows += part * weight[start:stop, None]


def _maps(place: np.ndarray, metres: float, pixels: int, width: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of a tile of `pixels` px for each pixel of the image's rows, (h, width) float32, in [0, pixels).

    Wrapping here and not by BORDER_WRAP makes remap three times as fast. Row 0 of a tile lies farthest along Y, so
    that nothing is seen in a mirror.
    """
    m = (np.diag([pixels / metres, -pixels / metres, 1.0]) @ np.linalg.inv(place)).astype(np.float32)
    u = np.arange(width, dtype=np.float32) + np.float32(0.5)
    v = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5))[:, None]
    depth = m[2, 0] * u + (m[2, 1] * v + m[2, 2])
    np.divide(1, depth, out=depth)
    maps = tuple(m[k, 0] * u + (m[k, 1] * v + m[k, 2]) for k in (0, 1))
    for at in maps:
        at *= depth
        at -= np.float32(0.5)
        whole = at / pixels
        np.floor(whole, out=whole)
        whole *= pixels
        at -= whole
    return maps


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
    footprint = across**0.4 * along**0.6 * (len(tile.face[0]) - 1) / tile.metres
    level = np.clip(np.log2(np.maximum(footprint, 1e-3)) - 0.25, 0, len(tile.face) - 1)
    level[: rows[0]] = level[rows[1] :] = -9.0
    return level
