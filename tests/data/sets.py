"""Small COCO data sets on disk, made for one test each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("good", "broke", "lose")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8, smooth and different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def coco(images: int = 3, *, per_image: int = 2, size: tuple[int, int] = (60, 100), **changes: Any) -> dict[str, Any]:
    """A sound COCO dict: ids from 1, `per_image` boxes of 20x10 in each image, categories in turn."""
    height, width = size
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"images/{i}.png", "height": height, "width": width} for i in range(1, images + 1)
        ],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)],
    }
    for number in range(images * per_image):
        content["annotations"].append({
            "id": number + 1, "image_id": number // per_image + 1, "category_id": number % len(CLASSES) + 1,
            "bbox": [5 + 30 * (number % per_image), 10, 20, 10], "area": 200, "iscrowd": 0,
        })  # fmt: skip
    return content | changes


def write(folder: Path, content: Any, name: str = "berlin.json", *, pictures: Sequence[str] | None = None) -> Path:
    """Write the json and a picture for each of its images (or for `pictures`); returns the json's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if pictures is None:
        pictures = [image["file_name"] for image in content["images"]]
    for seed, file_name in enumerate(pictures):
        path = folder / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(60, 100, seed)).save(path)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder / name
