"""What stands beside and above the road: kerbs, side walks, houses, trees and the sky."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.blend import lay, scale
from cvpeft.data.render.camera import Camera, polygon_mask
from cvpeft.data.render.light import Light
from cvpeft.data.render.noise import fractal, to_uint8

__all__ = ["KERB", "Street", "backdrop", "kerb_parts"]

KERB = 0.12  # metres
FAR = 150.0  # metres; where the street ends, ahead and behind


@dataclass(frozen=True)
class Street:
    """left, right: edges of the road (X, metres); walk: width of the side walks; ground, walk_ground: names of tiles.

    turn: of the ground's tile, radians; offset: of the tile, metres; houses: which front the houses have.
    """

    left: float
    right: float
    walk: float
    ground: str
    walk_ground: str
    turn: float
    offset: tuple[float, float]
    houses: int


def kerb_parts(camera: Camera, street: Street) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Pixel polygons of the side walks, of the kerbs' tops, and of the kerbs' faces."""
    walks, tops, faces = [], [], []
    for edge, out in ((street.left, -1.0), (street.right, 1.0)):
        stone, end = edge + 0.14 * out, edge + street.walk * out
        walks.append(_flat(camera, stone, end))
        tops.append(_flat(camera, edge, stone))
        upright = [(edge, -FAR, 0), (edge, FAR, 0), (edge, FAR, KERB), (edge, -FAR, KERB)]
        faces.append(camera.polygon(np.array(upright, float)))
    return walks, tops, faces


def _flat(camera: Camera, x0: float, x1: float) -> np.ndarray:
    return camera.polygon(np.array([(x0, -FAR, KERB), (x1, -FAR, KERB), (x1, FAR, KERB), (x0, FAR, KERB)], float))


def backdrop(image: np.ndarray, camera: Camera, street: Street, light: Light, rng: np.random.Generator) -> None:
    """Paint the sky and the houses into the lit image, in place, where they are seen."""
    h, w = camera.size
    left, right = street.left - street.walk, street.right + street.walk
    walls = [
        camera.polygon(np.array([(x, -FAR, 0), (x, FAR, 0), (x, FAR, 15), (x, -FAR, 15)], float)) for x in (left, right)
    ]
    row = camera.horizon() + abs(np.tan(camera.roll)) * w / 2
    if row <= 0 and not any(_in_view(wall, camera.size) for wall in walls):
        return
    above = int(np.clip(row + 1, 0, h))
    if above:
        image[:above] = _sky((above, w), light, rng)
    _haze(image, row, light)
    for x, wall in zip((left, right), walls, strict=True):
        if _in_view(wall, camera.size):
            _front(image, camera, x, wall, street.houses, light, rng)
    for _ in range(int(rng.integers(0, 4))):
        _tree(image, camera, float(rng.choice([street.left - 0.8, street.right + 0.8])), light, rng)


def _in_view(points: np.ndarray, size: tuple[int, int]) -> bool:
    if len(points) < 3:
        return False
    return bool((points.max(0) > 0).all() and (points.min(0) < size[::-1]).all())


def _sky(size: tuple[int, int], light: Light, rng: np.random.Generator) -> np.ndarray:
    h, w = size
    t = np.linspace(min(1.0, 3 * h / w), 0, h, dtype=np.float32)[:, None, None]
    sky = np.array(light.horizon, np.float32) * (1 - t) + np.array(light.zenith, np.float32) * t
    cloud = cv2.resize(fractal(rng, 128, 2, 4), (w, max(h, w)))[-h:, :, None]
    return np.asarray((sky + (9 if light.clear else 4) * cloud) * np.float32(light.gain))


def _haze(image: np.ndarray, row: float, light: Light) -> None:
    """The far ground fades into the horizon."""
    h = len(image)
    top = int(np.clip(row, 0, h))
    bottom = int(np.clip(row + 0.05 * h, 0, h))
    if bottom > top:
        fade = np.linspace(0.75, 0, bottom - top, dtype=np.float32)[:, None, None]
        image[top:bottom] += (0.8 * np.array(light.horizon, np.float32) * min(light.gain, 1) - image[top:bottom]) * fade


