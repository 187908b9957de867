"""What a run and the labels disagree about: each kind once, nothing twice, the most suspicious first."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvpeft.data.coco import CocoData, load_coco
from cvpeft.eval.gallery import _crop, write_gallery
from cvpeft.eval.review import Finding, review
from tests.eval.sets import CLASSES, found, perfect, random_set, truth
from tests.eval.test_evaluate import city

HALF = dict.fromkeys(CLASSES, 0.5)
BOX = (100, 100, 40, 40)


def kinds(ground_truth: dict, results: list[dict]) -> dict[str, list[Finding]]:
    return {kind: entries for kind, entries in review(ground_truth, results, CLASSES, HALF).items() if entries}


def test_perfect_detections_leave_nothing_to_look_at():
    boxes, _ = random_set(3)
    boxes["annotations"] = [box for box in boxes["annotations"] if not box["iscrowd"]]
    assert kinds(boxes, perfect(boxes)) == {}


def test_a_confident_detection_without_a_box_is_a_label_that_was_forgotten():
    (finding,) = kinds(truth([(1, 1, BOX)]), found((1, 1, BOX, 0.9), (1, 2, (300, 100, 30, 30), 0.8)))["unlabelled"]
    assert (finding.name, finding.label, finding.score, finding.box) == ("broke", "", 0.8, (300, 100, 30, 30))


def test_a_thing_found_under_two_names_is_told_once_under_the_surer():
    results = found((1, 2, BOX, 0.8), (1, 1, (102, 100, 40, 40), 0.9))
    (finding,) = kinds(truth([]), results)["unlabelled"]
    assert (finding.name, finding.score) == ("good", 0.9)


def test_the_same_place_under_another_name():
    (finding,) = kinds(truth([(1, 3, BOX)]), found((1, 1, BOX, 0.7)))["other name"]
    assert (finding.name, finding.label, finding.iou) == ("good", "lose", 1.0)


def test_a_box_that_is_drawn_loosely_is_neither_missed_nor_forgotten():
    seen = kinds(truth([(1, 1, BOX)]), found((1, 1, (100, 100, 40, 15), 0.7)))
    assert list(seen) == ["other place"]
    assert seen["other place"][0].iou == pytest.approx(15 / 40)


def test_a_missed_label_tells_the_best_score_in_its_place_whatever_the_threshold():
    (finding,) = kinds(truth([(1, 4, BOX)]), found((1, 4, BOX, 0.2)))["missed"]
    assert (finding.label, finding.score, finding.box) == ("uncovered", 0.2, BOX)


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("a second box on a thing that was found", [(1, 1, BOX, 0.9), (1, 1, (100, 100, 40, 36), 0.8)]),
        ("a weak detection beside it", [(1, 1, BOX, 0.9), (1, 1, (300, 0, 30, 30), 0.4)]),
        ("a detection in a crowd region", [(1, 1, BOX, 0.9), (1, 2, (500, 500, 20, 20), 0.9)]),
    ],
)
def test_what_says_nothing_about_the_labels(name: str, results: list[tuple]):
    assert kinds(truth([(1, 1, BOX), (1, 2, (480, 480, 100, 100), True)]), found(*results)) == {}, name


def test_the_most_suspicious_come_first():
    labels = truth([(1, 1, BOX), (1, 1, (200, 0, 10, 10)), (1, 1, (300, 0, 90, 90))], images=2)
    rows = [(2, 1, (i * 50, 0, 30, 30), score) for i, score in enumerate((0.6, 0.9, 0.7))]
    seen = kinds(labels, found((1, 1, BOX, 0.3), *rows))
    assert [finding.score for finding in seen["unlabelled"]] == [0.9, 0.7, 0.6]
    assert [finding.box[2] for finding in seen["missed"]] == [90, 10, 40]  # unseen and large first, half seen last


def test_the_gallery_shows_each_finding_and_names_cannot_run_code(tmp_path: Path):
    file = city(tmp_path, "berlin", seed=1, height=120)
    content = json.loads(file.read_text())
    odd = "<script>alert(1)</script>.png"
    Image.fromarray(np.zeros((120, 90, 3), np.uint8)).save(tmp_path / odd.replace("/", "_"))
    content["images"].append({"id": 99, "file_name": odd.replace("/", "_"), "height": 120, "width": 90})
    file.write_text(json.dumps(content))
    data = load_coco([file])
    disagreements = review(
        data.ground_truth(), found((4, 1, (60, 90, 30, 30), 0.9)), data.classes, dict.fromkeys(data.classes, 0.5)
    )
    page, table = write_gallery(tmp_path / "out", data, disagreements, title="<b>run</b>")
    rows, text = json.loads(table.read_text()), page.read_text()
    assert len(rows) == 7, "six labels are missed, and one box is found without a label"
    assert rows[0]["kind"] == "unlabelled"
    assert rows[0]["file_name"] == odd.replace("/", "_")
    assert text.count("<figure>") == 7
    assert "<script" not in text
    assert "&lt;b&gt;run" in text
    assert "default-src 'none'" in text


def one_photo(folder: Path, name: str, pixels: np.ndarray, box: tuple[int, int, int, int]) -> CocoData:
    """A data set of one photo with one label "good"."""
    Image.fromarray(pixels).save(folder / name, "PNG")
    height, width = pixels.shape[:2]
    label = {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": [label],
        "categories": [{"id": 1, "name": "good"}],
    }
    (folder / "val.json").write_text(json.dumps(content))
    return load_coco([folder / "val.json"])


@pytest.mark.parametrize(
    "box", [(300, 200, 90, 60), (0, 0, 100, 40), (550, 380, 50, 20), (20, 10, 570, 380), (590, 0, 10, 400)]
)
def test_a_picture_is_the_square_around_its_box_with_black_beyond_the_photo(
    tmp_path: Path, box: tuple[int, int, int, int]
):
    y, x = np.mgrid[0:400, 0:600]
    pixels = np.stack((x * 255 // 600, y * 255 // 400, (x + y) * 255 // 1000), -1).astype(np.uint8) // 2 + 100
    record = one_photo(tmp_path, "a.png", pixels, box).images[0]
    finding = Finding("missed", 1, box, "good", "good", 0.0, 0.0)
    drawn = _crop(pixels, replace(record, boxes=np.zeros((0, 4))), finding, ("good",))
    side = max(3 * max(box[2:]), 128)
    left, top = box[0] + box[2] / 2 - side / 2, box[1] + box[3] / 2 - side / 2
    edges = (round(left), round(top), round(left + side), round(top + side))
    whole = Image.fromarray(pixels).crop(edges).resize((320, 320), Image.Resampling.BILINEAR)
    apart = np.abs(np.asarray(drawn, int) - np.asarray(whole, int)).max(-1)
    assert drawn.size == (320, 320)
    assert np.mean(apart > 8) < 0.035  # a row at each edge of the photo, and the frame that is drawn


def test_a_box_as_large_as_a_large_photo_has_a_picture(tmp_path: Path):
    box = (0, 0, 6000, 4500)
    finding = Finding("missed", 1, box, "good", "good", 0.0, 0.0)
    data = one_photo(tmp_path, "a.png", np.full((4500, 6000, 3), 128, np.uint8), box)
    page, _ = write_gallery(tmp_path / "out", data, {"missed": [finding]}, title="run")
    assert page.read_text().count("<img") == 1


def test_a_name_that_is_no_utf8_is_shown(tmp_path: Path):
    name = os.fsdecode(b"stra\xdfe.png")
    finding = Finding("missed", 1, (2, 1, 20, 20), "good", "good", 0.0, 0.0)
    data = one_photo(tmp_path, name, np.zeros((40, 60, 3), np.uint8), (2, 1, 20, 20))
    page, table = write_gallery(tmp_path / "out", data, {"missed": [finding]}, title="run")
    assert json.loads(table.read_text())[0]["file_name"] == "stra\ufffde.png"
    assert "stra\ufffde.png" in page.read_text()
