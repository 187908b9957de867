"""Ground truth and results to score: random ones with everything that breaks a scorer, and small ones made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = ("good", "broke", "lose", "uncovered")


def truth(
    boxes: list[tuple], images: int = 1, classes: tuple[str, ...] = CLASSES, domains: str = "a"
) -> dict[str, Any]:
    """boxes: (image_id, category_id, xywh, [crowd]); the images take their domains from the letters in turn."""
    return {
        "images": [{"id": i, "domain": domains[(i - 1) % len(domains)]} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": label,
                "bbox": [float(side) for side in box],
                "area": float(box[2] * box[3]),
                "iscrowd": int(crowd == [True]),
            }
            for i, (image, label, box, *crowd) in enumerate(boxes, start=1)
        ],
    }


def found(*rows: tuple) -> list[dict[str, Any]]:
    """rows: (image_id, category_id, xywh, score)."""
    return [
        {"image_id": image, "category_id": label, "bbox": [float(side) for side in box], "score": float(score)}
        for image, label, box, score in rows
    ]


def perfect(ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [(box["image_id"], box["category_id"], box["bbox"], 1.0) for box in ground_truth["annotations"]]
    return found(*rows)


def random_set(seed: int, images: int = 16, distinct: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of all COCO sizes, crowd regions, empty images, a class without boxes, one image with more than 100
    detections of a class, doubled and confused detections; scores with many ties unless `distinct`."""
    rng = np.random.default_rng(seed)
    boxes: list[tuple] = []
    rows: list[tuple] = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 6)) * (image % 4 > 0)):
            label, box = int(rng.integers(1, len(CLASSES))), _box(rng)
            boxes.append((image, label, box, rng.random() < 0.15))
            for _ in range(int(rng.integers(0, 4))):
                guess = label if rng.random() < 0.8 else int(rng.integers(1, len(CLASSES) + 1))
                rows.append((image, guess, box + rng.normal(0, 0.05, 4) * box[[2, 3, 2, 3]], rng.random()))
        for _ in range(130 if image == 1 + seed % images else int(rng.integers(0, 8))):
            label = 1 if image == 1 + seed % images else int(rng.integers(1, len(CLASSES) + 1))
            rows.append((image, label, _box(rng), rng.random()))
    rows = [(i, c, np.maximum(b, [-np.inf, -np.inf, 1, 1]), s if distinct else round(s, 1)) for i, c, b, s in rows]
    rng.shuffle(rows)
    return truth(boxes, images, domains="abc"), found(*rows)


def _box(rng: np.random.Generator) -> np.ndarray:
    side = np.exp(rng.uniform(np.log(8), np.log(250)))
    return np.array([*rng.uniform(0, 400, 2), side, side * rng.uniform(0.6, 1.6)])
