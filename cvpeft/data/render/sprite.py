"""Covers as pictures: a flat sprite for each of the five classes, drawn from above and warped into the image.

Depth and height are drawn by parallax (covers.py): a point at height z appears moved by -view * z, and its shadow lies
at -sun * z, with `sun` the direction towards the sun times the cotangent of its elevation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.blend import four, mix, scale
from cvpeft.data.render.camera import Camera, polygon_mask
from cvpeft.data.render.covers import (
    BROKE,
    CIRCLE,
    GOOD,
    LOSE,
    RIM,
    SQUARE_POINTS,
    THICK,
    UNCOVERED,
    Cover,
    outlines,
    parallax,
    turned,
)
from cvpeft.data.render.noise import along, distance, fractal, fraction, slopes, smoothstep, to_uint8
from cvpeft.data.render.patterns import disc, face, grid, lid

__all__ = ["PARTS", "draw"]

PARTS = ("ground", "frame", "lid", "plain lid", "shaft", "break", "edge", "loose lid")  # what a pixel may show
FRAME, LID, PLAIN, SHAFT, BREAK, EDGE, LOOSE = range(1, len(PARTS))


@dataclass(frozen=True)
class Rays:
    """Directions on the ground, in sprite axes, times the cotangent of the elevation; share of the sun in the light."""

    view: np.ndarray
    sun: np.ndarray
    share: float


# --- the sprite -----------------------------------------------------------------------------------------------------


Part = tuple[slice, slice]  # rows and columns of a canvas


@lru_cache(maxsize=16)
def _away(n: int, span: float) -> np.ndarray:
    """(n, n) distance from the middle of a canvas over +- span; every cover asks for several of its circles."""
    x, y, _ = grid(n)
    return distance(x * span, y * span)


class _Sprite:
    """A canvas of (n, n) pixels over centre +- span; colour (n, n, 3) is multiplied by coverage (n, n)."""

    def __init__(self, n: int, span: float, centre: tuple[float, float] = (0.0, 0.0)) -> None:
        self.n, self.span, self.centre = n, span, np.array(centre)
        x, y, _ = grid(n)
        self.x, self.y = x * span + centre[0], y * span + centre[1]
        self.rgb = np.zeros((n, n, 3), np.float32)
        self.alpha = np.zeros((n, n), np.float32)
        self.parts = np.zeros((n, n), np.uint8)

    def over(
        self, rgb: np.ndarray | tuple[float, float, float], alpha: np.ndarray, part: Part | None = None, shows: int = 0
    ) -> None:
        """Lay a layer on top, or a part of one on its part of the canvas; rgb is not multiplied by alpha.

        shows: index in PARTS; 0: shadows and the like, which leave what lies below what it is.
        """
        if part is None:
            part = _extent(alpha)
            rgb, alpha = rgb[part] if isinstance(rgb, np.ndarray) else rgb, alpha[part]
        if alpha.size == 0:
            return
        if shows:
            self.parts[part][alpha > 0.5] = shows
        mix(self.rgb[part], rgb, alpha)
        more = 1 - self.alpha[part]
        more *= alpha
        self.alpha[part] += more

    def shape(self, cover: Cover, radius: float, at: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """Coverage of the cover's shape of this radius around `at`."""
        if cover.square:
            return self.place(disc(self.n, 1.0, True), radius * turned(cover.turn), np.array(at))
        around = not (any(at) or self.centre.any())
        away = _away(self.n, self.span) if around else distance(self.x - at[0], self.y - at[1])
        cover_of = radius - away
        cover_of *= self.n / 2 / self.span
        cover_of += 0.5
        return np.clip(cover_of, 0, 1, out=cover_of)

    def place(self, canvas: np.ndarray, linear: np.ndarray, at: np.ndarray) -> np.ndarray:
        """A canvas over [-1, 1], moved by an affine map of sprite units; zero outside."""
        m = len(canvas)
        factor = self.n / self.span / m
        half, middle = (m - 1) / 2, (self.n - 1) / 2
        offset = middle + (at - self.centre) * self.n / 2 / self.span - factor * linear @ np.array([half, half])
        matrix = np.column_stack([factor * linear, offset])
        return cv2.warpAffine(canvas, matrix, (self.n, self.n), flags=cv2.INTER_LINEAR)


def _lit(rgb: np.ndarray, height: np.ndarray, sun: np.ndarray, share: float, strength: float) -> np.ndarray:
    """Relief in the sun, and a little of it under a grey sky, where light comes from above the horizon behind."""
    soft = np.array([0.15, -0.25])
    light = along(slopes(height, strength), sun * share + soft * (1 - share))
    np.subtract(1, light, out=light)
    scale(rgb, np.clip(light, 0.35, 1.7, out=light))
    return rgb


