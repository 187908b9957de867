"""The exported file: what onnxruntime computes from it, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cvpeft import __version__
from cvpeft.errors import ConfigError, ParityError, ResourceError
from cvpeft.export.onnx import export_onnx
from tests.export.stand_in import CLASSES, SIZE, scenes, stand_in


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_onnxruntime_gives_torchvisions_boxes_at_any_batch(detector, exported, batch):
    images = scenes(batch, seed=2)[0]
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    boxes, scores, labels, num = session.run(None, {"images": images.float().numpy()})
    assert boxes.dtype == scores.dtype == np.float32
    assert labels.dtype == num.dtype == np.int64
    with torch.no_grad():
        expected = detector(images)
    for i, rows in enumerate(expected):
        n = int(num[i])
        assert n == len(rows["boxes"]) > 0
        np.testing.assert_allclose(boxes[i, :n], rows["boxes"].numpy(), atol=1e-3)
        np.testing.assert_allclose(scores[i, :n], rows["scores"].numpy(), atol=1e-5)
        assert labels[i, :n].tolist() == rows["labels"].tolist()


def test_the_file_is_valid_whole_and_says_how_to_be_fed(exported):
    onnx.checker.check_model(exported, full_check=True)
    model = onnx.load(exported, load_external_data=False)
    assert not any(t.HasField("data_location") and t.data_location for t in model.graph.initializer)
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["boxes", "scores", "labels", "num"]
    assert (model.opset_import[0].version, model.ir_version) == (18, 10)
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said["classes"] == list(CLASSES)
    assert said["input_size"] == list(SIZE)
    assert said["score_thresholds"] == {"red": 0.01, "green": 0.01, "blue": 0.01}
    assert (said["resize"], said["pad_value"], said["color_order"]) == ("letterbox", 114, "RGB")
    assert (said["mean"], said["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert said["nms"]["max_detections"] == 30
    assert (said["cvpeft_version"], said["licence"]) == (__version__, "Apache-2.0")


def test_the_file_names_no_path_of_this_machine(exported):
    assert b"/" + b"torch" + b"/" not in exported.read_bytes()
    assert b".py" not in exported.read_bytes()


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(quick, tmp_path):
    one = export_onnx(quick, tmp_path / "one.onnx", classes=CLASSES)
    other = export_onnx(quick, tmp_path / "other.onnx", classes=CLASSES)
    assert one.read_bytes() == other.read_bytes()


class Program:
    """What the exporter gives, as far as it is looked at."""

    def __init__(self, opset=18):
        images = SimpleNamespace(shape=["batch"])
        graph = SimpleNamespace(all_nodes=list, inputs=[images])
        self.model = SimpleNamespace(graph=graph, metadata_props={}, opset_imports={"": opset})

    def save(self, path, external_data):
        Path(path).write_bytes(b"half a mod")
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file(quick, tmp_path, monkeypatch):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    monkeypatch.setattr("cvpeft.export.onnx.torch.onnx.export", lambda *_, **__: Program())
    with pytest.raises(ResourceError, match="No space left"):
        export_onnx(quick, target, classes=CLASSES)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_of_one_batch_size_is_refused(tmp_path):
    class Fixed(nn.Module):
        out_channels = 32

        def forward(self, x):
            y = functional.avg_pool2d(x, 16).mean(dim=1, keepdim=True)
            return {"0": y.expand(len(x), 32, -1, -1)}  # len() is a constant to the exporter

    model = stand_in("retinanet")
    model.backbone = Fixed()
    model.anchor_generator = AnchorGenerator(((16,),), ((0.5, 1.0, 2.0),))
    with pytest.raises(ParityError, match="exactly 2 images"):
        export_onnx(model, tmp_path / "model.onnx", classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("opset", "because"), [(99, r"onnx \S+ ends at (\d+)"), (20, r"the exporter left the graph at (18)")]
)
def test_an_opset_that_cannot_be_written_is_refused(quick, tmp_path, monkeypatch, opset, because):
    monkeypatch.setattr("cvpeft.export.onnx.torch.onnx.export", lambda *_, **__: Program())
    with pytest.raises(ConfigError, match=rf"E-OPSET opset {opset} cannot be written: {because}\..* Fix: .*opset=\1$"):
        export_onnx(quick, tmp_path / "model.onnx", classes=CLASSES, opset=opset)
    assert list(tmp_path.iterdir()) == []
