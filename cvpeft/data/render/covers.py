"""Manhole covers of the five classes: what they are, where the camera sees them, and their boxes.

Height is seen as parallax. From far away, a point at height z appears on the ground moved by -view * z, where `view`
is the horizontal direction towards the camera times the cotangent of the camera's elevation. Sprite axes have the
cover's centre as origin and its outer radius as unit; x grows to the right, y towards the viewer (minus Y of the
world).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.camera import Camera, clip_polygon
from cvpeft.data.render.patterns import Material, grid

__all__ = [
    "BROKE",
    "CIRCLE",
    "GOOD",
    "LOSE",
    "RIM",
    "SQUARE_POINTS",
    "THICK",
    "UNCOVERED",
    "Cover",
    "box",
    "gap",
    "outlines",
    "parallax",
    "turned",
    "visible",
]

GOOD, BROKE, LOSE, UNCOVERED, CIRCLE = 1, 2, 3, 4, 5
RIM = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 128, endpoint=False)), np.sin(a)], 1)  # a circle
SQUARE_POINTS = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
THICK = 0.1  # a lid's thickness in outer radii: about 35 mm


@dataclass(frozen=True)
class Cover:
    """One cover in the street.

    label: 1..5 as in CLASSES; at: metres; radius: metres, with the frame; frame: width of the ring in radii; turn:
    radians; face: name of a pattern, or of a plain lid for `circle`; move: (x, y) of a loose lid in radii; lift: its
    height in radii; tilt: its slope along (x, y); collar: set in a patch of its own; seed: of its wear and its damage.
    """

    label: int
    at: tuple[float, float]
    radius: float
    frame: float
    square: bool
    turn: float
    face: str
    material: Material
    move: tuple[float, float]
    lift: float
    tilt: tuple[float, float]
    collar: bool
    seed: int


# --- where a cover is seen ------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def outlines(cover: Cover, camera: Camera) -> list[np.ndarray]:
    """Pixel polygons whose union is the visible cover with its frame; kept, for a cover is asked many times in turn."""
    shape = (SQUARE_POINTS if cover.square else RIM) @ turned(cover.turn).T
    parts = [shape]
    if cover.label == LOSE:
        view = parallax(cover, camera)
        for z in (0.0, THICK):
            at, height = _raise(cover, shape * (1 - cover.frame), z)
            parts.append((at - height[:, None] * view)[height >= 0])
    return [camera.project(np.array(cover.at) + part * cover.radius * [1, -1]) for part in parts if len(part) > 2]


def visible(cover: Cover, camera: Camera) -> float:
    """Share of the cover's area that lies in the image."""
    whole = np.concatenate(outlines(cover, camera)).astype(np.float32)
    hull = cv2.convexHull(whole)[:, 0].astype(np.float64)
    part = clip_polygon(hull, camera.size)
    return _area(part) / max(_area(hull), 1e-9)


def box(cover: Cover, camera: Camera) -> np.ndarray:
    """(4,) xywh px, tight around the part of the cover that lies in the image."""
    seen = np.concatenate([clip_polygon(part, camera.size) for part in outlines(cover, camera)])
    low, high = seen.min(0), seen.max(0)
    return np.concatenate([low, high - low])


def gap(cover: Cover, camera: Camera) -> float:
    """Share of a loose cover's opening that the camera sees beside the lid."""
    view, inner = parallax(cover, camera), 1 - cover.frame
    x, y, r = grid(32)
    opening = inner * np.stack(np.broadcast_arrays(x, y), -1)[r < 1]
    linear = np.eye(2) - np.outer(view, cover.tilt)
    hidden = np.zeros(len(opening), bool)
    for z in (0.0, THICK):
        on_lid = (opening - np.array(cover.move) + view * (cover.lift + z)) @ np.linalg.inv(linear).T
        hidden |= np.hypot(*on_lid.T) < inner
    return float(1 - hidden.mean())


def _area(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2 if len(points) else 0.0


def turned(angle: float) -> np.ndarray:
    """(2, 2) rotation."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def parallax(cover: Cover, camera: Camera) -> np.ndarray:
    """(2,) the direction `view` of the module's docstring, in sprite axes."""
    towards = np.array([camera.x, 0.0]) - cover.at
    return towards * [1, -1] / camera.height


def _raise(cover: Cover, points: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of a lid around its centre -> where they lie after the move, and their height."""
    height = cover.lift + z + points @ np.array(cover.tilt)
    return points + np.array(cover.move), height
