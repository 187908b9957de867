"""One photograph of a street with covers, from a seed: first the plan (what stands where), then the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.blend import lay, scale
from cvpeft.data.render.camera import Camera, polygon_mask
from cvpeft.data.render.cities import City, Mix
from cvpeft.data.render.clutter import after_covers, before_covers, collar
from cvpeft.data.render.covers import BROKE, CIRCLE, GOOD, LOSE, UNCOVERED, Cover, box, gap, outlines, visible
from cvpeft.data.render.ground import look, macro
from cvpeft.data.render.light import Light, draw_light, illuminate, shadow_mask, wet_ground
from cvpeft.data.render.noise import Slopes, along
from cvpeft.data.render.patterns import LIDS, Material
from cvpeft.data.render.photo import bonnet_mask, paint_bonnet, photograph
from cvpeft.data.render.sprite import draw
from cvpeft.data.render.street import KERB, Street, backdrop, kerb_parts
from cvpeft.data.render.surface import Noise, Surface
from cvpeft.data.render.tiles import tile

__all__ = ["Plan", "Scene", "paint", "paint_street", "plan", "render_scene"]

LEAST_VISIBLE = 0.35  # share of a cover that must lie in the image
LEAST_SIDE = 16.0  # px, the shorter side of a box
LEAST_GAP = 0.18  # share of a loose cover's opening that must be seen


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8 RGB; boxes: (N, 4) float64 xywh px inside it; labels: (N,) int64 1..K as in CLASSES.

    parts: (H, W) uint8 indices of PARTS, what each pixel shows, whatever lies upon it.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    parts: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first pixel is painted; bonnet: (rise, lean) or None."""

    city: City
    seed: int
    camera: Camera
    light: Light
    street: Street
    covers: tuple[Cover, ...]
    bonnet: tuple[float, float] | None


def render_scene(city: City, rng_seed: int, size: tuple[int, int]) -> Scene:
    """Plan and paint one image of (h, w) pixels; the same arguments (seed: 0 or more) give the same bytes."""
    made = plan(city, rng_seed, size)
    boxes = np.array([box(cover, made.camera) for cover in made.covers]).reshape(-1, 4)
    labels = np.array([cover.label for cover in made.covers], np.int64)
    parts = np.zeros(size, np.uint8)
    return Scene(paint(made, parts), boxes, labels, parts)


# --- the plan -------------------------------------------------------------------------------------------------------


def _stream(seed: int, stage: int) -> np.random.Generator:
    """A stream of its own per stage: leaving out the covers changes nothing else."""
    return np.random.default_rng([seed, stage])


def _pick(rng: np.random.Generator, mix: Mix) -> str:
    weights = np.array(list(mix.values()), float)
    return list(mix)[_index(rng, tuple((weights / weights.sum()).tolist()))]


def _index(rng: np.random.Generator, shares: tuple[float, ...]) -> int:
    """What rng.choice(len(shares), p=shares) draws, without its checks, which take longer than the draw."""
    return int(_steps(shares).searchsorted(rng.random(), side="right"))


@lru_cache(maxsize=64)
def _steps(shares: tuple[float, ...]) -> np.ndarray:
    sums = np.cumsum(np.array(shares))
    return np.asarray(sums / sums[-1])


def plan(city: City, seed: int, size: tuple[int, int]) -> Plan:
    """Draw camera, light, street and covers."""
    rng = _stream(seed, 0)
    camera, street, bonnet = _place(city, rng, size)
    light = draw_light(city, rng)
    bare = Plan(city, seed, camera, light, street, (), bonnet)
    return replace(bare, covers=_covers(bare, _stream(seed, 1)))


