"""Covers as pictures: a flat sprite for each of the five classes, drawn from above and warped into the image.

Depth and height are drawn by parallax (covers.py): a point at height z appears moved by -view * z, and its shadow lies
at -sun * z, with `sun` the direction towards the sun times the cotangent of its elevation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from cvpeft.data.render.blend import mix, scale
from cvpeft.data.render.camera import Camera
from cvpeft.data.render.covers import (
    BROKE,
    CIRCLE,
    GOOD,
    LOSE,
    SQUARE_POINTS,
    THICK,
    UNCOVERED,
    Cover,
    outlines,
    parallax,
    turned,
)
from cvpeft.data.render.noise import fractal, slopes, smoothstep, to_uint8
from cvpeft.data.render.patterns import disc, face, grid, lid

__all__ = ["draw"]


@dataclass(frozen=True)
class Rays:
    """Directions on the ground, in sprite axes, times the cotangent of the elevation; share: of the sun in the light, 0..1."""

    view: np.ndarray
    sun: np.ndarray
    share: float


# --- the sprite -----------------------------------------------------------------------------------------------------


class _Sprite:
    """A canvas of (n, n) pixels over [-span, span]; colour (n, n, 3) is multiplied by coverage (n, n)."""

    def __init__(self, n: int, span: float) -> None:
        self.n, self.span = n, span
        x, y, *_ = grid(n)
        self.x, self.y = x * span, y * span
        self.rgb = np.zeros((n, n, 3), np.float32)
        self.alpha = np.zeros((n, n), np.float32)

    def over(self, rgb: np.ndarray, alpha: np.ndarray) -> None:
        """Lay a layer on top; rgb is not multiplied by alpha."""
        mix(self.rgb, rgb, alpha)
        self.alpha += (1 - self.alpha) * alpha

    def shape(self, cover: Cover, radius: float, at: np.ndarray | tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """Coverage of the cover's shape of this radius around `at`."""
        if cover.square:
            return self.place(disc(self.n, 1.0, True), radius * turned(cover.turn), np.array(at))
        away = np.hypot(self.x - at[0], self.y - at[1])
        return np.clip((radius - away) * self.n / 2 / self.span + 0.5, 0, 1)

    def place(self, canvas: np.ndarray, linear: np.ndarray, at: np.ndarray) -> np.ndarray:
        """A canvas over [-1, 1], moved by an affine map of sprite units; zero outside."""
        m = len(canvas)
        scale = self.n / self.span / m
        half, middle = (m - 1) / 2, (self.n - 1) / 2
        offset = middle + at * self.n / 2 / self.span - scale * linear @ np.array([half, half])
        matrix = np.column_stack([scale * linear, offset])
        return cv2.warpAffine(canvas, matrix, (self.n, self.n), flags=cv2.INTER_LINEAR)


def _lit(rgb: np.ndarray, height: np.ndarray, sun: np.ndarray, share: float, strength: float) -> np.ndarray:
    """Relief in the sun, and a little of it under a grey sky, where light comes from above the horizon behind."""
    slope = slopes(height, strength)
    soft = np.array([0.15, -0.25])
    shade = 1 - slope @ (sun * share + soft * (1 - share)).astype(np.float32)
    return rgb * np.clip(shade, 0.35, 1.7)[..., None]


