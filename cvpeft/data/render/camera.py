"""A pinhole camera above a flat street.

World: metres, X across the street, Y along it, Z up, the ground at Z = 0. The camera stands at (x, 0, height), looks
along +Y turned by `yaw`, and is tilted down by `pitch`. Image: pixels, u to the right, v down, pixel centres at half
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

__all__ = ["SHIFT", "Camera", "clip_polygon", "polygon_mask", "to_fixed"]

NEAR = 0.15  # metres; nothing nearer to the lens is drawn
SHIFT = 4  # OpenCV draws with 4 binary digits behind the point


@dataclass(frozen=True)
class Camera:
    """size: (h, w) px; focal: px; angles: radians; height and x: metres."""

    size: tuple[int, int]
    focal: float
    height: float
    pitch: float
    yaw: float
    roll: float
    x: float = 0.0

    @cached_property
    def axes(self) -> np.ndarray:
        """(3, 3) rows: right, down and forward of the camera in the world."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([sy * cp, cy * cp, -sp])
        right = np.array([cy, -sy, 0.0])
        down = np.cross(forward, right)
        cr, sr = np.cos(self.roll), np.sin(self.roll)
        return np.stack([cr * right + sr * down, cr * down - sr * right, forward])

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 4) world to homogeneous pixels."""
        h, w = self.size
        inner = np.array([[self.focal, 0, w / 2], [0, self.focal, h / 2], [0, 0, 1.0]])
        place = np.array([self.x, 0.0, self.height])
        return inner @ np.column_stack([self.axes, -self.axes @ place])

    def plane(self, origin: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(3, 3) homography of the plane origin + a * u + b * v, from (a, b) to pixels."""
        p = self.matrix
        return np.column_stack([p[:, :3] @ u, p[:, :3] @ v, p[:, :3] @ origin + p[:, 3]])

    @cached_property
    def ground(self) -> np.ndarray:
        """(3, 3) homography from ground metres (X, Y) to pixels."""
        return self.level(0.0)

    @cached_property
    def inverse(self) -> np.ndarray:
        """(3, 3) homography from pixels to ground metres."""
        return np.linalg.inv(self.ground)

    def level(self, z: float) -> np.ndarray:
        """(3, 3) homography of the horizontal plane at height z."""
        return self.plane(np.array([0.0, 0.0, z]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))

    def project(self, points: np.ndarray, z: float = 0.0) -> np.ndarray:
        """(N, 2) ground points, all in front of the lens, to (N, 2) pixels."""
        q = _homogeneous(points, 3) @ self.level(z).T
        return q[:, :2] / q[:, 2:]

    def to_ground(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 2) pixels below the horizon to (N, 2) ground metres."""
        q = _homogeneous(pixels, 3) @ self.inverse.T
        return q[:, :2] / q[:, 2:]

    def depth(self, points: np.ndarray) -> np.ndarray:
        """(N,) metres along the optical axis of (N, 2) ground points."""
        q = _homogeneous(points, 4) @ self.matrix[2]
        return np.asarray(q)

    def horizon(self) -> float:
        """Row of the horizon in the middle column; may lie outside the image."""
        return self.size[0] / 2 - self.focal * float(np.tan(self.pitch)) / float(np.cos(self.roll))

    def polygon(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) or (N, 3) world polygon, cut at the lens, to (M, 2) pixels; M may be 0."""
        q = _homogeneous(points, 4) @ self.matrix.T
        q = _cut(q, q[:, 2] - NEAR)
        return q[:, :2] / q[:, 2:] if len(q) else np.zeros((0, 2))

    def polygons(self, stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, K, 2) small ground polygons to (M, K, 2) pixels, and which of them: none that reaches behind the lens."""
        q = stack @ self.matrix[:, :2].T + self.matrix[:, 3]
        kept = np.flatnonzero(q[..., 2].min(axis=1) > NEAR)
        return q[kept, :, :2] / q[kept, :, 2:], kept


def _homogeneous(points: np.ndarray, width: int) -> np.ndarray:
    """(N, 2) or (N, 3) points as (N, width): zeros where a coordinate is missing, and a one at the end."""
    q = np.zeros((len(points), width))
    q[:, : points.shape[1]] = points
    q[:, -1] = 1
    return q


def _cut(points: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Sutherland and Hodgman's cut of a polygon by one half space: the part with side >= 0 stays."""
    inside = side >= 0
    if inside.all():
        return points
    if not inside.any():
        return points[:0]
    after, beyond = np.concatenate([points[1:], points[:1]]), np.concatenate([side[1:], side[:1]])
    crosses = inside != (beyond >= 0)
    t = side / np.where(crosses, side - beyond, 1.0)
    both = np.stack([points, points + t[:, None] * (after - points)], 1)
    return np.asarray(both[np.stack([inside, crosses], 1)])


def clip_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) pixel polygon cut by the image's frame, (M, 2)."""
    h, w = size
    for axis, sign, bound in ((0, 1, 0), (0, -1, w), (1, 1, 0), (1, -1, h)):
        if len(points) == 0:
            break
        points = _cut(points, sign * (points[:, axis] - bound))
    return points


def polygon_mask(size: tuple[int, int], polygons: list[np.ndarray] | np.ndarray) -> np.ndarray:
    """(H, W) uint8 mask of pixel polygons, antialiased; an (N, K, 2) array holds convex ones."""
    mask = np.zeros(size, np.uint8)
    if isinstance(polygons, np.ndarray):
        for fixed in to_fixed(polygons):
            cv2.fillConvexPoly(mask, fixed, 255, cv2.LINE_AA, SHIFT)
        return mask
    for points in polygons:
        if len(points) >= 3:
            cv2.fillPoly(mask, [to_fixed(points)], 255, cv2.LINE_AA, SHIFT)
    return mask


def to_fixed(points: np.ndarray) -> np.ndarray:
    """Pixels as OpenCV draws them: integers with SHIFT binary digits, pixel centres at whole numbers."""
    return np.clip((points - 0.5) * (1 << SHIFT), -(2**24), 2**24).round().astype(np.int32)
