"""Sun, sky and weather of a scene: cast shadows, wet ground, and the light that falls on everything."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cvpeft.data.render.blend import scale, three
from cvpeft.data.render.camera import Camera, polygon_mask
from cvpeft.data.render.cities import City
from cvpeft.data.render.noise import smoothstep
from cvpeft.data.render.surface import Noise

__all__ = ["Light", "draw_light", "illuminate", "shadow_mask", "wet_ground"]


@dataclass(frozen=True)
class Light:
    """sun: (2,) ground direction to the sun times the cotangent of its elevation; elevation: radians; share: the sun's.

    sun_rgb, sky_rgb: colours of the two lights; horizon, zenith: colours of the sky, 0..255; wet: 0 dry .. 1 puddles;
    gain: brightness.
    """

    sun: tuple[float, float]
    elevation: float
    share: float
    sun_rgb: tuple[float, float, float]
    sky_rgb: tuple[float, float, float]
    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    wet: float
    gain: float
    dusk: bool

    @property
    def clear(self) -> bool:
        """Whether the sun throws shadows."""
        return self.share > 0.3


def draw_light(city: City, rng: np.random.Generator) -> Light:
    """Draw the hour and the weather of one scene."""
    elevation, azimuth = np.radians(rng.uniform(*city.sun)), rng.uniform(0, 2 * np.pi)
    sunny, wet, dusk = rng.random() < city.sunny, rng.random() < city.wet, rng.random() < city.dusk
    share = float(rng.uniform(0.45, 0.63) if sunny and not dusk else rng.uniform(0.0, 0.12))
    low = float(np.clip(1 - np.degrees(elevation) / 40, 0, 1))
    sun_rgb = (1.04 + 0.12 * low, 1.0, 0.95 - 0.22 * low)
    sky_rgb = (0.94, 0.99, 1.07) if share > 0.3 else (0.97, 1.0, 1.04)
    horizon, zenith = ((206, 218, 232), (104, 152, 214)) if share > 0.3 else ((208, 211, 214), (176, 182, 190))
    gain = float(rng.uniform(0.9, 1.1))
    if dusk:
        sky_rgb, horizon, zenith = (0.9, 0.97, 1.1), (118, 124, 136), (62, 74, 104)
        gain = float(rng.uniform(0.32, 0.6))
    reach = min(1 / np.tan(elevation), 4.0)
    sun = (float(np.cos(azimuth) * reach), float(np.sin(azimuth) * reach))
    level = float(rng.uniform(0.35, 1.0)) if wet else 0.0
    return Light(sun, float(elevation), share, sun_rgb, sky_rgb, horizon, zenith, level, gain, dusk)


# --- cast shadows ---------------------------------------------------------------------------------------------------


def shadow_mask(camera: Camera, light: Light, rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """(H, W) float32, 1 in full shadow; things that stand around `centre` (ground metres) throw it."""
    h, w = camera.size
    if not light.clear:
        return np.zeros((h, w), np.float32)
    away = -np.array(light.sun)
    large: list[np.ndarray] = []
    small: list[np.ndarray] = []
    for chance, thing in ((0.4, _tree), (0.35, _pole), (0.22, _building), (0.1, _vehicle), (0.1, _wires)):
        if rng.random() < chance:
            shapes, leaves = thing(rng, centre, away)
            large += shapes
            small += leaves
    mask = polygon_mask((h, w), [camera.polygon(points) for points in large])
    if small:
        mask = np.maximum(mask, polygon_mask((h, w), camera.polygons(np.concatenate(small))[0]))
    # The sun is half a degree wide: the edge of a shadow from 2 to 5 metres up is 2 to 5 cm wide.
    edge = camera.project(centre + np.array([[0, 0], [rng.uniform(0.006, 0.02), 0]]))
    return cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), max(0.7, float(np.ptp(edge[:, 0]))))


def _strip(start: np.ndarray, end: np.ndarray, width: float, narrow: float = 1.0) -> np.ndarray:
    along = (end - start) / (np.linalg.norm(end - start) + 1e-9)
    side = np.array([-along[1], along[0]]) * width / 2
    return np.stack([start - side, start + side, end + side * narrow, end - side * narrow])


def _foot(rng: np.random.Generator, centre: np.ndarray, away: np.ndarray, height: float) -> np.ndarray:
    """A foot point from which the shadow of something `height` tall passes near the centre."""
    target = centre + rng.normal(0, 1.0, 2)
    return np.asarray(target - away * height * rng.uniform(0.3, 0.95))


Thrown = tuple[list[np.ndarray], list[np.ndarray]]  # (N, 2) polygons, and (N, K, 2) stacks of small ones
EIGHT = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)


def _pole(rng: np.random.Generator, centre: np.ndarray, away: np.ndarray) -> Thrown:
    height = rng.uniform(3, 8)
    foot = _foot(rng, centre, away, height)
    parts = [_strip(foot, foot + away * height, rng.uniform(0.08, 0.22), 0.6)]
    if rng.random() < 0.4:  # a round sign, drawn out by a low sun
        top, radius = foot + away * height * rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.4)
        turn = np.linspace(0, 2 * np.pi, 24)[:, None]
        parts.append(
            top + radius * (np.cos(turn) * away + np.sin(turn) * np.array([-away[1], away[0]]) / np.hypot(*away))
        )
    return parts, []


def _tree(rng: np.random.Generator, centre: np.ndarray, away: np.ndarray) -> Thrown:
    """A trunk, boughs, and a crown of leaves in tufts with the sun between them."""
    height, spread = rng.uniform(4, 9), rng.uniform(0.9, 2.4)
    foot = _foot(rng, centre, away, height)
    crown = foot + away * height * 0.8
    parts = [_strip(foot, crown, rng.uniform(0.15, 0.4), 0.4)]
    stretch = 1 + 0.35 * np.abs(away)
    tufts = crown + rng.normal(0, 0.55, (int(rng.integers(12, 40)), 2)) * spread * stretch
    parts += [_strip(crown + rng.normal(0, 0.2, 2), tuft, 0.05, 0.4) for tuft in tufts[:8]]
    count = int(rng.integers(400, 1100))
    at = tufts[rng.integers(len(tufts), size=count)] + rng.normal(0, 0.2, (count, 2)) * spread * stretch
    turn, size = rng.uniform(0, np.pi, count), rng.exponential(0.06, (count, 1, 1)) + 0.025
    spin = np.stack([np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)], 1).reshape(count, 2, 2)
    leaf = EIGHT * size * np.stack([np.ones(count), rng.uniform(0.25, 0.7, count)], 1)[:, None]
    return parts, [at[:, None] + leaf @ spin]


def _building(rng: np.random.Generator, centre: np.ndarray, away: np.ndarray) -> Thrown:
    """Everything on the sun's side of an edge that runs along or across the street, with a step in it."""
    axis = int(rng.random() < 0.3)
    edge = centre[axis] + rng.normal(0, 1.2)
    far = edge - np.sign(away[axis] + 1e-9) * 60
    cut, step = centre[1 - axis] + rng.normal(0, 2.5), rng.uniform(-1.5, 1.5)
    line = [(edge, -80.0), (edge, cut), (edge + step, cut), (edge + step, 80.0), (far, 80.0), (far, -80.0)]
    points = np.array(line)
    return [points if axis == 0 else points[:, ::-1]], []


