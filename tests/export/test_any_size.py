"""One file for every size on backbones that timm builds for one: the boxes of the detector that is made for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cvpeft.errors import DataError
from cvpeft.export.onnx import Form, export_onnx
from cvpeft.export.verify import Tolerance, compare, predict_onnx, predict_torch, resized
from cvpeft.runtime.onnx_detector import Detector
from tests.backbone.test_any_size import SIZES
from tests.export.stand_in import CLASSES, on_small_backbone, scenes

TIGHT = Tolerance(threshold=0.02)


@pytest.mark.slow  # half a minute for each; torch's side of it is quick, in tests/backbone
@pytest.mark.parametrize("family", SIZES)
def test_the_boxes_are_those_of_the_detector_made_for_the_size(family: str, tmp_path: Path) -> None:
    model, sizes = on_small_backbone(family), SIZES[family]
    file = export_onnx(model, tmp_path / "free.onnx", classes=CLASSES, form=Form(free_size=True))
    boxes = 0
    for size in sizes:
        images = [nn.functional.interpolate(i[None].float(), size)[0].to(torch.uint8) for i in scenes(3, seed=1)[0]]
        agreement = compare(predict_torch(resized(model, size), images), predict_onnx(file, images), threshold=0.02)
        assert agreement.within(TIGHT), (size, agreement)
        boxes += agreement.boxes
    assert boxes > 30
    height, width = sizes[0]
    least = model.backbone.body.least_size  # type: ignore[union-attr]
    for wrong in ((height + 8, width), (height, least[1] - 32)):
        with pytest.raises(DataError, match=rf"multiples of 32, from {least[0]} x {least[1]} on, this one is"):
            Detector(file).raw(np.zeros((1, 3, *wrong), np.uint8))
