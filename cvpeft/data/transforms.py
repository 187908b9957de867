"""Photograph and boxes -> network input and boxes, with or without augmentation.

An augmentation is a function of its inputs and one seed. Geometry works on the source pixels, so that a crop gives
small objects real resolution; light and weather work on the resized image, where they cost less; the bars come last.
This is the one file that knows albumentations.
"""

from __future__ import annotations

import difflib
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cvpeft.errors import ConfigError
from cvpeft.runtime.image import Letterbox, Size, fit, letterbox, resize

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the package index for a newer version on import
import albumentations as A

__all__ = ["ALLOWED", "PRESETS", "Augment", "Augmented", "Spec", "build_augment", "keep"]

Spec = str | Sequence[str | Mapping[str, Mapping[str, Any]]]
Augmented = tuple[np.ndarray, np.ndarray, np.ndarray, Letterbox]
PRESETS = ("none", "flip", "road")
ALLOWED = (
    "Affine", "AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "Blur", "CLAHE", "CoarseDropout", "ColorJitter",
    "Defocus", "Downscale", "GaussNoise", "GaussianBlur", "HorizontalFlip", "HueSaturationValue", "ISONoise",
    "ImageCompression", "MedianBlur", "MotionBlur", "Perspective", "PlanckianJitter", "RGBShift",
    "RandomBrightnessContrast", "RandomFog", "RandomGamma", "RandomRain", "RandomRotate90", "RandomShadow",
    "RandomSizedBBoxSafeCrop", "RandomSnow", "RandomSunFlare", "RandomToneCurve", "Rotate", "SafeRotate", "Sharpen",
    "ToGray", "Transpose", "VerticalFlip",
)  # fmt: skip

MIN_VISIBLE = 0.3  # boxes that keep less of their area are dropped
MIN_SIDE = 1.0  # and those thinner than this in the network input
CROP, CROP_SIDE = 0.5, (0.5, 1.0)  # probability, sides as a part of the image's
ZOOM_OUT, ZOOM_OUT_SCALE = 0.15, (0.6, 1.0)
STRETCH = 1.1  # largest change of a crop's aspect ratio; the crop itself is not distorted


class Augment(Protocol):
    """detail: resolution that the decoder has to deliver, as a multiple of the network's."""

    detail: float

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, source_hw: Size, seed: int
    ) -> Augmented:
        """Image (H, W, 3) uint8 at network size, boxes (N', 4) float64 in its pixels, labels (N',), and the geometry.

        image: (h, w, 3) uint8, decoded at full size or at a fraction of it. boxes: (N, 4) x1 y1 x2 y2 in pixels of
        source_hw. labels: (N,). seed: decides everything that is random.
        The geometry maps source pixels to network pixels for "none"; otherwise it is that of the cropped image.
        """
        ...


def build_augment(spec: Spec, size: Size) -> Augment:
    """The augmentation that the config asks for: one of PRESETS, or albumentations names out of ALLOWED with settings.

    Raises ConfigError for an unknown name (with a suggestion) and for settings that albumentations does not take.
    """
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise ConfigError(
                "AUGMENT", f"data.augment is {spec!r}; it may be {', '.join(PRESETS)} or a list of transforms"
            )
        return Plain(size) if spec == "none" else Road(size, weather=spec == "road")
    return Listed(size, [_transform(entry) for entry in spec])


class Plain:
    """Letterbox only: what evaluation and deployment do."""

    detail = 1.0

    def __init__(self, size: Size) -> None:
        self.size = size

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, source_hw: Size, seed: int
    ) -> Augmented:
        canvas, geometry = letterbox(image, self.size, source_hw)
        boxes, labels = keep(geometry.forward(boxes), labels, geometry)
        return canvas, boxes, labels, geometry