def _frame(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    """The ring that the lid lies in: iron or concrete, with a seat that is darker."""
    n, inner = sprite.n, 1 - cover.frame
    noise = cv2.resize(fractal(rng, 128, 8, 4), (n, n))
    iron = cover.material.iron * rng.uniform(0.75, 1.15)
    tone = np.array([1.0, 0.97, 0.93]) * (iron if rng.random() < 0.85 else 150)
    tone = tone + (np.array([iron * 1.2, iron * 0.82, iron * 0.6]) - tone) * cover.material.rust * 0.6
    ring = sprite.shape(cover, 1.0)
    grain = 1 + 0.08 * noise
    rgb = cv2.merge([part * grain for part in tone.astype(np.float32)])
    height = cv2.GaussianBlur(ring - 1.0 * sprite.shape(cover, inner), (0, 0), max(0.6, n / 160))
    sprite.over(_lit(rgb, height, rays.sun, rays.share, n / 90), ring, shows=FRAME)
    groove = sprite.shape(cover, inner + 0.012) - sprite.shape(cover, inner - 0.02)
    sprite.over((24, 24, 24), np.clip(groove, 0, 1) * 0.8)


def _top(cover: Cover, n: int, rays: Rays, rng: np.random.Generator) -> np.ndarray:
    """The lid's face, lit: (m, m, 4) float32 over [-1, 1], colour up to the canvas's edge, coverage last."""
    m = max(32, int(n * (1 - cover.frame)) // 2 * 2)
    draw_face = lid if cover.label == CIRCLE else face
    rgb, height = draw_face(cover.face, rng, m, cover.material, cover.square)
    sun = turned(cover.turn).T @ rays.sun
    rgb = _lit(rgb, height, sun, rays.share, 2.2 * m / 192)
    return four(rgb, disc(m, 1.0 - 1.0 / m, cover.square))


def _lay(
    sprite: _Sprite,
    cover: Cover,
    top: np.ndarray,
    linear: np.ndarray,
    at: np.ndarray,
    keep: np.ndarray | float = 1.0,
) -> None:
    """Lay a lit lid on the sprite."""
    layer = sprite.place(top, (1 - cover.frame) * linear @ turned(cover.turn), at)
    shows = {CIRCLE: PLAIN, LOSE: LOOSE}.get(cover.label, LID)
    sprite.over(cv2.cvtColor(layer, cv2.COLOR_RGBA2RGB), cv2.extractChannel(layer, 3) * keep, shows=shows)


def _hole(
    sprite: _Sprite, cover: Cover, rays: Rays, area: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Part]:
    """Colour of the shaft below the opening `area`, and its part of the canvas.

    The line of sight of each pixel is followed to the wall or to the bottom.
    """
    part = _extent(area)
    area = area[part]
    inner, depth = 1 - cover.frame, rng.uniform(1.6, 4.0)
    # Plain floats: a float64 scalar of NumPy would turn every (n, n) array into float64.
    vx, vy = (float(v) for v in (rays.view if np.hypot(*rays.view) > 0.05 else (0.0, 0.05)))
    sx, sy = (float(v) for v in rays.sun)
    px, py = sprite.x[:, part[1]], sprite.y[part[0]]
    along, square = px * vx + py * vy, vx * vx + vy * vy
    root = np.sqrt(np.maximum(along**2 - square * (px**2 + py**2 - inner**2), 0))
    down = np.clip((along + root) / square, 0, depth)
    qx, qy = px - down * vx, py - down * vy
    bottom = down >= depth
    light = np.exp(-down / rng.uniform(0.4, 0.9)) * (0.62 - 0.2 * rays.share)
    inside = distance(qx + sx * down, qy + sy * down) < inner
    facing = np.clip(-(qx * sx + qy * sy) / (float(np.hypot(sx, sy)) * inner + 1e-6), 0, 1)
    light = light * (1 - rays.share) + rays.share * (0.35 * light + 0.5 * inside * facing * (down < depth))
    courses = np.zeros_like(down)
    wall = (area > 0) & ~bottom & (down >= 0.26)
    courses[wall] = _joints(qx[wall], qy[wall], down[wall])
    tone = np.array([(122.0, 116, 106), (118, 92, 80), (108, 106, 102)][rng.integers(3)], np.float32)
    rgb = cv2.merge([np.full_like(down, level) for level in tone])
    mix(rgb, (74, 70, 66), smoothstep(down, 0.3, 0.22))
    scale(rgb, np.where(down < 0.26, 0.35 + 0.65 * light, light * (1 - 0.45 * courses)))
    if rng.random() < 0.35:  # water at the bottom mirrors the bright opening
        rgb[bottom & (distance(qx - 0.2, qy) < 0.5 * inner)] = rng.uniform(40, 110)
    return rgb, part


def _extent(mask: np.ndarray) -> Part:
    """The part of a canvas outside which the mask is zero."""
    x, y, w, h = cv2.boundingRect((mask > 0).view(np.uint8))
    return slice(y, y + h), slice(x, x + w)


def _joints(qx: np.ndarray, qy: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Joints of the shaft's brick or ring courses, 0..1."""
    row = down / 0.18
    turn = np.arctan2(qy, qx) * (18 / (2 * np.pi)) + fraction(0.5 * np.floor(row))
    return np.maximum(np.abs(fraction(row) - 0.5) > 0.43, np.abs(fraction(turn) - 0.5) > 0.45).astype(np.float32)


# --- the five classes -----------------------------------------------------------------------------------------------


def _closed(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    """A whole lid in its frame, flush or a little lower: `good` and, with a plain lid, `circle`."""
    _frame(sprite, cover, rays, rng)
    _lay(sprite, cover, _top(cover, sprite.n, rays, rng), np.eye(2), np.zeros(2))
    _edge_shadow(sprite, cover, rays, rng.uniform(0.0, 0.1 if cover.label == CIRCLE else 0.05))


def _edge_shadow(sprite: _Sprite, cover: Cover, rays: Rays, deep: float) -> None:
    """The frame's shadow on a lid that lies `deep` radii lower."""
    inner = 1 - cover.frame
    area = sprite.shape(cover, inner)
    lit = sprite.shape(cover, inner, (float(-rays.sun[0] * deep), float(-rays.sun[1] * deep)))
    shadow = cv2.GaussianBlur(area * (1 - lit), (0, 0), 0.8) * area
    sprite.over((0, 0, 0), 0.75 * shadow * rays.share)


def _open(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    """The frame and the shaft: `uncovered`, and what a lid of `lose` has left."""
    _frame(sprite, cover, rays, rng)
    area = sprite.shape(cover, 1 - cover.frame)
    shaft, part = _hole(sprite, cover, rays, area, rng)
    sprite.over(shaft, area[part], part, SHAFT)


def _broken(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    """A lid with cracks, or with a part missing: its broken flank shows, and below it the shaft."""
    _frame(sprite, cover, rays, rng)
    area = sprite.shape(cover, 1 - cover.frame)
    below, part = _hole(sprite, cover, rays, area, rng)
    _lay(sprite, cover, _top(cover, sprite.n, rays, rng), np.eye(2), np.zeros(2))
    missing, cracks = _damage(sprite, 1 - cover.frame, rng)
    sprite.over((14, 14, 14), cracks * area * 0.92, shows=BREAK)
    opening = missing * area
    # The shaft is seen from one thickness below on, so that the far edge of the opening shows the flank.
    shift = rays.view * 0.8 * THICK * sprite.n / 2 / sprite.span
    lower = cv2.warpAffine(opening, np.column_stack([np.eye(2), shift]), (sprite.n, sprite.n))
    tone = rng.uniform(0.6, 1.1)
    sprite.over((104 * tone, 84 * tone, 68 * tone), opening, shows=BREAK)
    sprite.over(0.8 * below, (opening * lower)[part], part)


DRAW: dict[int, Callable[[_Sprite, Cover, Rays, np.random.Generator], None]] = {
    GOOD: _closed,
    BROKE: _broken,
    LOSE: _open,
    UNCOVERED: _open,
    CIRCLE: _closed,
}


# --- a loose lid ----------------------------------------------------------------------------------------------------


def _loose_lid(size: int, cover: Cover, rays: Rays, rng: np.random.Generator) -> _Sprite:
    """The lid beside or across its opening: its edge, and its face on top."""
    inner, move, tilt = 1 - cover.frame, np.array(cover.move), np.array(cover.tilt)
    linear = np.eye(2) - np.outer(rays.view, tilt)
    middle = move - rays.view * (cover.lift + THICK / 2)
    span = inner * float(np.linalg.norm(linear, 2)) + THICK / 2 * float(np.hypot(*rays.view)) + 0.04
    sprite = _Sprite(_pixels(size * span), span, (float(middle[0]), float(middle[1])))
    # What lies below the street is seen through the opening only.
    x, y = sprite.x - float(move[0]), sprite.y - float(move[1])
    above = cover.lift + x * cover.tilt[0] + y * cover.tilt[1] >= 0
    keep = np.maximum(sprite.shape(cover, inner), above)
    coverage = disc(128, 1.0, cover.square)
    for z in np.linspace(0, THICK, 4):
        at = move - rays.view * (cover.lift + z)
        tone = float(0.7 + 3 * z)
        sprite.over((58 * tone, 52 * tone, 47 * tone), keep * sprite.place(coverage, inner * linear, at), shows=EDGE)
    top = _top(cover, sprite.n, rays, rng)
    top[..., :3] *= float(np.clip(1 - rays.share * (tilt @ rays.sun), 0.5, 1.4))
    _lay(sprite, cover, top, linear, move - rays.view * (cover.lift + THICK), keep)
    return sprite


def _lid_shadow(image: np.ndarray, cover: Cover, camera: Camera, rays: Rays) -> None:
    """What the lid takes from the ground and the frame: the sun in its shadow, and some of the sky close to it."""
    rim = RIM * (1 - cover.frame)
    height = np.maximum(cover.lift + rim @ np.array(cover.tilt), 0)[:, None]
    low, high = (rim + cover.move - rays.sun * (height + z) for z in (0.0, THICK))
    cast = cv2.convexHull(np.concatenate([low, high]).astype(np.float32))[:, 0].astype(np.float64)
    near = rim * 1.06 + cover.move
    masks = []
    for points in (cast, near):
        ground = np.array(cover.at) + points * cover.radius * [1, -1]
        masks.append(polygon_mask(camera.size, [camera.polygon(ground)]).astype(np.float32) / 255)
    width = np.ptp(outlines(cover, camera)[0][:, 0])
    seen = np.flatnonzero((masks[0] + masks[1]).any(axis=1))
    if len(seen):
        pad = int(0.1 * width) + 3
        rows = slice(max(0, int(seen[0]) - pad), int(seen[-1]) + pad)
        sun = cv2.GaussianBlur(masks[0][rows], (0, 0), max(0.6, 0.008 * width))
        sky = cv2.GaussianBlur(masks[1][rows], (0, 0), max(0.6, 0.025 * width))
        scale(image[rows], (1 - 0.62 * rays.share * sun) * (1 - 0.35 * sky))


# --- damage ---------------------------------------------------------------------------------------------------------

Break = tuple[np.ndarray, np.ndarray]  # outline (K, 2) of the missing part, and where the cracks start


def _break_rim(rng: np.random.Generator, inner: float) -> Break:
    """A wedge out of the edge."""
    angle, wide = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
    tip = _polar(inner * rng.uniform(0.15, 0.5), angle + rng.uniform(-0.3, 0.3))
    start, end = _polar(1.2 * inner, angle - wide), _polar(1.2 * inner, angle + wide)
    return np.concatenate([_jagged(rng, start, tip), _jagged(rng, tip, end), [_polar(2.0, angle)]]), tip


def _break_middle(rng: np.random.Generator, inner: float) -> Break:
    """A hole somewhere inside."""
    centre = _polar(rng.uniform(0, 0.3) * inner, rng.uniform(0, 2 * np.pi))
    turns = np.sort(rng.uniform(0, 2 * np.pi, 11))
    radii = inner * rng.uniform(0.22, 0.55) * rng.uniform(0.7, 1.25, 11)
    return centre + radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1), centre


def _break_half(rng: np.random.Generator, inner: float) -> Break:
    """About half of the lid, beyond a broken line."""
    angle, off = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.35)
    side, out = _polar(1.5, angle + np.pi / 2), _polar(1.0, angle)
    line = _jagged(rng, off * out - side, off * out + side, 0.07)
    return np.concatenate([line, [2 * out + side, 2 * out - side]]), off * out


def _break_none(rng: np.random.Generator, inner: float) -> Break:
    """Cracks alone."""
    return np.zeros((0, 2)), _polar(rng.uniform(0, 0.3) * inner, rng.uniform(0, 2 * np.pi))


def _damage(sprite: _Sprite, inner: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Missing part and cracks as (n, n) masks 0..1."""
    kinds = (_break_none, _break_rim, _break_middle, _break_half)
    kind = kinds[int(rng.choice(4, p=[0.3, 0.33, 0.2, 0.17]))]
    missing, cracks = np.zeros((sprite.n, sprite.n), np.uint8), np.zeros((sprite.n, sprite.n), np.uint8)
    unit = sprite.n / 2 / sprite.span

    def pixels(points: np.ndarray) -> np.ndarray:
        return (16 * ((sprite.n - 1) / 2 + points * unit)).round().astype(np.int32)

    shape, centre = kind(rng, inner)
    if len(shape):
        cv2.fillPoly(missing, [pixels(shape)], 255, cv2.LINE_AA, 4)
    first, bare = rng.uniform(0, 2 * np.pi), kind is _break_none
    count = int(rng.integers(2, 5) if bare else rng.integers(0, 4))
    width = max(1, round(unit * rng.uniform(0.025, 0.06))) + bare
    for i in range(count):
        end = _polar(1.1, first + 2 * np.pi * (i + rng.uniform(-0.25, 0.25)) / count)
        cv2.polylines(cracks, [pixels(_jagged(rng, centre, end, 0.05))], False, 255, width, cv2.LINE_AA, 4)
    return missing.astype(np.float32) / 255, cracks.astype(np.float32) / 255


def _polar(radius: float, angle: float) -> np.ndarray:
    return radius * np.array([np.cos(angle), np.sin(angle)])


def _jagged(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, rough: float = 0.05, steps: int = 9
) -> np.ndarray:
    """A broken line between two points."""
    line = start + np.linspace(0, 1, steps)[:, None] * (end - start)
    line[1:-1] += rng.normal(0, rough, (steps - 2, 2))
    return line


# --- into the image -------------------------------------------------------------------------------------------------

SIZES = (48, 64, 96, 128, 192, 256, 384)  # few sizes, so that the grids of pixels are found in their cache


def _pixels(want: float) -> int:
    """The next canvas size that is large enough, or the largest."""
    return next((size for size in SIZES if size >= want), SIZES[-1])


def draw(
    image: np.ndarray, cover: Cover, camera: Camera, sun: np.ndarray, share: float, parts: np.ndarray | None = None
) -> None:
    """Draw a cover into (H, W, 3) float32 albedo 0..255, in place.

    sun: (2,) horizontal direction towards the sun in the world, times the cotangent of its elevation.
    parts: (H, W) uint8 indices of PARTS, on which the cover is noted too.
    """
    wide, high = np.ptp(outlines(cover, camera)[0], axis=0)
    size = int(1.05 * max(wide, 1.5 * high))  # px over the cover's diameter
    rays, rng = Rays(parallax(cover, camera), sun * [1, -1], share), np.random.default_rng(cover.seed)
    span = 1.5 if cover.square else 1.04
    sprite = _Sprite(_pixels(size * span), span)
    DRAW[cover.label](sprite, cover, rays, rng)
    _paste(image, sprite, cover, camera, parts)
    if cover.label == LOSE:
        _lid_shadow(image, cover, camera, rays)
        _paste(image, _loose_lid(size, cover, rays, rng), cover, camera, parts)


def _paste(image: np.ndarray, sprite: _Sprite, cover: Cover, camera: Camera, parts: np.ndarray | None) -> None:
    """Warp the sprite into its part of the image, sampled more finely where it shrinks."""
    h, w = camera.size
    half = sprite.span * cover.radius
    middle = np.array(cover.at) + sprite.centre * cover.radius * [1, -1]
    corners = camera.project(middle + half * SQUARE_POINTS)
    left, top = np.floor(np.clip(corners.min(0), 0, (w, h))).astype(int)
    right, bottom = np.ceil(np.clip(corners.max(0), 0, (w, h))).astype(int)
    if right <= left or bottom <= top:
        return
    fx, fy = (min(max(round(sprite.n / side), 1), 4) for side in np.ptp(corners, axis=0))
    step = 2 * half / sprite.n
    x0, y0 = middle[0] - half, middle[1] + half
    to_ground = np.array([[step, 0, x0 + step / 2], [0, -step, y0 - step / 2], [0, 0, 1.0]])
    to_part = np.array([[fx, 0, -fx * left - 0.5], [0, fy, -fy * top - 0.5], [0, 0, 1.0]])
    canvas = to_uint8(four(sprite.rgb, 255 * sprite.alpha))
    size = (fx * (right - left), fy * (bottom - top))
    part = cv2.warpPerspective(canvas, to_part @ camera.ground @ to_ground, size)
    part = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    view = image[top:bottom, left:right]
    scale(view, 1 - cv2.extractChannel(part, 3).astype(np.float32) / 255)
    view += cv2.cvtColor(part, cv2.COLOR_RGBA2RGB)
    if parts is not None:
        seen, whole = parts[top:bottom, left:right], np.array([[1, 0, -left - 0.5], [0, 1, -top - 0.5], [0, 0, 1.0]])
        noted = cv2.warpPerspective(
            sprite.parts, whole @ camera.ground @ to_ground, seen.shape[::-1], flags=cv2.INTER_NEAREST
        )
        np.copyto(seen, noted, where=noted > 0)
