"""Every head on every kind of backbone: one file, any batch, the boxes of torch; any size where the backbone can."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from cvpeft.config import schema
from cvpeft.detector.build import build_detector
from cvpeft.eval.coco_map import score
from cvpeft.export.onnx import Form, export_onnx
from cvpeft.export.score import AP_TOLERANCE, as_prediction
from cvpeft.export.verify import Tolerance, compare, predict_onnx, predict_torch, resized
from cvpeft.runtime.onnx_detector import Detector
from cvpeft.types import Prediction
from tests.export.stand_in import CLASSES, HEADS, scenes, spread

SIZE = (96, 128)
BACKBONES = {
    "vit": "vit_tiny_patch16_224",
    "dinov3": "vit_small_patch16_dinov3",
    "convnext": "convnext_atto",
    "swin": "swin_tiny_patch4_window7_224",
}
TOLERANCE = Tolerance(threshold=0.05)


def detector(head: str, backbone: str, size: tuple[int, int] = SIZE) -> nn.Module:
    """Random, with heads whose boxes and scores differ."""
    made = schema.Settings.model_validate(
        {
            "data": {"size": size},
            "backbone": {"name": BACKBONES[backbone], "weights": "none", "neck_width": 32},
            "detector": {"head": head, "head_width": 32, "proposals": 60, "score_threshold": 0.02},
        }
    )
    return spread(build_detector(made, CLASSES)).eval()


def same(model: nn.Module, file: Path, images: Tensor, batch: int) -> int:
    """The number of boxes that were compared, in batches of one size."""
    found = [one for part in images.split(batch) for one in Detector(file).raw(part.numpy())]
    agreement = compare(
        predict_torch(model, list(images)), [as_prediction(one) for one in found], threshold=TOLERANCE.threshold
    )
    assert agreement.within(TOLERANCE), agreement
    return agreement.boxes


def rows_of(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """COCO results, by number of image."""
    return [
        {"image_id": image, "category_id": label, "bbox": box, "score": sure}
        for image, one in enumerate(predictions)
        for box, sure, label in zip(
            box_convert(one["boxes"], "xyxy", "xywh").tolist(),
            one["scores"].tolist(),
            one["labels"].tolist(),
            strict=True,
        )
    ]


def truth_from(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """A random detector finds nothing that is there, so its own surest boxes, moved, are what it had to find."""
    generator = torch.Generator().manual_seed(0)
    moved = []
    for one in predictions:
        surest = slice(len(one["boxes"]) // 3)  # they come in falling order of their scores
        boxes = one["boxes"][surest]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + 0.03 * sides * torch.randn(boxes.shape, generator=generator)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        moved.append(Prediction(boxes=boxes, scores=one["scores"][surest], labels=one["labels"][surest]))
    annotations = [
        {**row, "id": k, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for k, row in enumerate(rows_of(moved), 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    images = [{"id": number} for number in range(len(predictions))]
    return {"images": images, "categories": categories, "annotations": annotations}


@pytest.mark.slow
@pytest.mark.parametrize(("head", "backbone"), list(product(HEADS, BACKBONES)))
def test_any_batch_gives_the_boxes_of_torch(head: str, backbone: str, tmp_path: Path) -> None:
    model, images = detector(head, backbone), scenes(8, seed=3)[0]
    file = export_onnx(model, tmp_path / "model.onnx", classes=CLASSES)
    assert all(same(model, file, images, batch) >= 20 for batch in (1, 2, 3, 8))
    many = list(scenes(100, seed=4)[0])
    wanted, found = predict_torch(model, many), predict_onnx(file, many)
    truth = truth_from(wanted)
    reached = score(truth, rows_of(wanted)).AP
    assert 0.02 < reached < 0.99
    assert abs(score(truth, rows_of(found)).AP - reached) <= AP_TOLERANCE


FREE = {  # backbone -> the size that it is built for, and others
    "dinov3": (SIZE, ((96, 128), (64, 192), (160, 160))),
    "convnext": (SIZE, ((96, 128), (64, 192), (160, 160))),
    "swin": ((256, 256), ((256, 256), (256, 320), (384, 288))),
}


@pytest.mark.slow
@pytest.mark.parametrize(("head", "backbone"), list(product(HEADS, FREE)))
def test_any_size_gives_the_boxes_of_torch(head: str, backbone: str, tmp_path: Path) -> None:
    own, sizes = FREE[backbone]
    model, images = detector(head, backbone, own), scenes(3, seed=3)[0]
    file = export_onnx(model, tmp_path / "model.onnx", classes=CLASSES, form=Form(free_size=True))
    for size in sizes:
        inputs = nn.functional.interpolate(images.float(), size).to(torch.uint8)
        assert same(resized(model, size), file, inputs, 2) >= 5
