"""The runner: an exported file on photos, without torch, and files that are not its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cvpeft.errors import ConfigError, DataError
from cvpeft.runtime.onnx_detector import Detector, Loaded

SIZE = (96, 128)
K = 3
METADATA = {
    "classes": ["good", "井盖"],
    "input_size": list(SIZE),
    "score_thresholds": {"good": 0.5, "井盖": 0.2},
    "resize": "letterbox",
    "pad_value": 114,
    "color_order": "RGB",
    "input_range": [0, 255],
    "input_dtype": "float32",
    "input_layout": "NCHW",
    "nms": {"inside": True, "iou": 0.5, "max_detections": K},
}


def model_file(path: Path, metadata: dict, boxes=None, scores=None, labels=None) -> Path:
    """A file with the exported signature, which finds the same rows in every image.

    Scores are multiplied with the brightness of the input's centre, so they show what was fed: white gives them whole.
    """
    boxes = np.zeros((1, K, 4), np.float32) if boxes is None else np.array([boxes], np.float32)
    scores = np.zeros((1, K), np.float32) if scores is None else np.array([scores], np.float32)
    labels = np.zeros((1, K), np.int64) if labels is None else np.array([labels], np.int64)
    constants = {
        "all_boxes": boxes,
        "all_scores": scores,
        "all_labels": labels,
        "from": np.array([0, 0, SIZE[0] // 2, SIZE[1] // 2]),
        "to": np.array([2**30, 1, SIZE[0] // 2 + 1, SIZE[1] // 2 + 1]),
        "white": np.array([255.0], np.float32),
        "flat": np.array([-1, 1]),
        "flat3": np.array([-1, 1, 1]),
        "zero": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["images", "from", "to"], ["pixel"]),
        helper.make_node("Div", ["pixel", "white"], ["bright"]),
        helper.make_node("Reshape", ["bright", "flat"], ["b2"]),
        helper.make_node("Reshape", ["bright", "flat3"], ["b3"]),
        helper.make_node("Mul", ["b2", "all_scores"], ["scores"]),
        helper.make_node("Mul", ["b3", "zero"], ["z3"]),
        helper.make_node("Add", ["z3", "all_boxes"], ["boxes"]),
        helper.make_node("Mul", ["b2", "zero"], ["z2"]),
        helper.make_node("Cast", ["z2"], ["i2"], to=TensorProto.INT64),
        helper.make_node("Add", ["i2", "all_labels"], ["labels"]),
        helper.make_node("ReduceMax", ["labels"], ["num"], axes=[1], keepdims=0),
    ]
    outputs = [
        ("boxes", 1, ["batch", K, 4]),
        ("scores", 1, ["batch", K]),
        ("labels", 7, ["batch", K]),
        ("num", 7, ["batch"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *SIZE])],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    onnx.save(model, path)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    """Two boxes of class 1, one of class 2."""
    boxes = [(10, 30, 50, 60), (0, 0, 128, 96), (64, 24, 128, 72)]
    return model_file(tmp_path / "model.onnx", METADATA, boxes, [0.9, 0.4, 0.3], [1, 1, 2])


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def test_reads_what_the_file_says(file):
    detector = Detector(file)
    assert detector.classes == ("good", "井盖")
    assert detector.size == SIZE
    assert detector.thresholds == {"good": 0.5, "井盖": 0.2}
    assert detector.metadata["pad_value"] == 114


def test_boxes_come_back_in_pixels_of_the_photo(file):
    (found,) = Detector(file)([white(96, 256)])  # scaled by 1/2, 24 rows of grey above and below
    assert found.names == ("good", "井盖")  # 0.4 is below the threshold of its class, 0.3 is above that of the other
    assert found.labels.tolist() == [1, 2]
    np.testing.assert_allclose(found.scores, [0.9, 0.3], atol=1e-6)
    np.testing.assert_allclose(found.boxes, [(20, 12, 100, 72), (128, 0, 256, 96)], atol=1e-4)


def test_a_threshold_of_ones_own_counts_for_all_classes(file):
    (found,) = Detector(file)([white(96, 256)], threshold=0.35)
    np.testing.assert_allclose(found.scores, [0.9, 0.4], atol=1e-6)
    (found,) = Detector(file)([white(96, 256)], threshold=0.95)
    assert found.boxes.shape == (0, 4)
    assert found.names == ()


def test_one_name_leaves_the_best_of_what_counts_and_overlaps(tmp_path: Path) -> None:
    boxes = [(10, 30, 50, 60), (10, 30, 50, 64), (64, 24, 128, 72)]  # IoU of the first two: 30 / 34
    file = model_file(tmp_path / "model.onnx", METADATA, boxes, [0.45, 0.4, 0.3], [1, 2, 2])
    detector, photo = Detector(file), [white(96, 128)]

    def scores(**options: float) -> list[float]:
        return [round(float(score), 2) for score in detector(photo, **options)[0].scores]

    assert scores(threshold=0.0) == [0.45, 0.4, 0.3]
    assert scores(threshold=0.0, one_name=0.7) == [0.45, 0.3]
    assert scores(threshold=0.0, one_name=0.9) == [0.45, 0.4, 0.3]
    assert scores(one_name=0.7) == [0.4, 0.3]  # 0.45 is below the threshold of its class, and takes no box with it


def test_files_and_arrays_give_the_same(file, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 200, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "照片.png")
    by_file, by_array = Detector(file)([tmp_path / "照片.png", pixels], threshold=0.0)
    assert np.array_equal(by_file.scores, by_array.scores)
    assert np.array_equal(by_file.boxes, by_array.boxes)
    assert by_file.scores[0] < 0.9


def test_a_photo_decoded_at_a_fraction_gives_boxes_of_its_full_size(file):
    detector = Detector(file)
    assert detector.least == SIZE
    assert Detector(file, canvas="photo").least is None
    (found,) = detector([Loaded(white(96, 256), (192, 512))])
    np.testing.assert_allclose(found.boxes, [(40, 24, 200, 144), (256, 0, 512, 192)], atol=1e-4)


def test_raw_keeps_all_rows_but_padding_and_background(tmp_path):
    path = model_file(tmp_path / "m.onnx", METADATA, [(1, 2, 3, 4)] * 3, [0.9, 0.8, 0.0], [2, 0, 0])
    found = Detector(path).raw(np.full((4, 3, *SIZE), 255, np.uint8))
    assert len(found) == 4
    assert all(f.names == ("井盖",) and f.boxes.tolist() == [[1, 2, 3, 4]] for f in found)


FREE = {"multiple_of": 32, "least": [64, 96]}


@pytest.mark.parametrize(
    ("free", "size", "rule"),
    [
        (None, (96, 160), "it takes inputs of 96 x 128, this one is 96 x 160"),
        (FREE, (96, 120), "multiples of 32, from 64 x 96 on, this one is 96 x 120"),
        (FREE, (32, 128), "multiples of 32, from 64 x 96 on, this one is 32 x 128"),
    ],
)
def test_an_input_of_a_size_that_the_graph_cannot_take_is_refused(tmp_path, free, size, rule):
    detector = Detector(model_file(tmp_path / "m.onnx", METADATA | {"free_size": free}))
    with pytest.raises(DataError, match=f"E-SIZE .*{rule}") as error:
        detector.raw(np.zeros((1, 3, *size), np.uint8))
    assert error.value.exit_code == 2
    assert len(detector.raw(np.zeros((2, 3, *SIZE), np.uint8))) == 2


@pytest.mark.parametrize("free", [True, {}, FREE | {"multiple_of": 0}, FREE | {"least": [64]}, FREE | {"least": None}])
def test_a_damaged_rule_of_sizes_is_told(tmp_path, free):
    with pytest.raises(DataError, match="free_size is"):
        Detector(model_file(tmp_path / "m.onnx", METADATA | {"free_size": free}))


def test_an_array_of_the_wrong_kind_is_refused(file):
    with pytest.raises(DataError, match="uint8"):
        Detector(file)([np.zeros((10, 10, 3), np.float32)])
    with pytest.raises(DataError, match=r"\(10, 10\)"):
        Detector(file)([np.zeros((10, 10), np.uint8)])


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"E-MODEL .*no\.onnx - no such file") as error:
        Detector(tmp_path / "no.onnx")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 50])
def test_a_file_that_is_no_onnx_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.onnx") as error:
        Detector(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"classes": None}, "lacks classes"),
        ({"classes": "good"}, "not a list of names"),
        ({"classes": []}, "not a list of names"),
        ({"classes": ["good", 3]}, "not a list of names"),
        ({"score_thresholds": {"good": 0.5}}, "without a number for each class"),
        ({"score_thresholds": {"good": 0.5, "井盖": "high"}}, "without a number for each class"),
        ({"score_thresholds": [0.5, 0.5]}, "without a number for each class"),
        ({"input_size": [96, 96]}, r"input_size is \[96, 96\]"),
        ({"input_size": "96x128"}, "input_size is '96x128'"),
        ({"resize": "stretch"}, "resize is 'stretch', not 'letterbox'"),
        ({"input_dtype": "float16"}, "input_dtype is 'float16'"),
        ({"input_dtype": "uint8"}, "input_dtype is 'uint8' and input_layout 'NCHW'"),
        ({"nms": {"inside": "yes", "iou": 0.5, "max_detections": 3}}, "nms is .* without inside, iou"),
        ({"nms": {"inside": False, "iou": 5, "max_detections": 3}}, "nms is .* without inside, iou"),
        ({"canvas": [10, 10]}, r"canvas is \[10, 10\], no height and width"),
        ({"canvas": [10**6, 10**6]}, "canvas is .*, no height and width"),
        ({"canvas": "all"}, "canvas is 'all'"),
        ({"color_order": "BGR", "pad_value": 0}, "pad_value is 0, not 114; color_order is 'BGR'"),
    ],
)
def test_metadata_that_cannot_be_followed_is_refused(tmp_path, change, what):
    metadata = {key: value for key, value in {**METADATA, **change}.items() if value is not None}
    with pytest.raises(DataError, match=what) as error:
        Detector(model_file(tmp_path / "model.onnx", metadata))
    assert "not a model of `cvpeft export`" in str(error.value)


def test_metadata_that_is_no_json_is_refused(file):
    model = onnx.load(file)
    model.metadata_props[0].value = "{half"
    onnx.save(model, file)
    with pytest.raises(DataError, match="not JSON"):
        Detector(file)


def test_nothing_is_told_to_the_maker_of_onnxruntime(file, tmp_path):
    """It would keep an identifier and its unsent events in the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    quiet = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")  # any of them is enough
    env = {key: value for key, value in os.environ.items() if key not in quiet} | {"HOME": str(home)}
    env |= {"PYTHONDONTWRITEBYTECODE": "1"}
    program = f"from cvpeft.runtime.onnx_detector import Detector; Detector({str(file)!r})"
    subprocess.run([sys.executable, "-c", program], check=True, env=env)
    assert list(home.iterdir()) == []


def test_the_runtime_imports_no_torch():
    imports = "import sys, cvpeft.runtime.onnx_detector, cvpeft.runtime.draw"
    program = f"{imports}; print(sorted({{'torch', 'onnx', 'cv2'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("canvas", [(SIZE[0] - 1, SIZE[1]), (SIZE[0], SIZE[1] - 1), (10_001, 10_000), (10**9, 10**9)])
def test_a_canvas_holds_a_tile_and_is_no_bomb(tmp_path: Path, canvas: tuple[int, int]) -> None:
    file = model_file(tmp_path / "model.onnx", METADATA)
    with pytest.raises(ConfigError, match=f"the canvas is {canvas[0]}x{canvas[1]}, but must hold tiles of"):
        Detector(file, canvas=canvas)
    Detector(file, canvas=SIZE)