class Road:
    """The default for road photographs; without weather only the horizontal flip is left.

    Half of the images are cropped around one of their boxes, some are shrunk into grey, half are mirrored; then light,
    shadow, rain, blur, noise and compression, each with a modest probability.
    """

    def __init__(self, size: Size, *, weather: bool) -> None:
        self.size = size
        self.weather = _weather() if weather else None
        self.detail = 1 / CROP_SIDE[0] if weather else 1.0

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, source_hw: Size, seed: int
    ) -> Augmented:
        rng = np.random.default_rng(seed)
        boxes = _rescale(boxes, source_hw, image)
        crop, scale = _view(rng, image, boxes) if self.weather is not None else (_whole(image), 1.0)
        x1, y1, x2, y2 = crop
        geometry = _place(rng, (y2 - y1, x2 - x1), self.size, scale)
        inner = resize(image[y1:y2, x1:x2], geometry.inner)
        boxes, labels = keep(geometry.forward(boxes - (x1, y1, x1, y1)), labels, geometry)
        if rng.random() < 0.5:
            inner = inner[:, ::-1]
            shift = 2 * geometry.left + geometry.inner[1]
            boxes = np.stack((shift - boxes[:, 2], boxes[:, 1], shift - boxes[:, 0], boxes[:, 3]), 1)
        if self.weather is not None:
            inner = _run(self.weather, rng, image=np.ascontiguousarray(inner))["image"]
        return geometry.paste(inner), boxes, labels, geometry


class Listed:
    """The user's own list, run in its order on the source pixels; then the letterbox."""

    detail = 2.0  # room for crops

    def __init__(self, size: Size, transforms: list[A.BasicTransform]) -> None:
        self.size = size
        params = A.BboxParams(
            "pascal_voc", ["labels"], min_visibility=MIN_VISIBLE, clip=True, filter_invalid_bboxes=True
        )
        # NoOp takes boxes: a list of pixel transforms alone would be refused for having no use for them.
        self.compose = A.Compose([*transforms, A.NoOp()], bbox_params=params)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, source_hw: Size, seed: int
    ) -> Augmented:
        boxes = _rescale(boxes, source_hw, image)
        rng = np.random.default_rng(seed)
        try:
            done = _run(self.compose, rng, image=np.ascontiguousarray(image), bboxes=boxes, labels=labels)
        except Exception as error:  # a transform that does not suit the image raises what it likes
            what = f"data.augment fails on an image of {image.shape[1]}x{image.shape[0]} ({_first_line(error)})"
            raise ConfigError("AUGMENT", what) from error
        canvas, geometry = letterbox(done["image"], self.size)
        boxes = np.asarray(done["bboxes"], np.float64).reshape(-1, 4)
        labels = np.asarray(done["labels"], np.int64).reshape(-1)
        boxes, labels = keep(geometry.forward(boxes), labels, geometry, 0.0)
        return canvas, boxes, labels, geometry


# ------------------------------------------------------------------------------------------------------------ geometry


def _view(rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray) -> tuple[tuple[int, int, int, int], float]:
    """A window x1 y1 x2 y2 and the scale that it is shown at: a crop, the whole image, or the whole made smaller."""
    luck = rng.random()
    if luck < CROP:
        return _crop(rng, image, boxes), 1.0
    return _whole(image), rng.uniform(*ZOOM_OUT_SCALE) if luck < CROP + ZOOM_OUT else 1.0


def _whole(image: np.ndarray) -> tuple[int, int, int, int]:
    return 0, 0, image.shape[1], image.shape[0]


def _crop(rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray) -> tuple[int, int, int, int]:
    """A window of about the image's aspect ratio that holds one box, chosen by chance, as a whole where it can."""
    side, stretch = rng.uniform(*CROP_SIDE), STRETCH ** rng.uniform(-1, 1)
    held = boxes[rng.integers(len(boxes))] if len(boxes) else None
    spans = []
    for axis, part in ((0, side * stretch), (1, side / stretch)):
        room = image.shape[1 - axis]
        length = max(1, min(room, round(part * room)))
        low, high = 0.0, float(room - length)
        if held is not None:
            low, high = np.clip(sorted((held[axis + 2] - length, held[axis])), low, high)
        start = round(low + (high - low) * rng.random())  # not rng.uniform, which refuses a range from 0.0 to -0.0
        spans.append((start, start + length))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _place(rng: np.random.Generator, window: Size, size: Size, scale: float) -> Letterbox:
    """The centred letterbox; at a scale below 1 the window is smaller and lies anywhere on the canvas."""
    if scale == 1.0:
        return fit(window, size)
    height, width = fit(window, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))).inner
    top, left = (int(rng.integers(room - side + 1)) for side, room in zip((height, width), size, strict=True))
    return Letterbox(window, size, (height, width), top, left)


