"""INT8: what is quantised and what stays float, which form is kept, and that a refusal leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from cvpeft.data.coco import CocoData
from cvpeft.errors import ConfigError, ParityError, ResourceError
from cvpeft.export import quantize
from cvpeft.export.quantize import Scored, best_form, make_forms, quantize_run
from cvpeft.export.verify import Tolerance, compare, enough, predict_onnx
from cvpeft.runtime.onnx_detector import Detector
from tests.export.stand_in import CLASSES, scenes

PREDICTORS = {"FasterRCNN": 3 * 2 + 2, "RetinaNet": 3 * 2, "FCOS": 3 * 3}  # three levels, and the box predictor's two
WEIGHTED = ("Conv", "MatMul", "Gemm", "MatMulInteger")


@pytest.fixture(scope="module")
def forms(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_forms(exported, tmp_path_factory.mktemp("forms"), scenes(12, seed=9)[0].numpy())


def test_both_forms_are_made_where_there_are_products_of_matrices(detector, forms) -> None:
    two = type(detector).__name__ == "FasterRCNN"  # the others have convolutions only
    assert list(forms) == (["static", "dynamic"] if two else ["static"])


def test_a_form_takes_any_number_of_images_and_describes_itself(exported, forms) -> None:
    for file in forms.values():
        onnx.checker.check_model(file, full_check=True)
        assert Detector(file).metadata == Detector(exported).metadata
        assert Detector(file).classes == CLASSES
        assert file.stat().st_size < exported.stat().st_size
        for count in (1, 3):
            assert len(Detector(file).raw(scenes(count)[0].numpy())) == count


def test_a_full_disk_of_temporary_files_is_one_sentence(quick_file: Path, small_disk: Path) -> None:
    (small_disk / "others").write_bytes(bytes(1_000_000))
    with pytest.raises(ResourceError, match=r"E-DISK .* - the INT8 forms cannot be written \(.*TMPDIR"):
        make_forms(quick_file, small_disk, scenes(2)[0].numpy())


def test_a_form_finds_what_the_float_file_finds(exported, forms) -> None:
    images = list(scenes(8, seed=4)[0])
    reference = predict_onnx(exported, images)
    threshold = enough(reference, Tolerance(threshold=0.5, least_boxes=12))
    for file in forms.values():
        agreement = compare(reference, predict_onnx(file, images), threshold=threshold)
        assert agreement.boxes >= 12
        assert agreement.missing <= 0.25 * agreement.boxes
        assert agreement.max_score_difference > 0  # it is another model


def test_predictors_decoding_and_nms_stay_float(detector, forms) -> None:
    graph = onnx.load(forms["static"]).graph
    made_by = {name: node for node in graph.node for name in node.output}
    kinds = [made_by[node.input[0]].op_type for node in graph.node if node.op_type in WEIGHTED]
    assert len(kinds) - kinds.count("DequantizeLinear") == PREDICTORS[type(detector).__name__]
    met, back = (
        set(),
        [name for node in graph.node if node.op_type in ("TopK", "NonMaxSuppression") for name in node.input],
    )
    back += [output.name for output in graph.output]
    while back:
        node = made_by.get(back.pop())
        if node and node.name not in met and node.op_type != "RoiAlign":
            met.add(node.name)
            assert node.op_type not in ("QuantizeLinear", "DequantizeLinear"), node.name
            back += [] if node.op_type in WEIGHTED else node.input


def test_weights_are_of_seven_bits_with_a_scale_per_channel(forms) -> None:
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(forms["static"]).graph.initializer
    }
    weights = [x for x in constants.values() if x.dtype == np.int8 and x.ndim > 1]
    assert weights
    assert max(np.abs(x.astype(int)).max() for x in weights) <= 64
    assert any(name.endswith("_scale") and x.shape == (32,) for name, x in constants.items())


FLOAT = Scored(AP=0.5, AP50=0.8, ms=100.0, bytes=1)


def test_the_fastest_form_that_holds_its_ap_is_kept() -> None:
    forms = {"fp32": FLOAT, "static": Scored(0.491, 0.8, 60.0, 1), "dynamic": Scored(0.499, 0.8, 80.0, 1)}
    assert best_form(forms, 0.01, "50 images of val") == "static"
    assert best_form(forms, 0.005, "50 images of val") == "dynamic"
    assert best_form(forms | {"static": Scored(0.51, 0.8, 90.0, 1)}, 0.0099, "50 images of val") == "dynamic"


def test_a_drop_that_is_too_large_is_refused_with_its_figures() -> None:
    forms = {"fp32": FLOAT, "static": Scored(0.4, 0.7, 50.0, 1), "dynamic": Scored(0.489, 0.8, 80.0, 1)}
    with pytest.raises(ParityError) as error:
        best_form(forms, 0.01, "50 images of val")
    for words in ("50 images of val", "0.5000", "static 0.4000 (-0.1000, 2.00 x", "dynamic 0.4890 (-0.0110", "0.01 "):
        assert words in str(error.value)
    assert error.value.exit_code == 5


def test_forms_are_scored_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    data = SimpleNamespace(size=(96, 128), canvas=None)
    loaded = SimpleNamespace(settings=SimpleNamespace(data=data, eval=SimpleNamespace(batch=4)))

    def scored(*_: object, batch: int = 1) -> dict:
        batches.append(batch)
        return {"coco": {"AP": None}}

    monkeypatch.setattr(quantize, "onnx_ap", scored)
    with pytest.raises(ParityError, match="none of 0 images holds a box"):
        quantize._measured(loaded, {"fp32": Path("a"), "dynamic": Path("b")}, CocoData((), CLASSES, ()))
    assert batches == [1, 1]


def test_int8_is_not_scored_on_the_images_that_calibrate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "load_run", lambda *_: SimpleNamespace(folder=Path("runs/a")))
    monkeypatch.setattr(quantize, "one_form", lambda *_: None)
    monkeypatch.setattr(quantize, "proof_data", lambda _: ("train", CocoData((), CLASSES, ())))
    monkeypatch.setattr(quantize, "_proven", lambda *_: pytest.fail("an export takes minutes"))
    with pytest.raises(ConfigError, match=r"E-SPLIT runs/a - the config names neither val nor test\. INT8 would"):
        quantize_run(Path("runs/a"))
