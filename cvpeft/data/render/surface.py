"""The street while it is painted: shapes in ground metres, and the brushes that lay them into the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cvpeft.data.render.blend import mix, scale
from cvpeft.data.render.camera import SHIFT, Camera, polygon_mask, to_fixed
from cvpeft.data.render.covers import Cover
from cvpeft.data.render.noise import smoothstep, sparse_blur

__all__ = ["RING", "Noise", "Surface", "blob", "quad", "ring", "thick", "turned"]

RING = np.stack([np.cos(TURN := np.linspace(0, 2 * np.pi, 40, endpoint=False)), np.sin(TURN)], 1)
Part = tuple[slice, slice]  # rows and columns of the image
Texture = Callable[[Part], np.ndarray]  # a part of the image to its (h, w, 3) colours
Shapes = list[np.ndarray] | np.ndarray  # ground polygons: a list of any, or an (N, K, 2) stack of small convex ones


class Noise:
    """Three independent noises of deviation 1 on the ground, (H, W) float32 each, enlarged when first asked for."""

    def __init__(self, small: np.ndarray, size: tuple[int, int], top: int) -> None:
        """small: (h, w, 3) float32 around 128, seen at low resolution; size: (H, W); above row `top` it is zero."""
        self._small, self._size, self._top = small, size, top
        self._large: dict[int, np.ndarray] = {}

    def __getitem__(self, which: int) -> np.ndarray:
        if which not in self._large:
            self._large[which] = self._enlarged(which)
        return self._large[which]

    def _enlarged(self, which: int) -> np.ndarray:
        part, (h, w) = cv2.extractChannel(self._small, which), self._size
        noise: np.ndarray = cv2.resize(part, (w, h), interpolation=cv2.INTER_LINEAR)
        noise -= 128
        noise *= np.float32(1 / 40)
        noise[: self._top] = 0
        return noise


@dataclass(frozen=True)
class Surface:
    """The street while it is painted.

    image: (H, W, 3) float32 albedo 0..255, changed in place; slow, fast: noise of deviation 1 that lies on
    the ground, bumps of metres and of decimetres; grit: (H, W) the stones themselves, how much brighter each pixel is
    than what is around it; left, right: edges of the road in metres; stone: name of the ground tile; covers: what will
    lie in it.
    """

    image: np.ndarray
    camera: Camera
    slow: Noise
    fast: Noise
    grit: np.ndarray
    left: float
    right: float
    stone: str
    covers: tuple[Cover, ...]

    def spot(self, rng: np.random.Generator, apart: float = 0.0) -> np.ndarray:
        """(2,) ground metres of a random pixel below the horizon, if possible `apart` metres from every cover's rim."""
        h, w = self.camera.size
        top = min(max(self.camera.horizon() + 0.12 * h, 0.05 * h), 0.9 * h)
        for _ in range(8):
            at = self.camera.to_ground(np.array([[rng.uniform(0.02, 0.98) * w, rng.uniform(top, h)]]))[0]
            if not apart or not self.taken(at, apart):
                break
        return np.asarray(at)

    def taken(self, at: np.ndarray, apart: float) -> bool:
        """Whether a cover's rim is nearer than `apart` metres."""
        return any(np.hypot(*(at - cover.at)) < apart + cover.radius for cover in self.covers)

    def mask(self, polygons: Shapes, soft: float = 0.0) -> tuple[np.ndarray, Part] | None:
        """Coverage 0..1 of ground polygons, blurred by `soft` px, and its part of the image; None: nothing is seen."""
        h, w = self.camera.size
        seen: Shapes
        if isinstance(polygons, np.ndarray):
            seen, _ = self.camera.polygons(polygons)
        else:
            seen = [p for p in map(self.camera.polygon, polygons) if len(p) > 2]
        if len(seen) == 0:
            return None
        points = np.concatenate(list(seen))
        left, top = np.floor(np.clip(points.min(0) - 4 - 3 * soft, 0, (w, h))).astype(int)
        right, bottom = np.ceil(np.clip(points.max(0) + 4 + 3 * soft, 0, (w, h))).astype(int)
        if right <= left or bottom <= top:
            return None
        moved: Shapes = (
            seen - np.array([left, top]) if isinstance(seen, np.ndarray) else [p - [left, top] for p in seen]
        )
        mask: np.ndarray = polygon_mask((bottom - top, right - left), moved).astype(np.float32) / 255
        if soft:
            mask = sparse_blur(mask, soft) if soft > 6 else cv2.GaussianBlur(mask, (0, 0), soft)
        return mask, (slice(top, bottom), slice(left, right))

    def paint(
        self, polygons: Shapes, rgb: Sequence[float] | Texture, alpha: float, worn: float = 0.0, soft: float = 0.0
    ) -> None:
        """Blend a colour into ground polygons; `worn` 0..1 lets the ground through, `soft` px blurs the edge."""
        found = self.mask(polygons, soft)
        if found is None:
            return
        mask, part = found
        if worn:
            flakes = 0.55 * self.fast[0][part] + 0.4 * self.slow[1][part] + 0.45 * self.grit[part]
            mask = mask * smoothstep(flakes, 2.6 * worn - 2.0, 2.6 * worn - 2.5)
        mix(self.image[part], rgb(part) if callable(rgb) else rgb, alpha * mask)

    def mixture(self, tone: float) -> Texture:
        """Asphalt or cement of another mix, with grain of its own."""

        def texture(part: Part) -> np.ndarray:
            grey = tone * (1 + 0.05 * self.grit[part] + 0.06 * self.fast[2][part])
            return cv2.merge([grey, 0.995 * grey, 0.975 * grey])

        return texture

    def shade(self, polygons: Shapes, factor: float, soft: float = 0.0, ragged: float = 0.0) -> None:
        """Multiply ground polygons by a factor; `ragged` lets the fine noise of the ground eat into the edge."""
        found = self.mask(polygons, soft)
        if found is None:
            return
        mask, part = found
        if ragged:
            mask = smoothstep(mask * (1 + ragged * (self.fast[0][part] + 0.6 * self.fast[2][part])), 0.2, 1.0)
        scale(self.image[part], 1 + (factor - 1) * mask)

    def scatter(self, stack: np.ndarray, colours: np.ndarray, shadow: float = 0.6) -> None:
        """Lay many small things, (N, K, 2) metres with (N, 3) colours, each with a thin shadow at its lower edge."""
        seen, kept = self.camera.polygons(stack)
        layer = np.zeros((*self.camera.size, 3), np.uint8)
        for fixed, colour in zip(to_fixed(seen), colours[kept].tolist(), strict=True):
            cv2.fillConvexPoly(layer, fixed, colour, cv2.LINE_8, SHIFT)
        mask = polygon_mask(self.camera.size, seen)
        under = polygon_mask(self.camera.size, seen + np.array([0.6, 1.2]))
        hit = np.flatnonzero(under.any(axis=1))
        if len(hit) == 0:
            return
        rows = slice(max(0, int(hit[0]) - 3), int(hit[-1]) + 1)
        scale(self.image[rows], 1 - np.float32((1 - shadow) / 255) * under[rows])
        mix(self.image[rows], cv2.dilate(layer[rows], np.ones((3, 3), np.uint8)), mask[rows] * np.float32(1 / 255))


