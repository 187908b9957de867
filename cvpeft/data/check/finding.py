"""What a check finds, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cvpeft.data.coco import ImageRecord, Reading
from cvpeft.errors import DataError

__all__ = ["Anchors", "Case", "Finding", "Pixels", "Split", "error", "warning"]

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """level: an error makes the data unfit; a warning is for the user to judge. images: those that it is about."""

    level: Level
    code: str
    text: str
    images: tuple[Path, ...] = ()

    def entry(self) -> dict[str, Any]:
        """As it stands in check_report.json."""
        return {
            "level": self.level, "code": self.code, "text": self.text, "images": [str(path) for path in self.images]
        }  # fmt: skip


def error(fault: DataError, images: Sequence[Path] = ()) -> Finding:
    return Finding("error", f"E-{fault.code}", str(fault), tuple(images))


def warning(fault: DataError, images: Sequence[Path] = ()) -> Finding:
    """The same sentence with W- in front."""
    return Finding("warning", f"W-{fault.code}", f"W-{str(fault).removeprefix('E-')}", tuple(images))


@dataclass(frozen=True)
class Split:
    """One part of the data: its name (train, val, or that of its file), its files, and what could be read of them."""

    name: str
    files: tuple[Path, ...]
    reading: Reading

    @property
    def images(self) -> tuple[ImageRecord, ...]:
        return self.reading.data.images


@dataclass(frozen=True)
class Pixels:
    """What one image file holds. fault: why it cannot be decoded, all else is empty then.

    size: upright (height, width). orientation: EXIF, 1..8. hash: see similar.py. sha256: of the file's bytes.
    """

    fault: DataError | None
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    hash: tuple[int, int] = (0, 0)
    sha256: str = ""


@dataclass(frozen=True)
class Anchors:
    """sides: of the anchors in input pixels, finest first; ratios: height / width; size: network input (H, W)."""

    sides: tuple[float, ...]
    ratios: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Case:
    """What every check looks at. pixels: by path, empty where the images were not decoded."""

    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    pixels: Mapping[Path, Pixels] = field(default_factory=dict)
    anchors: Anchors | None = None

    def boxes(self, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (N, 4) x y w h, labels (N,), and the number of the image that each belongs to (N,)."""
        images = split.images
        if not images:
            return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64)
        counts = [len(image.boxes) for image in images]
        return (
            np.concatenate([image.boxes for image in images]),
            np.concatenate([image.labels for image in images]),
            np.repeat(np.arange(len(images)), counts),
        )
