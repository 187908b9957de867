"""Pictures that a formula draws: each class is a set of parameters, so that any number of classes is to be had.

Radial contours (Kataoka et al. 2022, arXiv 2206.09132): rings of many corners whose radius waves. Fractals of an
iterated function system (Kataoka et al. 2020, arXiv 2101.08515). Networks that learned to tell such classes apart see
outlines and textures, without one photograph. Here they lie on the renderer's grounds.

Letters: S side of a picture.
"""

from __future__ import annotations

import cv2
import numpy as np

from cvpeft.data.render.ground import RECIPES
from cvpeft.data.render.tiles import tile

__all__ = ["draw_formula", "draw_formulas"]

POINTS, TURNS = 400, 40  # of a fractal: points that wander at a time, and steps of each


def draw_formulas(classes: int, each: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`each` pictures of every class: (N, S, S, 3) uint8 RGB, and (N,) int64 labels 0..classes-1, class by class."""
    labels = np.repeat(np.arange(classes), each)
    numbers = np.tile(np.arange(each), classes)
    pairs = zip(labels.tolist(), numbers.tolist(), strict=True)
    return np.stack([draw_formula(label, number, side, seed) for label, number in pairs]), labels


def draw_formula(label: int, number: int, side: int, seed: int = 0) -> np.ndarray:
    """(S, S, 3) uint8 RGB: picture `number` of a class; even classes are contours, odd ones fractals.

    The same arguments give the same picture.
    """
    rng = np.random.default_rng([seed, 1, label, number])
    image = _ground(rng, side)
    of_class = np.random.default_rng([seed, 0, label])
    paint = _contours if label % 2 == 0 else _fractal
    mask = paint(of_class, rng, side)[..., None].astype(np.float32) / 255
    colour = np.float32(rng.uniform(0, 255, 3))
    while np.abs(colour - image.mean((0, 1))).max() < 60:  # it must be seen
        colour = np.float32(rng.uniform(0, 255, 3))
    mixed = image * (1 - mask) + colour * mask
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """(S, S, 3) float32: a random cut of a random ground, lighter or darker."""
    face = tile(sorted(RECIPES)[rng.integers(len(RECIPES))]).face[1][..., :3]
    y, x = (int(rng.integers(0, size - side)) for size in face.shape[:2])
    return face[y : y + side, x : x + side].astype(np.float32) * np.float32(rng.uniform(0.6, 1.2))


def _contours(of_class: np.random.Generator, rng: np.random.Generator, side: int) -> np.ndarray:
    """(S, S) uint8 coverage of nested rings; the class has corners, waves and stretch, the picture place and turn."""
    corners, rings = int(of_class.integers(3, 60)), int(of_class.integers(1, 8))
    wave, depth, stretch = int(of_class.integers(1, 12)), of_class.uniform(0, 0.35), of_class.uniform(0.45, 1.0)
    ragged = of_class.uniform(0, 0.12) * of_class.standard_normal((rings, corners))
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    middle, radius = side * rng.uniform(0.4, 0.6, 2), side * rng.uniform(0.22, 0.42)
    spin = rng.uniform(0, 2 * np.pi)
    mask = np.zeros((side, side), np.uint8)
    for ring in range(rings):
        length = radius * (1 - ring / rings * 0.85) * (1 + depth * np.cos(wave * turn) + ragged[ring])
        points = np.stack([length * np.cos(turn), stretch * length * np.sin(turn)], 1)
        points = points @ np.array([[np.cos(spin), np.sin(spin)], [-np.sin(spin), np.cos(spin)]]) + middle
        fixed = np.round(points * 16).astype(np.int32)
        cv2.polylines(mask, [fixed], True, 255, int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    return mask


def _fractal(of_class: np.random.Generator, rng: np.random.Generator, side: int) -> np.ndarray:
    """(S, S) uint8 coverage: where points go that affine maps, drawn by lot, move about."""
    maps = _contracting(of_class)
    weights = np.abs(np.linalg.det(maps[:, :, :2])) + 0.02
    points = rng.uniform(-1, 1, (POINTS, 2))
    seen = []
    for step in range(TURNS):
        chosen = maps[rng.choice(len(maps), POINTS, p=weights / weights.sum())]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
        if step >= TURNS // 4:
            seen.append(points)
    cloud = np.concatenate(seen)
    cloud = (cloud - cloud.mean(0)) / (2.2 * cloud.std(0).max() + 1e-9)
    spin = rng.uniform(0, 2 * np.pi)
    cloud = cloud @ np.array([[np.cos(spin), np.sin(spin)], [-np.sin(spin), np.cos(spin)]])
    at = np.round(side * (rng.uniform(0.42, 0.58, 2) + rng.uniform(0.25, 0.4) * cloud)).astype(int)
    at = at[((at >= 0) & (at < side)).all(1)]
    mask = np.zeros((side, side), np.uint8)
    mask[at[:, 1], at[:, 0]] = 255
    return cv2.dilate(mask, np.ones((2, 2), np.uint8))


def _contracting(of_class: np.random.Generator) -> np.ndarray:
    """(n, 2, 3) affine maps, each of which brings points nearer together."""
    maps = of_class.uniform(-1, 1, (int(of_class.integers(2, 7)), 2, 3))
    for one in maps:
        one[:, :2] *= of_class.uniform(0.4, 0.85) / np.linalg.norm(one[:, :2], 2)
    return maps
