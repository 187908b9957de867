"""What lies and is painted on a street and is not a cover: every thing here is a distractor without a box."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cvpeft.data.render.cities import City
from cvpeft.data.render.covers import Cover
from cvpeft.data.render.surface import RING, Surface, blob, quad, ring, thick, turned

__all__ = ["after_covers", "before_covers", "collar"]


# --- on the road, under the covers ----------------------------------------------------------------------------------


def tracks(s: Surface, rng: np.random.Generator) -> None:
    """Two lanes of wheel tracks, and the drip line between them."""
    middle = rng.uniform(s.left + 1, s.right - 1) if s.right - s.left > 3 else 0.0
    factor = rng.uniform(0.86, 1.12)
    for x in (-0.8, 0.8):
        s.shade([quad(middle + x - 0.3, middle + x + 0.3, -60, 60)], factor, soft=9)
    s.shade([quad(middle - 0.25, middle + 0.25, -60, 60)], rng.uniform(0.85, 0.97), soft=7)


def patches(s: Surface, rng: np.random.Generator) -> None:
    """Trenches and patches in younger or older asphalt, some with a tar seam."""
    for _ in range(int(rng.integers(1, 4))):
        at = s.spot(rng)
        wide, long = rng.uniform(0.5, 2.2), rng.uniform(0.5, 4.0)
        angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.05)
        shape = turned(quad(-wide / 2, wide / 2, -long / 2, long / 2), angle, at)
        if rng.random() < 0.25:
            shape = blob(rng, wide / 1.6, 0.12) + at
        _patch(s, rng, shape)


def _patch(s: Surface, rng: np.random.Generator, shape: np.ndarray) -> None:
    s.paint([shape], s.mixture(rng.uniform(45, 125)), rng.uniform(0.65, 0.95), soft=0.8)
    if rng.random() < 0.5:
        closed = np.concatenate([shape, shape[:1]])
        s.paint(thick(closed, np.full(len(closed), rng.uniform(0.03, 0.08))), (34, 34, 36), 0.75, worn=0.2, soft=0.6)


def cracks(s: Surface, rng: np.random.Generator) -> None:
    """Wandering cracks with side branches, some sealed with tar."""
    sealed = rng.random() < 0.3
    for _ in range(int(rng.integers(1, 4))):
        start, angle = s.spot(rng), rng.uniform(0, 2 * np.pi)
        _crack(s, rng, start, angle, int(rng.integers(25, 80)), sealed, 2)


def _crack(
    s: Surface, rng: np.random.Generator, start: np.ndarray, angle: float, steps: int, sealed: bool, depth: int
) -> None:
    turns = angle + 0.14 * rng.standard_normal(steps).cumsum() + (0.15 if sealed else 0.6) * rng.standard_normal(steps)
    points = start + np.cumsum(0.035 * np.stack([np.cos(turns), np.sin(turns)], 1), 0)
    width = np.abs(rng.normal(0.009, 0.004, steps)) if not sealed else np.full(steps, rng.uniform(0.03, 0.06))
    tone, alpha = ((30, 30, 32), 0.85) if sealed else ((42, 39, 36), 0.8)
    s.paint(thick(points, width), tone, alpha, soft=0.5)
    for _ in range(depth if rng.random() < 0.7 else 0):
        at = int(rng.integers(0, steps))
        _crack(
            s,
            rng,
            points[at],
            turns[at] + rng.choice([-1, 1]) * rng.uniform(0.5, 1.3),
            max(5, steps // 2),
            sealed,
            depth - 1,
        )


def marks(s: Surface, rng: np.random.Generator, yellow: bool) -> None:
    """Lane lines, a stop line, stripes of a crossing, or an arrow."""
    rgb = (206, 160, 60) if yellow else (214, 214, 208)
    worn, kind = rng.uniform(0.05, 0.75), rng.integers(5)
    x = rng.uniform(s.left + 0.3, s.right - 0.3)
    if kind == 0:
        shapes = [quad(x - 0.06, x + 0.06, -70, 70)]
        if rng.random() < 0.4:
            shapes.append(quad(x + 0.14, x + 0.26, -70, 70))
    elif kind == 1:
        first = rng.uniform(-6, 0)
        shapes = [quad(x - 0.07, x + 0.07, first + 6 * i, first + 6 * i + 3) for i in range(-9, 10)]
    elif kind == 2:
        y = s.spot(rng)[1]
        shapes = [quad(s.left + 0.3 + i, s.left + 0.8 + i, y, y + 3) for i in range(int(s.right - s.left))]
    elif kind == 3:
        y = s.spot(rng)[1]
        shapes = [quad(s.left + 0.2, s.right - 0.2, y, y + 0.4)]
    else:
        at = s.spot(rng)
        shaft, head = quad(-0.07, 0.07, -1.6, 0.4), np.array([(-0.35, 0.3), (0.35, 0.3), (0.0, 1.4)])
        shapes = [turned(part, rng.choice([0, np.pi]), at) for part in (shaft, head)]
    s.paint(shapes, rgb, 0.9, worn=worn, soft=0.5)


def stains(s: Surface, rng: np.random.Generator) -> None:
    """Oil, water and rust: dark blobs with ragged edges, and drips around them."""
    for _ in range(int(rng.integers(1, 4))):
        at, size = s.spot(rng), rng.uniform(0.05, 0.4)
        s.shade([blob(rng, size) + at], rng.uniform(0.6, 0.9), soft=rng.uniform(1.5, 8), ragged=0.5)
        count = int(rng.integers(0, 9))
        if count:
            drips = at + rng.normal(0, 1.2 * size, (count, 1, 2)) + rng.uniform(0.004, 0.025, (count, 1, 1)) * RING[::4]
            s.shade(drips, rng.uniform(0.6, 0.85), soft=0.8)


def round_things(s: Surface, rng: np.random.Generator) -> None:
    """As round as a cover and none: cored patch, sprayed ring, tyre arc, stain, print of a pot, tree pit."""
    at, radius, kind = (
        s.spot(rng, 0.6),
        rng.uniform(0.18, 0.45),
        int(rng.choice(6, p=[0.24, 0.16, 0.22, 0.16, 0.16, 0.06])),
    )
    if kind == 0:
        _patch(s, rng, at + RING * radius)
    elif kind == 1:
        rgb = [(224, 96, 40), (226, 226, 226), (60, 110, 200), (230, 60, 120)][rng.integers(4)]
        s.paint(
            ring(at, radius, radius - 0.04, rng.uniform(0.85, 1.0), rng.uniform(0, 6)), rgb, 0.75, worn=0.3, soft=0.8
        )
        if rng.random() < 0.5:
            s.paint(
                [turned(quad(-radius, radius, -0.02, 0.02), a, at) for a in (0.8, 2.4)], rgb, 0.7, worn=0.3, soft=0.7
            )
    elif kind == 2:
        for _ in range(int(rng.integers(1, 4))):
            wide = rng.uniform(0.8, 3.0)
            arc = ring(
                at + rng.normal(0, 0.2, 2), wide, wide - rng.uniform(0.1, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0, 6)
            )
            s.paint(arc, (40, 40, 42), rng.uniform(0.25, 0.5), worn=0.3, soft=1.5)
    elif kind == 3:
        s.shade([at + blob(rng, radius, 0.06)], rng.uniform(0.5, 0.75), soft=2, ragged=0.3)
    elif kind == 4:
        s.shade(ring(at, radius, radius * 0.82), rng.uniform(0.6, 0.8), soft=1.2)
        s.shade([at + RING * radius * 0.8], rng.uniform(0.95, 1.12), soft=1.5)
    else:
        edge = 1.9 * radius
        s.paint([turned(quad(-edge, edge, -edge, edge), 0, at)], (150, 146, 138), 0.85, soft=0.6)
        s.paint([at + RING * 1.5 * radius], (72, 58, 44), 0.95, soft=1.0)
        weeds = at + rng.normal(0, 0.55 * radius, (50, 1, 2)) + rng.uniform(0.01, 0.05, (50, 1, 1)) * RING[::8]
        s.scatter(weeds, np.array([74, 88, 50]) * rng.uniform(0.6, 1.2, (50, 1)))


def drain(s: Surface, rng: np.random.Generator) -> None:
    """A gully with slots, mostly at the kerb; none where a cover lies."""
    at, angle = s.spot(rng), rng.normal(0, 0.05)
    if rng.random() < 0.6 and s.right - s.left < 12:
        at[0] = (s.left + 0.25) if rng.random() < 0.5 else (s.right - 0.25)
    if s.taken(at, 0.35):
        return
    wide, long = rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.55)
    s.paint(
        [turned(quad(-wide / 2 - 0.04, wide / 2 + 0.04, -long / 2 - 0.04, long / 2 + 0.04), angle, at)],
        (112, 106, 98),
        0.9,
        soft=0.5,
    )
    s.paint([turned(quad(-wide / 2, wide / 2, -long / 2, long / 2), angle, at)], (84, 78, 72), 0.95, soft=0.5)
    count = int(rng.integers(5, 9))
    across = np.linspace(-0.42, 0.42, count) * long
    slots = [
        turned(quad(-0.43 * wide, 0.43 * wide, y - 0.28 * long / count, y + 0.28 * long / count), angle, at)
        for y in across
    ]
    s.paint(slots, (14, 13, 12), 0.95, soft=0.4)


def joints(s: Surface, rng: np.random.Generator) -> None:
    """The joints of a concrete road: bays of a few metres, sealed with tar or full of sand."""
    bay, x0, y0 = rng.uniform(3, 5), rng.uniform(-2, 2), rng.uniform(0, 4)
    dark = (48, 46, 44) if rng.random() < 0.7 else (118, 106, 88)
    lines = [quad(-30, 30, y0 + bay * i - 0.008, y0 + bay * i + 0.008) for i in range(-11, 12)]
    lines += [quad(x0 + bay * i - 0.008, x0 + bay * i + 0.008, -60, 60) for i in range(-3, 4)]
    s.paint(lines, dark, 0.8, worn=0.15, soft=0.5)


def collar(s: Surface, cover: Cover, rng: np.random.Generator) -> None:
    """The patch in which a cover was set: a ring or a square of other asphalt or of concrete."""
    half = cover.radius * rng.uniform(1.2, 1.7)
    at = np.array(cover.at) + rng.normal(0, 0.06 * cover.radius, 2)
    shape = (
        RING * half
        if rng.random() < 0.55 and not cover.square
        else turned(quad(-half, half, -half, half), rng.normal(0, 0.06), np.zeros(2))
    )
    tone = rng.uniform(48, 100) if rng.random() < 0.65 else rng.uniform(125, 165)
    s.paint([shape + at], s.mixture(tone), rng.uniform(0.5, 0.9), soft=0.8)
    if rng.random() < 0.35:
        closed = np.concatenate([shape, shape[:1]]) + at
        s.paint(thick(closed, np.full(len(closed), rng.uniform(0.015, 0.05))), (38, 37, 36), 0.7, worn=0.2, soft=0.6)


def before_covers(s: Surface, city: City, rng: np.random.Generator) -> None:
    """Everything that a cover would lie on top of."""
    asphalt = s.stone.startswith("asphalt")
    plan: list[tuple[float, Callable[[Surface, np.random.Generator], None]]] = [
        (0.6 if asphalt else 0.15, tracks),
        (1.0 if s.stone == "concrete" else 0.0, joints),
        (0.4 if asphalt else 0.2 if s.stone == "concrete" else 0.0, patches),
        (0.5 if asphalt else 0.3 if s.stone == "concrete" else 0.05, cracks),
        (city.marks, lambda s, rng: marks(s, rng, bool(rng.random() < city.yellow))),
        (0.6, stains),
        (0.35, round_things),
        (0.2, round_things),
        (0.3, drain),
    ]
    for chance, thing in plan:
        if rng.random() < chance:
            thing(s, rng)


# --- on top of everything -------------------------------------------------------------------------------------------


LEAF = np.array([(-1, 0), (-0.3, 0.45), (0.5, 0.35), (1.1, 0), (0.5, -0.35), (-0.3, -0.45)])


def _strewn(s: Surface, rng: np.random.Generator, shapes: np.ndarray, drifts: int, spread: float) -> np.ndarray:
    """(N, K, 2) shapes, each turned anew and dropped around one of a few centres, which it may leave far behind."""
    n = len(shapes)
    centres = np.stack([s.spot(rng) for _ in range(drifts)])
    at = centres[rng.integers(drifts, size=n)] + rng.normal(0, spread, (n, 2)) * rng.exponential(1.0, (n, 1))
    turn = rng.uniform(0, 2 * np.pi, n)
    spin = np.stack([np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)], 1).reshape(n, 2, 2)
    return np.asarray(shapes @ spin + at[:, None])


def leaves(s: Surface, rng: np.random.Generator) -> None:
    """Fallen leaves, in drifts."""
    palette = np.array([(138, 104, 56), (156, 126, 66), (108, 76, 50), (98, 100, 62), (120, 66, 46)])
    n = int(rng.integers(8, 90))
    shapes = LEAF * rng.uniform(0.015, 0.045, (n, 1, 1)) * rng.uniform(0.6, 1.2, (n, 1, 2))
    colours = palette[rng.integers(len(palette), size=n)] * rng.uniform(0.6, 1.15, (n, 1))
    s.scatter(_strewn(s, rng, shapes, int(rng.integers(1, 5)), rng.uniform(0.4, 1.5)), colours)


def litter(s: Surface, rng: np.random.Generator) -> None:
    """Paper, butts, gum and pebbles."""
    palette = np.array([(200, 197, 188), (150, 140, 120), (90, 84, 78), (120, 116, 110), (136, 74, 62), (78, 96, 124)])
    n = int(rng.integers(2, 25))
    size = rng.exponential(0.012, (n, 1, 1)).clip(0.004, 0.05)
    shapes = RING[::5] * size * rng.uniform(0.5, 1.4, (n, 8, 1))
    colours = palette[rng.choice(6, n, p=[0.15, 0.25, 0.25, 0.25, 0.05, 0.05])] * rng.uniform(0.7, 1.1, (n, 1))
    s.scatter(_strewn(s, rng, shapes, int(rng.integers(2, 6)), 1.2), colours)


def after_covers(s: Surface, city: City, rng: np.random.Generator) -> None:
    """What lies loose, also on covers; small enough to leave every cover to be seen."""
    if rng.random() < city.leaves:
        leaves(s, rng)
    if rng.random() < 0.5:
        litter(s, rng)