def _place(
    city: City, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[Camera, Street, tuple[float, float] | None]:
    """The camera in its street: a car keeps to its lane, a walker may stand in a wide square."""
    h, w = size
    weights = np.array([rig.weight for rig in city.rigs])
    rig = city.rigs[int(rng.choice(len(weights), p=weights / weights.sum()))]
    car = rig.yaw < 90
    half = rng.uniform(2.8, 5.5) if car or rng.random() < 0.45 else 60.0
    x = rng.uniform(-0.5, 0.5) * half if half < 10 else 0.0
    if not car and half < 10:
        x = rng.choice([-1, 1]) * (half - rng.uniform(-0.3, 1.5))
    camera = Camera(
        size, rng.uniform(*rig.focal) * max(w, h), rng.uniform(*rig.height), np.radians(rng.uniform(*rig.pitch)),
        np.radians(rng.uniform(-rig.yaw, rig.yaw)), np.radians(rng.normal(0, 1.0 if car else 3.0)), float(x),
    )  # fmt: skip
    ground = _pick(rng, city.grounds)
    turn = rng.choice([0.0, np.pi / 4, np.pi / 2], p=[0.6, 0.15, 0.25]) + rng.normal(0, 0.03)
    offset = (float(rng.uniform(0, 50)), float(rng.uniform(0, 50)))
    street = Street(
        -half, half, rng.uniform(1.5, 4.0), ground, _pick(rng, city.walks), float(turn), offset, int(rng.integers(6))
    )
    bonnet = (float(rng.uniform(0.06, 0.16)), float(rng.uniform(-0.1, 0.1))) if rng.random() < rig.bonnet else None
    return camera, street, bonnet


def _covers(bare: Plan, rng: np.random.Generator) -> tuple[Cover, ...]:
    """Place covers that are seen well enough and keep apart from each other."""
    counts = bare.city.counts
    want = int(rng.choice(len(counts), p=counts))
    placed: list[Cover] = []
    for _ in range(40 * want):
        if len(placed) == want:
            break
        cover = _cover(bare, rng)
        if _fits(cover, bare, placed):
            placed.append(cover)
    # Farther ones first: a raised lid may hide a little of what lies behind it.
    return tuple(sorted(placed, key=lambda c: -bare.camera.depth(np.array([c.at]))[0]))


def _cover(bare: Plan, rng: np.random.Generator) -> Cover:
    city, camera = bare.city, bare.camera
    h, w = camera.size
    label = (GOOD, BROKE, LOSE, UNCOVERED, CIRCLE)[_index(rng, city.labels)]
    top = max(camera.horizon() + 0.08 * h, -0.05 * h)
    spot = np.array([[rng.uniform(-0.05, 1.05) * w, rng.uniform(min(top, 0.8 * h), 1.03 * h)]])
    at = camera.to_ground(spot)[0]
    name = _pick(rng, city.lids if label == CIRCLE else city.patterns)
    diameter = rng.uniform(*(LIDS[name][0] if label == CIRCLE else city.diameter))
    frame = rng.uniform(0.04, 0.14) if label == CIRCLE else rng.uniform(*city.frame)
    square = label in (GOOD, BROKE, CIRCLE) and rng.random() < city.square
    turn = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.04) if square else rng.uniform(0, 2 * np.pi)
    material = Material(
        rng.uniform(62, 104), rng.uniform(*city.rust), rng.uniform(*city.wear), rng.uniform(*city.dirt), city.cover_tint
    )
    move, lift, tilt = _loosened(rng) if label == LOSE else ((0.0, 0.0), 0.0, (0.0, 0.0))
    collared, seed = bool(rng.random() < city.collar), int(rng.integers(2**31))
    where = (float(at[0]), float(at[1]))
    return Cover(
        label, where, diameter / 2, frame, square, float(turn), name, material, move, lift, tilt, collared, seed
    )


def _loosened(rng: np.random.Generator) -> tuple[tuple[float, float], float, tuple[float, float]]:
    """A lid pushed aside on the street, or one that has tipped: one side up on the frame, the other in the shaft."""
    angle = rng.uniform(0, 2 * np.pi)
    way = np.array([np.cos(angle), np.sin(angle)])
    if rng.random() < 0.6:
        move = rng.uniform(0.35, 0.95) * way
        return (float(move[0]), float(move[1])), 0.0, (0.0, 0.0)
    move, slope = rng.uniform(0.12, 0.4) * way, rng.uniform(0.15, 0.38) * way
    return (float(move[0]), float(move[1])), float(rng.uniform(0.02, 0.1)), (float(slope[0]), float(slope[1]))