# --- shapes in metres -------------------------------------------------------------------------------------------------


def quad(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def turned(points: np.ndarray, angle: float, at: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + at


def blob(rng: np.random.Generator, radius: float, rough: float = 0.25) -> np.ndarray:
    """A closed wavy outline around the origin."""
    wave = sum(rng.normal(0, rough / k) * np.cos(k * TURN + rng.uniform(0, 6.3)) for k in range(1, 6))
    return RING * (radius * np.exp(wave))[:, None] * rng.uniform(0.7, 1.3, 2)


def thick(points: np.ndarray, width: np.ndarray) -> np.ndarray:
    """A line on the ground as (N - 1, 4, 2) quads, of its own width at each point."""
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = np.stack([-along[:, 1], along[:, 0]], 1) * width[:, None] / 2
    a, b = points + side, points - side
    return np.stack([a[:-1], a[1:], b[1:], b[:-1]], 1)


def ring(at: np.ndarray, outer: float, inner: float, part: float = 1.0, start: float = 0.0) -> np.ndarray:
    """A ring, or a part of one, as (48, 4, 2) quads."""
    turn = start + np.linspace(0, 2 * np.pi * part, 49)
    middle = at + (outer + inner) / 2 * np.stack([np.cos(turn), np.sin(turn)], 1)
    return thick(middle, np.full(49, outer - inner))