def _vehicle(rng: np.random.Generator, centre: np.ndarray, away: np.ndarray) -> Thrown:
    """A car that stands beside the view: its body, and its cabin that is shorter."""
    low = centre - away * 1.2 + rng.normal(0, 0.7, 2) + [rng.choice([-2.6, 1.2]), 0]
    body = low + np.array([(0, -2), (1.8, -2), (1.8, 2), (0, 2)])
    cabin = low + np.array([(0.2, -1.5), (1.6, -1.5), (1.6, 0.8), (0.2, 0.8)])
    both = [np.concatenate([part, part + away * top]).astype(np.float32) for part, top in ((body, 0.9), (cabin, 1.45))]
    return [cv2.convexHull(part)[:, 0].astype(np.float64) for part in both], []


def _wires(rng: np.random.Generator, centre: np.ndarray, away: np.ndarray) -> Thrown:
    angle = rng.uniform(0, np.pi)
    along = 30 * np.array([np.cos(angle), np.sin(angle)])
    middle = centre + rng.normal(0, 0.8, 2)
    return [
        _strip(middle + i * 0.35 - along, middle + i * 0.35 + along, 0.035) for i in range(int(rng.integers(1, 4)))
    ], []


# --- water ----------------------------------------------------------------------------------------------------------


def _rays(camera: Camera) -> np.ndarray:
    """(H/8, W/8, 3) unit directions of sight; enough for what changes slowly."""
    h, w = camera.size
    u, v = np.meshgrid((np.arange(w // 8) + 0.5) * 8, (np.arange(h // 8) + 0.5) * 8)
    local = np.dstack([(u - w / 2) / camera.focal, (v - h / 2) / camera.focal, np.ones_like(u)])
    world = local @ camera.axes
    return np.asarray(world / np.linalg.norm(world, axis=2, keepdims=True))


def wet_ground(
    albedo: np.ndarray, camera: Camera, light: Light, slow: Noise, dry: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Darken the wet albedo in place and return (H, W, 3) float32 mirrored light, 0..255, to add after lighting.

    slow: noise of the ground; dry: (H, W) 0..1, where no puddle stands.
    """
    h, w = camera.size
    edge = 1.9 - 1.5 * light.wet + 0.25 * slow[1]
    puddle = smoothstep(slow[2] + 0.25 * slow[0], edge, edge + 0.22) * (1 - dry)
    damp = np.clip(light.wet * (0.8 + 0.35 * slow[1]), 0, 1)
    scale(albedo, 1 - 0.42 * damp - 0.25 * puddle * (1 - damp))
    rays = _rays(camera)
    falling = np.clip(-rays[..., 2], 0.02, 1)
    fresnel = np.clip(0.03 + 1.3 * (1 - falling) ** 4, 0, 0.85)
    bounce = rays * [1, 1, -1]
    towards = np.array([*light.sun, 1.0])
    glint = np.clip(bounce @ (towards / np.linalg.norm(towards)), 0, 1)
    sky = _sky(bounce[..., 2], light, rng, w)
    mirrored = cv2.resize((fresnel[..., None] * sky).astype(np.float32), (w, h))
    broad, sharp = (
        cv2.resize((light.share * glint**power * most).astype(np.float32), (w, h))
        for power, most in ((24, 90), (200, 300))
    )
    amount = 0.32 * damp * (0.8 + 0.2 * slow[0]) + puddle
    scale(mirrored, np.clip(amount, 0, 1))
    glitter = three(broad * damp + sharp * puddle)
    scale(glitter, light.sun_rgb)
    return cv2.addWeighted(mirrored, light.gain, glitter, light.gain, 0)


def _sky(up: np.ndarray, light: Light, rng: np.random.Generator, w: int) -> np.ndarray:
    """(h, w, 3) what the water mirrors: the sky, and dark houses or trees low above the horizon."""
    t = np.clip(up / 0.7, 0, 1)[..., None]
    sky = np.array(light.horizon) * (1 - t) + np.array(light.zenith) * t
    blocks = cv2.resize(rng.random((1, 9), dtype=np.float32), (up.shape[1], 1), interpolation=cv2.INTER_CUBIC)
    roof = 0.15 + 0.5 * blocks * rng.uniform(0.2, 1.2)
    house = smoothstep(up, roof + 0.16, roof - 0.16)[..., None]
    return np.asarray(sky * (1 - 0.6 * house))


# --- light on everything --------------------------------------------------------------------------------------------


def illuminate(
    albedo: np.ndarray, camera: Camera, light: Light, shadow: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(H, W, 3) float32 lit colours of the ground, 0..255."""
    sun = np.array(light.sun_rgb, np.float32) * (light.share * light.gain)
    sky = np.array(light.sky_rgb, np.float32) * ((1 - light.share) * light.gain)
    # Three channels to three: OpenCV has fast code for that, and none for one channel to three.
    lit = cv2.transform(three(1 - shadow), np.column_stack([np.diag(sun), sky]))
    if light.dusk:
        lit += _lamp(camera, rng)
    return cv2.multiply(albedo, lit)


def _lamp(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) pool of a street lamp or of headlights."""
    h, w = camera.size
    u, v = rng.uniform(0, w), rng.uniform(0.3 * h, h)
    x, y = np.meshgrid((np.arange(w // 8) * 8 - u) / w, (np.arange(h // 8) * 8 - v) / h)
    pool = np.exp(-(x**2) / rng.uniform(0.1, 0.4) - y**2 / rng.uniform(0.06, 0.3)).astype(np.float32)
    warm = np.array([(1.0, 0.78, 0.5), (1.0, 0.97, 0.9)][rng.integers(2)], np.float32)
    return cv2.resize(pool, (w, h))[..., None] * warm * np.float32(rng.uniform(0.1, 0.5))
