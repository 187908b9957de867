"""Parity: what counts as agreement, and that nothing is left behind without it."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os

import pytest
import torch

from cvpeft.errors import ParityError, ResourceError
from cvpeft.export.verify import BATCHES, Tolerance, compare, enough, export_verified, verify
from cvpeft.files import write_whole
from cvpeft.runtime.onnx_detector import Detector
from tests.export.stand_in import CLASSES, scenes


def found(*rows: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """One prediction of rows (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows).view(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


A = (10.0, 10.0, 30.0, 30.0, 0.9, 1.0)
B = (50.0, 10.0, 80.0, 40.0, 0.8, 2.0)


def test_swapped_rows_agree():
    agreement = compare([found(A, B)], [found(B, A)], threshold=0.3)
    assert (agreement.boxes, agreement.missing, agreement.extra) == (2, 0, 0)
    assert (agreement.max_score_difference, agreement.max_pixel_difference, agreement.min_iou) == (0, 0, 1)
    assert agreement.within(Tolerance())


def test_missing_and_extra_boxes_are_counted():
    lost = compare([found(A, B)], [found(A)], threshold=0.3)
    assert (lost.missing, lost.extra) == (1, 0)
    more = compare([found(A)], [found(A, B)], threshold=0.3)
    assert (more.missing, more.extra) == (0, 1)
    assert not lost.within(Tolerance())
    assert not more.within(Tolerance())


def test_every_batch_size_is_fed_however_few_the_images(quick, quick_file, monkeypatch):
    fed, raw = [], Detector.raw
    monkeypatch.setattr(Detector, "raw", lambda self, images: (fed.append(len(images)), raw(self, images))[1])
    proof = verify(quick, quick_file, list(scenes(3)[0]))
    assert fed == list(BATCHES) == proof["batches"]
    assert proof["torch_onnx"]["images"] == 3


def test_images_that_come_again_are_compared_and_counted_once():
    agreement = compare([found(A), found(B)], [found(A), found(B), found(A), found()], threshold=0.3)
    assert (agreement.images, agreement.boxes, agreement.missing) == (2, 2, 1)


def test_another_class_is_no_partner():
    other = (*A[:5], 2.0)
    agreement = compare([found(A)], [found(other)], threshold=0.3)
    assert (agreement.missing, agreement.extra) == (1, 1)


def test_differences_are_measured():
    moved = (10.0, 10.0, 32.0, 30.0, 0.85, 1.0)
    agreement = compare([found(A)], [found(moved)], threshold=0.3)
    assert agreement.max_score_difference == pytest.approx(0.05)
    assert agreement.max_pixel_difference == 2.0
    assert agreement.min_iou == pytest.approx(400 / 440)
    assert not agreement.within(Tolerance())


def test_ties_are_counted_and_allowed_one_in_a_thousand_times():
    moved = (10.0, 14.0, 30.0, 34.0, 0.9, 1.0)
    few = compare([found(A)], [found(moved)], threshold=0.3)
    assert few.ties == 2  # seen from both sides
    assert not few.within(Tolerance())
    assert "2 boxes have the very score of one that overlaps them" in few.sentence(Tolerance())
    many = compare([found(A)] + 1000 * [found(B)], [found(moved)] + 1000 * [found(B)], threshold=0.3)
    assert (many.boxes, many.ties, many.min_iou, many.max_pixel_difference) == (1001, 2, 1, 0)
    assert many.within(Tolerance())
    elsewhere = compare(1000 * [found(A)], 1000 * [found(moved)], threshold=0.3)  # a wrong model is no tie
    assert not elsewhere.within(Tolerance())


def test_a_box_on_the_threshold_finds_its_partner_below_it():
    above, below = (*A[:4], 0.30001, 1.0), (*A[:4], 0.29999, 1.0)
    assert compare([found(above)], [found(below)], threshold=0.3).within(Tolerance())
    assert compare([found(B, below)], [found(B, above)], threshold=0.3).within(Tolerance())


def test_a_partner_serves_once():
    twin = (10.0, 10.0, 30.0, 31.0, 0.7, 1.0)
    agreement = compare([found(A, twin)], [found(A)], threshold=0.3)
    assert (agreement.missing, agreement.min_iou) == (1, 1)


def test_a_box_without_area_agrees_with_itself_only():
    flat = (128.0, 10.0, 128.0, 30.0, 0.5, 1.0)
    assert compare([found(flat)], [found(flat)], threshold=0.3).within(Tolerance())
    assert compare([found(flat)], [found(A)], threshold=0.3).missing == 1


def test_nothing_compared_is_no_agreement():
    assert not compare([found()], [found()], threshold=0.3).within(Tolerance())


def test_the_threshold_falls_to_the_best_boxes_but_never_rises():
    scores = [(*A[:4], s, 1.0) for s in (0.9, 0.2, 0.1, 0.05)]
    tolerance = Tolerance(threshold=0.3, least_boxes=3)
    assert enough([found(*scores[:2]), found(*scores[2:])], tolerance) == pytest.approx(0.1)
    assert enough([found(*scores[:2])], tolerance) == pytest.approx(0.2)
    assert enough([found(*[A] * 5)], tolerance) == pytest.approx(0.3)
    with pytest.raises(ParityError, match="finds nothing in 2 images"):
        enough([found(), found()], tolerance)


def test_every_head_is_proven(detector, exported):
    parity = verify(detector, exported, list(scenes(7, seed=3)[0]))
    assert parity["torch_onnx"]["images"] == 7
    assert parity["torch_onnx"]["boxes"] >= 20
    assert parity["model_sha256"] == hashlib.sha256(exported.read_bytes()).hexdigest()


def test_a_proven_export_leaves_a_model_and_its_parity(quick, tmp_path):
    folder = tmp_path / "run" / "export"
    path = export_verified(quick, copy.deepcopy(quick), folder, list(scenes(5)[0]), classes=CLASSES)
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "parity.json"]
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["agree"] is True
    assert parity["unmerged_merged"]["max_feature_difference"] <= 1e-5 < parity["unmerged_merged"]["max_feature"]
    assert parity["unmerged_merged"]["max_double_difference"] == 0.0 < parity["unmerged_merged"]["max_rounding"]
    for pair in ("unmerged_merged", "merged_onnx", "unmerged_onnx"):
        assert parity[pair]["images"] == 5
        assert parity[pair]["boxes"] >= 20
        assert parity[pair]["max_score_difference"] <= 1e-4
        assert parity[pair]["min_iou"] >= 0.999
    assert parity["model_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert parity["versions"]["torch"] == torch.__version__


def test_a_wrong_merge_is_refused_before_anything_is_written(quick, tmp_path):
    wrong = copy.deepcopy(quick)
    with torch.no_grad():
        wrong.head.classification_head.cls_logits.bias += 0.01
    with pytest.raises(ParityError, match="the merged detector does not agree") as error:
        export_verified(quick, wrong, tmp_path / "export", list(scenes(3)[0]), classes=CLASSES)
    assert error.value.exit_code == 5
    assert not (tmp_path / "export").exists()


def test_a_merge_that_is_wrong_by_less_than_boxes_show_is_refused(quick, tmp_path):
    wrong = copy.deepcopy(quick)
    with torch.no_grad():
        wrong.backbone.levels[0][3].weight *= 1 + 2e-5
    with pytest.raises(ParityError, match=r"in float64 merging .*Rounding to float32 moves them by .* only"):
        export_verified(quick, wrong, tmp_path / "export", list(scenes(5)[0]), classes=CLASSES)
    assert not (tmp_path / "export").exists()


def test_a_wrong_file_is_refused_and_the_old_one_stays(quick, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"old model")
    (tmp_path / "parity.json").write_text("old parity")
    wrong = copy.deepcopy(quick)
    with torch.no_grad():
        wrong.head.regression_head.bbox_reg.bias += 0.1
    from cvpeft.export import verify as module

    export = module.export_onnx
    monkeypatch.setattr(module, "export_onnx", lambda _, *args, **options: export(wrong, *args, **options))
    with pytest.raises(ParityError, match="the ONNX model does not agree"):
        export_verified(quick, quick, tmp_path, list(scenes(3)[0]), classes=CLASSES)
    assert (tmp_path / "model.onnx").read_bytes() == b"old model"
    assert (tmp_path / "parity.json").read_text() == "old parity"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "parity.json"]


def test_a_disk_that_fills_up_leaves_the_old_pair(quick, quick_file, tmp_path, monkeypatch):
    from cvpeft.export import verify as module

    made = quick_file.read_bytes()
    monkeypatch.setattr(module, "export_onnx", lambda _, path, **options: write_whole(path, made))
    folder, fsync = tmp_path / "export", os.fsync
    old = {"model.onnx": "old model", "parity.json": "old parity"}
    for name, text in old.items():
        write_whole(folder / name, text)
    for place in range(3):  # the exported model, its proof, the model once more: in the order in which they come to be
        seen: list[str] = []

        def full(handle, place=place, seen=seen):
            name = os.readlink(f"/proc/self/fd/{handle}")
            seen += [name] if f"{folder}/" in name else []
            if len(seen) > place:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"E-DISK .*No space left on device"):
            export_verified(quick, quick, folder, list(scenes(3)[0]), classes=CLASSES)
        assert len(set(seen)) == place + 1
        assert {p.name: p.read_text() for p in folder.iterdir()} == old


def test_no_image_is_no_proof(quick, tmp_path):
    with pytest.raises(ParityError, match="0 images"):
        export_verified(quick, quick, tmp_path, [], classes=CLASSES)
