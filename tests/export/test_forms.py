"""Forms of the exported file: bytes in, half the size, the last NMS left to others. Each gives the same boxes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cvpeft.export.onnx import Form, export_onnx, halved
from cvpeft.export.verify import Tolerance, compare, predict_onnx, predict_torch
from cvpeft.runtime.nms import suppress
from cvpeft.runtime.onnx_detector import Detector
from tests.export.stand_in import CLASSES, HEADS, scenes

TIGHT = Tolerance(threshold=0.02)

# a form is the same change to every head's graph: one head is proven each time, all of them where there are minutes
one_quick_head = pytest.mark.parametrize(
    "detector",
    [pytest.param(head, marks=pytest.mark.slow if head != HEADS[0] else ()) for head in HEADS],
    indirect=True,
)


def agrees(model: nn.Module, file: Path, images: int = 7) -> int:
    """Number of boxes, all of which the file gives too."""
    inputs = list(scenes(images, seed=1)[0].to(torch.uint8))
    agreement = compare(predict_torch(model, inputs), predict_onnx(file, inputs), threshold=TIGHT.threshold)
    assert agreement.within(TIGHT), agreement
    return agreement.boxes


def test_bytes_as_decoders_give_them(quick: nn.Module, tmp_path: Path) -> None:
    file = export_onnx(quick, tmp_path / "bytes.onnx", classes=CLASSES, form=Form(takes="uint8"))
    said = onnx.load(file).graph.input[0].type.tensor_type
    assert said.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_value for axis in said.shape.dim][1:] == [96, 128, 3]
    assert agrees(quick, file) > 10


@one_quick_head
def test_without_the_last_nms_all_candidates_are_given(detector: nn.Module, tmp_path: Path) -> None:
    file = export_onnx(detector, tmp_path / "raw.onnx", classes=CLASSES, form=Form(nms=False))
    said = Detector(file).metadata["nms"]
    assert said["inside"] is False
    assert agrees(detector, file) > 10
    scores = Detector(file)._session.run(["scores", "num"], {"images": scenes(1)[0].float().numpy()})
    assert scores[1][0] > said["max_detections"]
    assert (np.diff(scores[0][0]) <= 0).all()


def test_half_the_size_computes_with_the_rounded_weights(quick: nn.Module, quick_file: Path, tmp_path: Path) -> None:
    half = export_onnx(quick, tmp_path / "half.onnx", classes=CLASSES, form=Form(weights="fp16"))
    sizes = {path: sum(len(t.raw_data) for t in onnx.load(path).graph.initializer) for path in (quick_file, half)}
    assert sizes[half] < 0.7 * sizes[quick_file]
    assert agrees(halved(quick), half) > 10


@one_quick_head
def test_a_free_size_is_every_size(detector: nn.Module, tmp_path: Path) -> None:
    file = export_onnx(detector, tmp_path / "free.onnx", classes=CLASSES, form=Form(takes="uint8", free_size=True))
    model = copy.deepcopy(detector)
    boxes = 0
    for size in ((96, 128), (64, 64), (160, 224), (32, 256)):
        model.transform.size = size  # type: ignore[union-attr,assignment]
        images = [torch.nn.functional.interpolate(i[None].float(), size)[0].byte() for i in scenes(3, seed=1)[0]]
        agreement = compare(predict_torch(model, images), predict_onnx(file, images), threshold=0.02)
        assert agreement.missing == agreement.extra == 0
        assert agreement.max_score_difference < 1e-5
        boxes += agreement.boxes
    assert boxes > 30


@pytest.mark.parametrize("seed", range(5))
def test_suppress_equals_torchvision(seed: int) -> None:
    from torchvision.ops import batched_nms

    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(80, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + torch.rand(80, 2, generator=generator) * 40), dim=-1)
    scores, labels = torch.rand(80, generator=generator), torch.randint(0, 3, (80,), generator=generator)
    expected = batched_nms(boxes, scores, labels, 0.4).tolist()
    assert suppress(boxes.numpy(), scores.numpy(), labels.numpy(), 0.4).tolist() == expected
    assert suppress(np.zeros((0, 4)), np.zeros(0), np.zeros(0), 0.5).tolist() == []
    flat = np.array([[1.0, 1, 1, 5], [1, 1, 1, 5]])
    assert suppress(flat, np.array([0.9, 0.8]), np.array([1, 1]), 0.5).tolist() == [0, 1]