def _frame(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    """The ring that the lid lies in: iron or concrete, with a seat that is darker."""
    n, inner = sprite.n, 1 - cover.frame
    noise = cv2.resize(fractal(rng, 128, 8, 4), (n, n))
    iron = cover.material.iron * rng.uniform(0.75, 1.15)
    tone = np.array([1.0, 0.97, 0.93]) * (iron if rng.random() < 0.85 else 150)
    tone = tone + (np.array([iron * 1.2, iron * 0.82, iron * 0.6]) - tone) * cover.material.rust * 0.6
    ring = sprite.shape(cover, 1.0)
    rgb = tone * (1 + 0.08 * noise)[..., None]
    height = cv2.GaussianBlur(ring - 1.0 * sprite.shape(cover, inner), (0, 0), max(0.6, n / 160))
    sprite.over(_lit(rgb.astype(np.float32), height, rays.sun, rays.share, n / 90), ring)
    groove = sprite.shape(cover, inner + 0.012) - sprite.shape(cover, inner - 0.02)
    sprite.over(np.full((n, n, 3), 24, np.float32), np.clip(groove, 0, 1) * 0.8)


def _top(cover: Cover, n: int, rays: Rays, rng: np.random.Generator) -> np.ndarray:
    """The lid's face, lit: (m, m, 4) float32 over [-1, 1], colour not multiplied, coverage last."""
    m = max(32, int(n * (1 - cover.frame)) // 2 * 2)
    draw_face = lid if cover.label == CIRCLE else face
    rgb, height = draw_face(cover.face, rng, m, cover.material, cover.square)
    sun = turned(cover.turn).T @ rays.sun
    rgb = _lit(rgb, height, sun, rays.share, 2.2 * m / 192)
    return np.dstack([rgb, disc(m, 1.0 - 1.0 / m, cover.square)])


def _lay(
    sprite: _Sprite, cover: Cover, top: np.ndarray, linear: np.ndarray, at: np.ndarray, keep: np.ndarray | float = 1.0
) -> None:
    """Lay a lit lid on the sprite."""
    premultiplied = top.copy()
    premultiplied[..., :3] *= top[..., 3:]
    layer = sprite.place(premultiplied, (1 - cover.frame) * linear @ turned(cover.turn), at)
    alpha = layer[..., 3]
    rgb = layer[..., :3] / np.maximum(alpha, 1e-3)[..., None]
    sprite.over(rgb, alpha * keep)


def _hole(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> np.ndarray:
    """(n, n, 3) colour of the shaft below: the line of sight of each pixel is followed to the wall or to the bottom."""
    inner, depth = 1 - cover.frame, rng.uniform(1.6, 4.0)
    view = rays.view if np.hypot(*rays.view) > 0.05 else np.array([0.0, 0.05])
    px, py = sprite.x, sprite.y
    along, square = px * view[0] + py * view[1], float(view @ view)
    root = np.sqrt(np.maximum(along**2 - square * (px**2 + py**2 - inner**2), 0))
    down = np.clip((along + root) / square, 0, depth)
    qx, qy = px - down * view[0], py - down * view[1]
    bottom = down >= depth
    light = np.exp(-down / rng.uniform(0.4, 0.9)) * (0.62 - 0.2 * rays.share)
    inside = np.hypot(qx + rays.sun[0] * down, qy + rays.sun[1] * down) < inner
    facing = np.clip(-(qx * rays.sun[0] + qy * rays.sun[1]) / (np.hypot(*rays.sun) * inner + 1e-6), 0, 1)
    light = light * (1 - rays.share) + rays.share * (0.35 * light + 0.9 * inside * facing * (down < depth))
    courses = _joints(qx, qy, down) * (~bottom)
    tone = np.array([(122.0, 116, 106), (118, 92, 80), (108, 106, 102)][rng.integers(3)])
    rgb = tone * (light * (1 - 0.45 * courses))[..., None]
    iron = smoothstep(down, 0.3, 0.22)[..., None]
    rgb = rgb * (1 - iron) + np.array([74.0, 70, 66]) * (0.35 + 0.65 * light[..., None]) * iron
    if rng.random() < 0.35:  # water at the bottom mirrors the bright opening
        rgb = np.where(bottom[..., None] & (np.hypot(qx - 0.2, qy) < 0.5 * inner)[..., None], rng.uniform(40, 110), rgb)
    return rgb.astype(np.float32)


def _joints(qx: np.ndarray, qy: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Joints of the shaft's brick or ring courses, 0..1."""
    row = down / 0.18
    turn = np.arctan2(qy, qx) * (18 / (2 * np.pi)) + 0.5 * (np.floor(row) % 2)
    return np.maximum(np.abs((row % 1) - 0.5) > 0.43, np.abs((turn % 1) - 0.5) > 0.45).astype(np.float32)


# --- the five classes -----------------------------------------------------------------------------------------------


def _good(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    _frame(sprite, cover, rays, rng)
    _lay(sprite, cover, _top(cover, sprite.n, rays, rng), np.eye(2), np.zeros(2))
    _edge_shadow(sprite, cover, rays, rng.uniform(0.0, 0.05))


def _edge_shadow(sprite: _Sprite, cover: Cover, rays: Rays, deep: float) -> None:
    """The frame's shadow on a lid that lies `deep` radii lower."""
    inner = 1 - cover.frame
    lid_area = sprite.shape(cover, inner)
    lit = sprite.shape(cover, inner, -rays.sun * deep)
    shadow = cv2.GaussianBlur(lid_area * (1 - lit), (0, 0), 0.8) * lid_area
    sprite.over(np.zeros_like(sprite.rgb), 0.75 * shadow * rays.share)


def _circle(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    _frame(sprite, cover, rays, rng)
    _lay(sprite, cover, _top(cover, sprite.n, rays, rng), np.eye(2), np.zeros(2))
    _edge_shadow(sprite, cover, rays, rng.uniform(0.0, 0.1))


def _uncovered(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    _frame(sprite, cover, rays, rng)
    sprite.over(_hole(sprite, cover, rays, rng), sprite.shape(cover, 1 - cover.frame))


def _lose(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    _uncovered(sprite, cover, rays, rng)
    inner, move, tilt = 1 - cover.frame, np.array(cover.move), np.array(cover.tilt)
    coverage = disc(128, 1.0, cover.square)

    def seen(direction: np.ndarray, z: float) -> np.ndarray:
        linear = inner * (np.eye(2) - np.outer(direction, tilt)) @ turned(cover.turn)
        return sprite.place(coverage, linear, move - direction * (cover.lift + z))

    shadow = cv2.GaussianBlur(np.maximum(seen(rays.sun, 0.0), seen(rays.sun, THICK)), (0, 0), 1.0)
    around = cv2.GaussianBlur(seen(np.zeros(2), 0.0), (0, 0), sprite.n / sprite.span * 0.06)
    sprite.over(np.zeros_like(sprite.rgb), np.clip(0.62 * rays.share * shadow + 0.4 * around, 0, 0.8))
    # What lies below the street is seen through the opening only.
    height = cover.lift + (sprite.x - move[0]) * tilt[0] + (sprite.y - move[1]) * tilt[1]
    keep = np.maximum(sprite.shape(cover, inner), height >= 0)
    edge = np.array([58.0, 52, 47], np.float32)
    for z in np.linspace(0, THICK, 4):
        sprite.over(np.broadcast_to(edge * (0.7 + 3 * z), sprite.rgb.shape), seen(rays.view, float(z)) * keep)
    linear = np.eye(2) - np.outer(rays.view, tilt)
    shade = float(np.clip(1 - rays.share * (tilt @ rays.sun), 0.5, 1.4))
    top = _top(cover, sprite.n, rays, rng)
    top[..., :3] *= shade
    _lay(sprite, cover, top, linear, move - rays.view * (cover.lift + THICK), keep)


def _broke(sprite: _Sprite, cover: Cover, rays: Rays, rng: np.random.Generator) -> None:
    _frame(sprite, cover, rays, rng)
    below = _hole(sprite, cover, rays, rng)
    _lay(sprite, cover, _top(cover, sprite.n, rays, rng), np.eye(2), np.zeros(2))
    inner = 1 - cover.frame
    missing, cracks = _damage(sprite, inner, rng)
    area = sprite.shape(cover, inner)
    sprite.over(np.full_like(sprite.rgb, 14), cracks * area * 0.92)
    opening = missing * area
    # The far edge of the opening shows the lid's broken flank; the shaft begins one thickness lower.
    matrix = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
    matrix[:, 2] = rays.view * 0.8 * THICK * sprite.n / 2 / sprite.span
    lower = cv2.warpAffine(opening, matrix, (sprite.n, sprite.n))
    flank = np.array([104.0, 84, 68]) * rng.uniform(0.6, 1.1)
    sprite.over(np.broadcast_to(flank.astype(np.float32), sprite.rgb.shape), opening)
    sprite.over(0.8 * below, opening * lower)


def _damage(sprite: _Sprite, inner: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Missing part and cracks as (n, n) masks 0..1."""
    n, unit = sprite.n, sprite.n / 2 / sprite.span
    missing, cracks = np.zeros((n, n), np.uint8), np.zeros((n, n), np.uint8)
    kind = rng.choice(["crack", "rim", "middle", "half"], p=[0.3, 0.33, 0.2, 0.17])

    def pixels(points: np.ndarray) -> np.ndarray:
        return (16 * ((n - 1) / 2 + points * unit)).round().astype(np.int32)

    width = max(1, round(unit * rng.uniform(0.025, 0.06)))
    centre = _polar(rng.uniform(0, 0.3) * inner, rng.uniform(0, 2 * np.pi))
    if kind == "rim":
        angle, wide = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
        tip = _polar(inner * rng.uniform(0.15, 0.5), angle + rng.uniform(-0.3, 0.3))
        start, end = _polar(1.2 * inner, angle - wide), _polar(1.2 * inner, angle + wide)
        shape = np.concatenate([_jagged(rng, start, tip), _jagged(rng, tip, end), [_polar(2.0, angle)]])
        cv2.fillPoly(missing, [pixels(shape)], 255, cv2.LINE_AA, 4)
        centre = tip
    elif kind == "middle":
        turns = np.sort(rng.uniform(0, 2 * np.pi, 11))
        radii = inner * rng.uniform(0.22, 0.55) * rng.uniform(0.7, 1.25, 11)
        shape = centre + radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
        cv2.fillPoly(missing, [pixels(shape)], 255, cv2.LINE_AA, 4)
    elif kind == "half":
        angle, off = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.35)
        side, out = _polar(1.5, angle + np.pi / 2), _polar(1.0, angle)
        shape = np.concatenate(
            [_jagged(rng, off * out - side, off * out + side, 0.07), [2 * out + side, 2 * out - side]]
        )
        cv2.fillPoly(missing, [pixels(shape)], 255, cv2.LINE_AA, 4)
        centre = off * out
    first = rng.uniform(0, 2 * np.pi)
    count = int(rng.integers(2, 5)) if kind == "crack" else int(rng.integers(0, 4))
    for i in range(count):
        end = _polar(1.1, first + 2 * np.pi * (i + rng.uniform(-0.25, 0.25)) / count)
        line = pixels(_jagged(rng, centre, end, 0.05))
        cv2.polylines(cracks, [line], False, 255, width + (kind == "crack"), cv2.LINE_AA, 4)
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


DRAW: dict[int, Callable[[_Sprite, Cover, Rays, np.random.Generator], None]] = {GOOD: _good, BROKE: _broke, LOSE: _lose, UNCOVERED: _uncovered, CIRCLE: _circle}
SIZES = (48, 64, 96, 128, 192, 256, 384)


def draw(image: np.ndarray, cover: Cover, camera: Camera, sun: np.ndarray, share: float) -> None:
    """Draw a cover into (H, W, 3) float32 albedo 0..255, in place.

    sun: (2,) horizontal direction towards the sun in the world, times the cotangent of its elevation.
    """
    wide, high = np.ptp(outlines(cover, camera)[0], axis=0)
    span = 2.1 if cover.label == LOSE else 1.5 if cover.square else 1.04
    want = span * max(wide, 1.5 * high) * 1.05
    n = next((size for size in SIZES if size >= want), SIZES[-1])
    sprite = _Sprite(n, span)
    rays = Rays(parallax(cover, camera), sun * [1, -1], share)
    DRAW[cover.label](sprite, cover, rays, np.random.default_rng(cover.seed))
    _paste(image, sprite, cover, camera, (n / span / max(wide, 1), n / span / max(high, 1)))


def _paste(image: np.ndarray, sprite: _Sprite, cover: Cover, camera: Camera, shrink: tuple[float, float]) -> None:
    """Warp the sprite into its part of the image, sampled more finely where it shrinks."""
    h, w = camera.size
    half = sprite.span * cover.radius
    corners = camera.project(np.array(cover.at) + half * SQUARE_POINTS)
    left, top = np.floor(np.clip(corners.min(0), 0, (w, h))).astype(int)
    right, bottom = np.ceil(np.clip(corners.max(0), 0, (w, h))).astype(int)
    if right <= left or bottom <= top:
        return
    fx, fy = int(np.clip(round(shrink[0]), 1, 3)), int(np.clip(round(shrink[1]), 1, 5))
    step = 2 * half / sprite.n
    x0, y0 = cover.at[0] - half, cover.at[1] + half
    to_ground = np.array([[step, 0, x0 + step / 2], [0, -step, y0 - step / 2], [0, 0, 1.0]])
    to_part = np.array([[fx, 0, -fx * left - 0.5], [0, fy, -fy * top - 0.5], [0, 0, 1.0]])
    canvas = to_uint8(np.dstack([sprite.rgb, 255 * sprite.alpha]))
    part = cv2.warpPerspective(canvas, to_part @ camera.ground @ to_ground, (fx * (right - left), fy * (bottom - top)))
    part = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA).astype(np.float32)
    view = image[top:bottom, left:right]
    scale(view, 1 - part[..., 3] / 255)
    view += part[..., :3]