@lru_cache(maxsize=6)
def _house_tile(style: int) -> np.ndarray:
    """(384, 512, 4) uint8 front of 20 m x 15 m: plaster or brick, windows, doors, a plinth; row 0 at the top.

    The fourth channel is empty: four are warped faster than three.
    """
    rng = np.random.default_rng(9000 + style)
    image = np.zeros((384, 512, 3), np.float32)
    walls = [(178, 170, 154), (138, 104, 92), (164, 164, 160), (188, 180, 162), (120, 114, 108), (164, 150, 130)]
    for k in range(2):
        part = image[:, k * 256 : (k + 1) * 256]
        part[:] = np.array(walls[rng.integers(len(walls))]) * rng.uniform(0.8, 1.05)
        wide, high, storey = (int(rng.integers(low, up)) for low, up in ((24, 38), (40, 56), (76, 92)))
        for top in range(10, 330, storey):
            for left in range(14, 230, wide + int(rng.integers(20, 34))):
                part[top : top + high, left : left + wide] = np.array((52, 58, 66)) * rng.uniform(0.5, 1.5)
                part[top + high : top + high + 4, left - 2 : left + wide + 2] *= 1.15
        part[344:] *= 0.72
        door = int(rng.integers(20, 200))
        part[306:, door : door + 30] = np.array((74, 58, 46)) * rng.uniform(0.6, 1.4)
    image *= 1 + 0.05 * fractal(rng, 512, 16, 4)[:384, :, None]
    return cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2RGBA)


def _front(
    image: np.ndarray, camera: Camera, x: float, wall: np.ndarray, style: int, light: Light, rng: np.random.Generator
) -> None:
    """One row of houses on the plane at x, from the foot up."""
    h, w = camera.size
    low, high = np.floor(wall.min(0)).astype(int), np.ceil(wall.max(0)).astype(int)
    left, right, bottom = max(0, int(low[0])), min(w, int(high[0])), min(h, int(high[1]))
    place = camera.plane(np.array([x, 0.0, 0.0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0]))
    to_wall = np.array([[20 / 512, 0, -rng.uniform(0, 20)], [0, -15 / 384, 15], [0, 0, 1.0]])
    to_part = np.array([[1, 0, -left], [0, 1, 0], [0, 0, 1.0]])
    mask = polygon_mask((bottom, right - left), [wall - [left, 0]])
    width, height = _reach(mask)
    if width == 0:  # so it is most often: the box of a wall lies in the image, and the wall does not
        return
    mask = mask[:height, :width]
    front = cv2.warpPerspective(
        _house_tile(style), to_part @ place @ to_wall, (width, height), borderMode=cv2.BORDER_WRAP
    )
    front = cv2.cvtColor(front, cv2.COLOR_RGBA2RGB)
    front = cv2.GaussianBlur(front, (0, 0), 0.8).astype(np.float32)
    sun = light.share if light.sun[0] * x < 0 else 0.1
    scale(front, ((1 - light.share) * np.array(light.sky_rgb) + sun * np.array(light.sun_rgb)) * light.gain)
    lay(image[:height, left : left + width], front, mask)


def _reach(mask: np.ndarray) -> tuple[int, int]:
    """Columns and rows up to the last that is seen, and some for the blur; most of a front lies outside the image.

    Columns in steps of 64: OpenCV rounds the last few of a row otherwise than the rest.
    """
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return 0, 0
    rows, columns = mask.shape
    return min(columns, -(-(x + w + 4) // 64) * 64), min(rows, y + h + 4)


def _tree(image: np.ndarray, camera: Camera, x: float, light: Light, rng: np.random.Generator) -> None:
    """A trunk with a crown of leaves."""
    y = rng.uniform(5, 25) * float(np.sign(camera.axes[2, 1]))
    height, radius = rng.uniform(3.5, 6), rng.uniform(1.0, 2.0)
    trunk = camera.polygon(
        np.array([(x - 0.12, y, 0), (x + 0.12, y, 0), (x + 0.08, y, height), (x - 0.08, y, height)], float)
    )
    if not _in_view(trunk, camera.size):
        return
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    crown = []
    for _ in range(90):
        dx, dz = rng.normal(0, 0.45, 2) * radius
        size = rng.uniform(0.08, 0.35)
        points = np.stack([x + dx + size * np.cos(turn), np.full(8, y), height + dz + size * np.sin(turn)], 1)
        crown.append(camera.polygon(points))
    tone = light.gain * rng.uniform(0.7, 1.2)
    for shape, rgb in (([trunk], (70, 58, 48)), (crown, (58, 76, 42)), (crown[::3], (84, 104, 58))):
        rows = slice(0, int(np.clip(max(part[:, 1].max() for part in shape if len(part)) + 2, 1, camera.size[0])))
        lay(image[rows], np.array(rgb) * tone, polygon_mask(camera.size, shape)[rows])
