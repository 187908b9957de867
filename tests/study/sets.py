"""A tiny config with data, for trainings of a second."""

from __future__ import annotations

from pathlib import Path

from tests.data.sets import coco, write

CONFIG = """
data: {{root: "{root}", train: train/train.json, val: val/val.json, size: [64, 96], augment: flip, workers: 0}}
backbone: {{name: convnext_atto, weights: none, neck_width: 16}}
peft: {{methods: [{{lora: {{rank: 2}}}}]}}
detector: {{head_width: 16, proposals: 20}}
train: {{epochs: 2, batch: 2, device: cpu, precision: fp32}}
eval: {{latency_images: 0}}
"""


def config(folder: Path, *, name: str = "tiny.yaml") -> Path:
    """A config with 4 training images and 2 of val and test each; test is not named in it."""
    for split, images in (("train", 4), ("val", 2), ("test", 2)):
        write(folder / split, coco(images), f"{split}.json")
    file = folder / name
    file.write_text(CONFIG.format(root=folder))
    return file
