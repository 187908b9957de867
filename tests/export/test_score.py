"""The AP of a file: by the code that scores a run, tiles included, and what counts as the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cvpeft.data.coco import CocoData, load_coco
from cvpeft.errors import ParityError
from cvpeft.export import score
from tests.export.stand_in import CLASSES, SIZE
from tests.helpers import ellipses

SETTINGS = SimpleNamespace(data=SimpleNamespace(size=SIZE, canvas=None), eval=SimpleNamespace(batch=2))


@pytest.fixture
def data(tmp_path: Path) -> CocoData:
    found = load_coco([ellipses(tmp_path, 5)])
    return CocoData(found.images, CLASSES, ())


@pytest.mark.parametrize("canvas", [None, (160, 200)])
def test_a_file_scores_what_its_detector_scores(detector, exported, data, canvas) -> None:
    of_torch = score.detector_ap(detector, data, SIZE, canvas)
    of_file = score.onnx_ap(exported, data, SIZE, canvas, batch=3)
    assert of_file["detections"] == of_torch["detections"] > 0
    assert of_file["coco"] == pytest.approx(of_torch["coco"], abs=1e-6)


def test_another_ap_is_refused_with_both_numbers(detector, exported, data, monkeypatch) -> None:
    proof = score.same_ap(detector, exported, "val", data, SETTINGS)
    assert proof["difference"] == pytest.approx(0.0, abs=1e-6)
    assert (proof["split"], proof["images"]) == ("val", 5)
    monkeypatch.setattr(score, "onnx_ap", lambda *_, **__: {"coco": {"AP": proof["torch"] + 0.0006}})
    with pytest.raises(ParityError, match=r"on 5 images of val the ONNX model has AP .* 0.0006 apart, where 0.0005"):
        score.same_ap(detector, exported, "val", data, SETTINGS)


def test_images_without_boxes_have_no_ap_to_compare(detector, exported, tmp_path) -> None:
    found = load_coco([ellipses(tmp_path, 2, negatives=2)])
    proof = score.same_ap(detector, exported, "val", CocoData(found.images, CLASSES, ()), SETTINGS)
    assert (proof["torch"], proof["onnx"], proof["difference"]) == (None, None, None)


def test_a_part_is_spread_over_all_files() -> None:
    data = CocoData(tuple(range(10)), ("good",), ())  # type: ignore[arg-type]
    assert score.spread(data, 4).images == (0, 2, 5, 7)
    assert score.spread(data, 10).images == score.spread(data, 99).images == data.images