def _fits(cover: Cover, bare: Plan, placed: list[Cover]) -> bool:
    """On the road, in front of the lens, large enough, visible enough, apart from the others and above the bonnet."""
    camera, street = bare.camera, bare.street
    reach = cover.radius * (2.1 if cover.label == LOSE else 1.45 if cover.square else 1.05)
    x, y = cover.at
    if not street.left + reach < x < street.right - reach:
        return False
    corners = np.array([(x + i * reach, y + j * reach) for i in (-1, 1) for j in (-1, 1)])
    if camera.depth(corners).min() < 0.4:
        return False
    if any(np.hypot(x - o.at[0], y - o.at[1]) < reach + o.radius * (2.1 if o.label == LOSE else 1.45) for o in placed):
        return False
    _, by, bw, bh = box_or_nothing(cover, camera)
    if min(bw, bh) < LEAST_SIDE or visible(cover, camera) < LEAST_VISIBLE:
        return False
    if cover.label == LOSE and gap(cover, camera) < LEAST_GAP:
        return False
    return bare.bonnet is None or by + bh < camera.size[0] * (1 - bare.bonnet[0]) - 2


def box_or_nothing(cover: Cover, camera: Camera) -> np.ndarray:
    """The cover's box, or zeros where nothing of it is seen."""
    return box(cover, camera) if visible(cover, camera) > 0 else np.zeros(4)


# --- the picture ----------------------------------------------------------------------------------------------------


