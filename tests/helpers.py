"""A tiny detection data set on disk and settings for runs that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cvpeft.config import schema

CLASSES = ("good", "broke")
COLOURS = ((220, 60, 40), (40, 90, 220))  # one for each class
SIZE = (64, 96)
QUICK = {"head": "retinanet", "anchor_sizes": (16, 32, 64)}  # the detector that exports fastest


def ellipses(folder: Path, images: int, *, name: str = "train", seed: int = 0, negatives: int = 0) -> Path:
    """COCO json and PNG photos of SIZE: one or two coloured ellipses on grey noise; the last `negatives` have none."""
    rng = np.random.default_rng((seed, len(name)))
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": c} for k, c in enumerate(CLASSES, 1)],
    }
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(1, images + 1):
        file_name = f"images/{name}_{number}.png"
        boxes = [] if number > images - negatives else _boxes(rng)
        _picture(rng, boxes).save(folder / file_name)
        content["images"].append({"id": number, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]})
        for label, box in boxes:
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": number, "category_id": label, "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0,
            })  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def _boxes(rng: np.random.Generator) -> list[tuple[int, list[int]]]:
    """One box in the left half, sometimes one in the right half: (label, xywh)."""
    boxes = []
    for left in (0, SIZE[1] // 2)[: int(rng.integers(1, 3))]:
        w, h = int(rng.integers(16, 34)), int(rng.integers(14, 30))
        x, y = left + int(rng.integers(1, SIZE[1] // 2 - w)), int(rng.integers(1, SIZE[0] - h))
        boxes.append((int(rng.integers(1, len(CLASSES) + 1)), [x, y, w, h]))
    return boxes


def _picture(rng: np.random.Generator, boxes: list[tuple[int, list[int]]]) -> Image.Image:
    grey = rng.normal(120, 12, SIZE).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(np.stack([grey] * 3, -1))
    draw = ImageDraw.Draw(image)
    for label, (x, y, w, h) in boxes:
        draw.ellipse((x, y, x + w, y + h), fill=COLOURS[label - 1])
    return image


def settings(folder: Path, **sections: dict[str, Any]) -> schema.Settings:
    """A run on `folder`/train.json that ends in seconds; `sections` change single settings of each section."""
    plain: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "dir": folder / "runs"},
        "data": {
            "root": folder, "train": (folder / "train.json",), "size": SIZE, "augment": "flip", "workers": 0,
        },
        "backbone": {"name": "convnext_atto", "weights": "none", "neck_width": 16},
        "peft": {"methods": (schema.Method(name="lora", settings={"rank": 2}),)},
        "detector": {"head_width": 16, "rois_per_image": 16, "proposals": 50},
        "train": {"epochs": 2, "batch": 2, "precision": "fp32", "device": "cpu"},
        "eval": {"latency_images": 0},
    }  # fmt: skip
    if (folder / "val.json").exists():
        plain["data"]["val"] = (folder / "val.json",)
    for name, changes in sections.items():
        plain.setdefault(name, {}).update(changes)
    return schema.Settings.model_validate(plain)
