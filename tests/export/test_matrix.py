"""Every head on every kind of backbone: one file, any batch, the boxes of torch; any size where the backbone can."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


def truth_from(predictions: Sequence[Prediction]) -> dict[str, object]:
    """A random detector finds nothing that is there, so its own surest boxes, moved, are what it had to find."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for image, one in enumerate(predictions):
        surest = slice(len(one["boxes"]) // 3)  # they come in falling order of their scores
        boxes = one["boxes"][surest]
        moved = boxes + 0.03 * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) * torch.randn(
            boxes.shape, generator=generator
        )
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        rows += [(image, box, label) for box, label in zip(moved, one["labels"][surest].tolist(), strict=True)]
    annotations = [
        {"id": k, "image_id": image, "category_id": label, "bbox": xywh(box), "area": area(box), "iscrowd": 0}
        for k, (image, box, label) in enumerate(rows, 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    return {
        "images": [{"id": i} for i in range(len(predictions))],
        "categories": categories,
        "annotations": annotations,
    }


def xywh(box: Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def area(box: Tensor) -> float:
    *_, width, height = xywh(box)
    return width * height


def ap_of(predictions: Sequence[Prediction], truth: dict[str, object]) -> float:
    return score(truth, [
        {"image_id": image, "category_id": label, "bbox": xywh(box), "score": sure}
        for image, one in enumerate(predictions)
        for box, sure, label in zip(one["boxes"], one["scores"].tolist(), one["labels"].tolist(), strict=True)
    ]).AP  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("head", "backbone"), list(product(HEADS, BACKBONES)))
def test_any_batch_gives_the_boxes_of_torch(head: str, backbone: str, tmp_path: Path) -> None:
    model, images = detector(head, backbone), scenes(8, seed=3)[0]
    file = export_onnx(model, tmp_path / "model.onnx", classes=CLASSES)
    assert all(same(model, file, images, batch) >= 20 for batch in (1, 2, 3, 8))
    many = list(scenes(100, seed=4)[0])
    wanted, found = predict_torch(model, many), predict_onnx(file, many)
    truth = truth_from(wanted)
    reached = ap_of(wanted, truth)
    assert 0.02 < reached < 0.99
    assert abs(ap_of(found, truth) - reached) <= AP_TOLERANCE


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
