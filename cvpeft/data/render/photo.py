"""From the light of a scene to a photograph: bonnet, lens, sensor and tone."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from cvpeft.data.render.blend import lay, scale
from cvpeft.data.render.camera import polygon_mask
from cvpeft.data.render.cities import City
from cvpeft.data.render.light import Light
from cvpeft.data.render.noise import to_uint8

__all__ = ["bonnet_mask", "paint_bonnet", "photograph"]


def bonnet_mask(size: tuple[int, int], rise: float, lean: float) -> np.ndarray:
    """(H, W) uint8 of a car's bonnet at the lower edge, `rise` of the image's height in the middle."""
    h, w = size
    x = np.linspace(-0.05, 1.05, 40)
    y = h * (1 - rise * (1 - 1.4 * (x - 0.5 - lean) ** 2))
    points = np.concatenate([np.stack([x * w, y], 1), [(1.05 * w, h + 4), (-0.05 * w, h + 4)]])
    return polygon_mask(size, [points])


def paint_bonnet(image: np.ndarray, mask: np.ndarray, light: Light, rng: np.random.Generator) -> None:
    """Glossy paint that mirrors the sky, in place."""
    h, w = mask.shape
    colours = [(30, 32, 36), (150, 152, 156), (110, 24, 24), (28, 44, 84), (210, 210, 208)]
    paint = np.array(colours[rng.integers(5)], np.float32)
    fall = np.clip(np.linspace(7, 0, h, dtype=np.float32)[:, None], 0, 1)
    gloss = cv2.resize(rng.random((2, 5), dtype=np.float32), (w, h), interpolation=cv2.INTER_CUBIC) * fall
    rgb = paint * 0.6 + np.array(light.horizon, np.float32) * (0.06 + 0.5 * gloss * fall)[..., None]
    lay(image, rgb * np.float32(light.gain), mask)


@lru_cache(maxsize=4)
def _vignette(size: tuple[int, int]) -> np.ndarray:
    """(H, W) squared distance from the middle, 1 in the corners."""
    h, w = size
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    return ((x**2 + y**2) / 2).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    """(1024, 1024, 3) float32 sensor noise of deviation 1, slightly smooth as after a Bayer filter."""
    noise = np.random.default_rng(77).standard_normal((1024, 1024, 3), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 0.55)
    return np.asarray(smooth / smooth.std())


def photograph(image: np.ndarray, city: City, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32 light 0..255 to (H, W, 3) uint8: blur, vignette, exposure, white balance, tone, noise."""
    h, w = image.shape[:2]
    image = _blur(image, city, rng)
    scale(image, 1 - rng.uniform(0.0, 0.35) * _vignette((h, w)))
    scale(image, _white_balance(city, rng))
    image = _expose(image, rng)
    saturation = rng.uniform(*city.saturation)
    weights = np.full((3, 3), (1 - saturation) / 3) + np.eye(3) * saturation
    image = cv2.transform(image, weights.astype(np.float32))
    grain = rng.uniform(*city.noise) * _grain(rng, h, w)
    grain += image
    return to_uint8(grain)


def _blur(image: np.ndarray, city: City, rng: np.random.Generator) -> np.ndarray:
    """Defocus, and in one image of eight the shake of the hand or the car."""
    unit = image.shape[1] / 640
    sigma = rng.uniform(*city.blur) * unit
    if sigma > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if rng.random() < 0.12:
        length, angle = rng.uniform(3, 9) * unit, rng.uniform(0, np.pi)
        size = max(3, int(length) | 1)
        kernel = np.zeros((size, size), np.float32)
        middle, reach = size // 2, length / 2 * np.array([np.cos(angle), np.sin(angle)])
        a, b = np.round(middle - reach).astype(int), np.round(middle + reach).astype(int)
        cv2.line(kernel, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 1.0, 1, cv2.LINE_AA)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    return image


def _white_balance(city: City, rng: np.random.Generator) -> np.ndarray:
    """The city's cast, off along warm and cold and hardly along green, as cameras are."""
    warm, green = rng.normal(0, 0.025), rng.normal(0, 0.006)
    return np.array(city.cast) * [1 + warm, 1 + green, 1 - warm]


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half-way towards middle grey, as an automatic exposure does, then a soft shoulder for the lights."""
    mean = float(image.mean()) + 1
    gain = (rng.uniform(102, 136) / mean) ** rng.uniform(0.4, 0.75)
    contrast = rng.uniform(1.0, 1.28)
    image = image * np.float32(gain * contrast)
    image += np.float32(80 * (1 - contrast))
    np.maximum(image, 0, out=image)
    bright = np.flatnonzero(image.ravel() > 190)  # few pixels, most often
    over = image.ravel()[bright] - 190
    # The shoulder turns x above 190 into 65 * x / (x + 65), that is, it takes x * x / (x + 65) away.
    image.ravel()[bright] -= over * over / (over + 65)
    return image


def _grain(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A random part of the noise tile, which is repeated where the image is larger."""
    tile = np.tile(_noise_tile(), (h // 1024 + 1, w // 1024 + 1, 1)) if max(h, w) > 1024 else _noise_tile()
    y, x = int(rng.integers(0, tile.shape[0] - h + 1)), int(rng.integers(0, tile.shape[1] - w + 1))
    return tile[y : y + h, x : x + w]