def _rescale(boxes: np.ndarray, source_hw: Size, image: np.ndarray) -> np.ndarray:
    """Boxes of the full photograph -> boxes of the decoded image, which may be a fraction of it."""
    y, x = image.shape[0] / source_hw[0], image.shape[1] / source_hw[1]
    return np.asarray(boxes, np.float64).reshape(-1, 4) * (x, y, x, y)


def keep(
    boxes: np.ndarray, labels: np.ndarray, geometry: Letterbox, visible: float = MIN_VISIBLE
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes (N, 4) to what is seen of the image; drop those, with their labels (N,), that are too thin to learn.

    visible: the part of its area that a box must keep, or it is dropped too.
    """
    y, x, (height, width) = geometry.top, geometry.left, geometry.inner
    bottom, right = min(y + height, geometry.size[0]), min(x + width, geometry.size[1])
    y, x = max(y, 0), max(x, 0)  # a tile begins inside the image
    clipped = np.clip(boxes, (x, y, x, y), (right, bottom, right, bottom))
    sides = clipped[:, 2:] - clipped[:, :2]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    keep = (sides.min(1, initial=np.inf) >= MIN_SIDE) & (np.prod(sides, axis=1) >= visible * area)
    return clipped[keep], labels[keep]


# ------------------------------------------------------------------------------------------------------ albumentations


def _weather() -> A.Compose:
    """For an image at network size; the probabilities weigh how common a thing is against what it costs."""
    return A.Compose([
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        A.RandomGamma(gamma_limit=(70, 140), p=0.3),
        A.HueSaturationValue(hue_shift_limit=6, sat_shift_limit=20, val_shift_limit=0, p=0.3),
        A.RandomShadow((0, 0.2, 1, 1), (1, 2), shadow_dimension=3, shadow_intensity_range=(0.3, 0.6), p=0.15),
        A.RandomRain((-10, 10), 14, drop_color=(180, 180, 180), blur_value=3, brightness_coefficient=0.85, p=0.03),
        A.MotionBlur(blur_limit=(3, 7), p=0.08),
        A.GaussianBlur(sigma_limit=(0.3, 1.2), p=0.08),
        A.GaussNoise(std_range=(0.01, 0.05), noise_scale_factor=0.5, p=0.06),
        A.ImageCompression(quality_range=(40, 90), p=0.12),
    ])  # fmt: skip


def _run(compose: A.Compose, rng: np.random.Generator, **data: Any) -> dict[str, Any]:
    """All transforms draw from one stream. `set_random_seed` would give each its own copy of the same stream, so that
    a mirrored image would always be the bright one."""
    compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))  # noqa: S311
    return compose(**data)


def _transform(entry: str | Mapping[str, Mapping[str, Any]]) -> A.BasicTransform:
    if not isinstance(entry, str) and len(entry) != 1:
        raise ConfigError("AUGMENT", f"an entry of data.augment names one transform, not {', '.join(entry) or 'none'}")
    name, settings = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    if name not in ALLOWED:
        near = difflib.get_close_matches(name, ALLOWED, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        what = f"data.augment names {name!r}, which is not among the transforms{hint}"
        raise ConfigError("AUGMENT", what, fix=f"take one of {', '.join(ALLOWED)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an unknown argument only warns
            return getattr(A, name)(**(settings or {}))
    except (UserWarning, ValueError, TypeError) as error:
        raise ConfigError(
            "AUGMENT", f"{name} in data.augment does not take its settings ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:3] if line.strip()).rstrip(".")