def paint(made: Plan, parts: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB photograph of a plan; what the covers' pixels show is noted in `parts`, as `draw` does."""
    return photograph(paint_street(made, parts=parts), made.city, _stream(made.seed, 7))


def paint_street(made: Plan, *, with_covers: bool = True, parts: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) float32 light before the lens, 0..255 and more; without its covers everything else stays as it is.

    parts: as of `draw`.
    """
    camera, light, city = made.camera, made.light, made.city
    rows = _ground_rows(camera)
    surface, slope = _surface(made, rows)
    before_covers(surface, city, _stream(made.seed, 2))
    for cover in made.covers:
        if cover.collar:
            collar(surface, cover, np.random.default_rng([cover.seed, 1]))
    # The stones are lit after paint and stains, which lie on them.
    scale(surface.image, _shade(made, slope, made.street.turn))
    _side_walks(made, surface, rows)
    for cover in made.covers if with_covers else ():
        draw(surface.image, cover, camera, np.array(light.sun), light.share, parts)
    after_covers(surface, city, _stream(made.seed, 3))
    lit = _lit(made, surface)
    backdrop(lit, camera, made.street, light, _stream(made.seed, 5))
    if made.bonnet:
        paint_bonnet(lit, bonnet_mask(camera.size, *made.bonnet), light, _stream(made.seed, 6))
    return lit


def _ground_rows(camera: Camera) -> tuple[int, int]:
    """Rows in which the ground is painted: nearer than about 120 m everywhere."""
    h, w = camera.size
    top = camera.horizon() + abs(np.tan(camera.roll)) * w / 2 + max(3.0, camera.focal * camera.height / 120)
    return min(max(math.ceil(top), 0), h - 1), h


def _turned(place: np.ndarray, turn: float, offset: tuple[float, float], stretch: float = 1.0) -> np.ndarray:
    """A homography for a tile that lies turned, moved and stretched on the plane."""
    c, s = stretch * np.cos(turn), stretch * np.sin(turn)
    return place @ np.array([[c, -s, -offset[0]], [s, c, -offset[1]], [0, 0, 1.0]])


def _surface(made: Plan, rows: tuple[int, int]) -> tuple[Surface, Slopes]:
    """The bare road with slow variation over it, and the slopes of its stones.

    What is above the rows is filled with the farthest colour.
    """
    camera, street, city = made.camera, made.street, made.city
    rng = _stream(made.seed, 4)
    slow = _noise(_turned(camera.ground, street.turn, street.offset), camera.size, rows)
    fast = _noise(_turned(camera.ground, 0.5, street.offset, 0.1), camera.size, rows)
    rgb, slope = look(tile(street.ground), _turned(camera.ground, street.turn, street.offset), camera.size, rows)
    warm = rng.normal(0, 0.015)
    tint = np.array(city.ground_tint) * rng.uniform(*city.ground_gain) * [1 + warm, 1, 1 - warm]
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    grit = (grey - cv2.blur(grey, (15, 15))) * np.float32(1 / 12)
    scale(rgb, tint)
    scale(rgb, 1 + rng.uniform(0.03, 0.1) * slow[0] + rng.uniform(0.0, 0.06) * fast[0])
    rgb[: rows[0]] = rgb[rows[0]].mean(axis=0)
    return Surface(rgb, camera, slow, fast, grit, street.left, street.right, street.ground, made.covers), slope


def _noise(place: np.ndarray, size: tuple[int, int], rows: tuple[int, int]) -> Noise:
    """The macro tile as noise of deviation 1, zero outside the rows; seen at half resolution: it is smooth."""
    h, w = size
    half = np.diag([0.5, 0.5, 1.0]) @ place
    small, _ = look(macro(), half, ((h + 1) // 2, (w + 1) // 2), (rows[0] // 2, (h + 1) // 2))
    return Noise(small, size, rows[0])


def _shade(made: Plan, slope: Slopes, turn: float) -> np.ndarray:
    """(H, W) brightness of a relief in the scene's sun; under a grey sky little of it is left."""
    share = made.light.share
    sun = share * np.array(made.light.sun) * 0.55 + (1 - share) * np.array([0.06, 0.12])
    c, s = np.cos(turn), np.sin(turn)
    local = np.array([c * sun[0] + s * sun[1], -(-s * sun[0] + c * sun[1])], np.float32)
    light = along(slope, local)
    np.subtract(1, light, out=light)
    return np.clip(light, 0.4, 1.6, out=light)


def _side_walks(made: Plan, surface: Surface, rows: tuple[int, int]) -> None:
    """Side walks and kerbs over the edges of the road."""
    camera, street = made.camera, made.street
    walks, tops, faces = (polygon_mask(camera.size, parts) for parts in kerb_parts(camera, street))
    seen = np.flatnonzero((walks | tops | faces).any(axis=1))
    if len(seen) == 0:
        return
    low, high = int(seen[0]), int(seen[-1]) + 1
    part, rows = slice(low, high), (min(max(rows[0], low), high - 1), high)
    rgb, slope = look(tile(street.walk_ground), _turned(camera.level(KERB), 0.0, street.offset), camera.size, rows)
    lit, grain = rgb[part], 1 + 0.05 * surface.fast[0][part] + 0.05 * surface.slow[1][part]
    scale(lit, made.city.ground_tint)
    scale(lit, _shade(made, (slope[0][part], slope[1][part]), 0.0) * grain)
    lit[: rows[0] - low] = lit[rows[0] - low].mean(axis=0)
    stone = cv2.merge([150 * grain, 147 * grain, 140 * grain])
    for mask, colour in ((walks, lit), (faces, 0.62 * stone), (tops, stone)):
        lay(surface.image[part], colour, mask[part])


def _lit(made: Plan, surface: Surface) -> np.ndarray:
    """Water, shadows, sun and sky on the painted street."""
    camera, light, rng = made.camera, made.light, _stream(made.seed, 8)
    h, w = camera.size
    centre = camera.to_ground(np.array([[w / 2, max(0.65 * h, camera.horizon() + 0.25 * h)]]))[0]
    shadow = shadow_mask(camera, light, rng, centre)
    mirrored = None
    if light.wet:
        dry = (
            polygon_mask(camera.size, [p for cover in made.covers for p in outlines(cover, camera)]).astype(np.float32)
            / 255
        )
        mirrored = wet_ground(surface.image, camera, light, surface.slow, 0.85 * dry, rng)
    lit = illuminate(surface.image, camera, light, shadow, rng)
    return lit if mirrored is None else lit + mirrored
