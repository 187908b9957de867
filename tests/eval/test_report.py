"""A report says what can be counted by hand, and its folder says the same."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from cvpeft.errors import DataError, ResourceError
from cvpeft.eval import plots
from cvpeft.eval.coco_map import score, subset
from cvpeft.eval.report import DEFAULT_THRESHOLD, report, write_report
from tests.eval.sets import CLASSES, found, perfect, random_set, truth

BOX = (0, 0, 10, 10)
FAR = (200, 200, 10, 10)


def test_numbers_are_those_of_score() -> None:
    ground_truth, results = random_set(0)
    numbers, table = score(ground_truth, results), report(ground_truth, results, CLASSES)
    assert table["coco"] == numbers.stats
    assert table["images"] == len(ground_truth["images"])
    assert table["detections"] == len(results)
    assert table["boxes"] == sum(not box["iscrowd"] for box in ground_truth["annotations"])
    assert sum(row["boxes"] for row in table["per_class"].values()) == table["boxes"]
    assert table["per_class"]["good"]["AP"] == numbers.per_class["good"]
    assert table["per_class"]["good"]["AP50"] == numbers.per_class_50["good"]
    assert table["pr_curve"]["precision"]["good"] == numbers.precision[0, :, 0].tolist()
    assert len(table["pr_curve"]["recall"]) == 101


def test_perfect_predictions() -> None:
    ground_truth = truth([(1, 1, BOX), (1, 1, FAR), (2, 2, BOX), (3, 2, FAR)], images=4, classes=("good", "broke"))
    table = report(ground_truth, perfect(ground_truth), ("good", "broke"))
    assert table["coco"]["AP"] == 1.0
    assert table["confusion"] == {"labels": ["good", "broke", "background"], "counts": [[2, 0, 0], [0, 2, 0], [0] * 3]}
    assert table["false_alarms"] == {"negative_images": 1, "per_image": 0.0, "threshold": None}
    assert {row["best_f1"]["f1"] for row in table["per_class"].values()} == {1.0}


def test_a_class_without_boxes_has_no_numbers_and_the_default_threshold() -> None:
    table = report(truth([(1, 1, BOX)]), found((1, 2, BOX, 0.9)), CLASSES)
    row = table["per_class"]["broke"]
    assert row == {"boxes": 0, "AP": None, "AP50": None, "threshold": DEFAULT_THRESHOLD, "best_f1": None}
    assert table["pr_curve"]["precision"]["broke"] is None
    assert table["per_class"]["good"]["AP"] == 0.0
    assert table["per_class"]["good"]["threshold"] == DEFAULT_THRESHOLD  # boxes, but no right detection


@pytest.mark.parametrize("images", [0, 3])
def test_no_boxes_at_all(images: int) -> None:
    table = report(truth([], images=images), [], CLASSES)
    assert set(table["coco"].values()) == {None}
    assert table["false_alarms"]["per_image"] == (0.0 if images else None)


def test_per_domain_is_the_score_of_its_images_alone() -> None:
    ground_truth, results = random_set(7)
    table = report(ground_truth, results, CLASSES)["per_domain"]
    assert list(table) == ["a", "b", "c"]
    assert sum(row["images"] for row in table.values()) == len(ground_truth["images"])
    for domain, row in table.items():
        ids = {image["id"] for image in ground_truth["images"] if image["domain"] == domain}
        numbers = score(subset(ground_truth, ids), [result for result in results if result["image_id"] in ids])
        assert (row["AP"], row["AP50"]) == (numbers.AP, numbers.AP50)


def test_domains_are_told_apart() -> None:
    """City a is found as a whole, city b not at all."""
    ground_truth = truth([(i, 1, box) for i in (1, 2) for box in (BOX, FAR)], images=4, domains="ab")
    table = report(ground_truth, found((1, 1, BOX, 0.9), (1, 1, FAR, 0.8)), CLASSES)["per_domain"]
    assert table == {
        "a": {"images": 2, "boxes": 2, "AP": 1.0, "AP50": 1.0},
        "b": {"images": 2, "boxes": 2, "AP": 0.0, "AP50": 0.0},
    }


def test_one_domain_or_none() -> None:
    ground_truth, results = random_set(2)
    for image in ground_truth["images"]:
        del image["domain"]
    table = report(ground_truth, results, CLASSES)
    assert list(table["per_domain"]) == [""]
    assert table["per_domain"][""]["AP"] == table["coco"]["AP"]


def test_false_alarms_by_hand() -> None:
    """Images 2, 3 and 4 have no box to be found; 4 has a crowd region. Image 1 does not count."""
    ground_truth = truth([(1, 1, BOX), (1, 1, FAR), (4, 1, FAR, True)], images=4)
    results = found(
        (1, 1, BOX, 0.9),
        (1, 1, (50, 50, 9, 9), 0.9),
        (2, 1, BOX, 0.9),
        (2, 2, BOX, 0.6),
        (3, 1, BOX, 0.6),
        (3, 1, FAR, 0.59),
        (4, 1, FAR, 0.95),  # in the crowd region
        (4, 1, BOX, 0.3),
    )
    alarms = report(ground_truth, results, CLASSES, alarm_threshold=0.6)["false_alarms"]
    assert alarms == {"negative_images": 3, "per_image": 1.0, "threshold": 0.6}
    by_class = report(ground_truth, results, CLASSES, thresholds={"good": 0.7})["false_alarms"]
    assert by_class["per_image"] == pytest.approx(2 / 3)  # good 0.9; broke 0.6 at the default threshold


def test_given_thresholds_are_used() -> None:
    ground_truth = truth([(1, 1, BOX), (1, 1, FAR)], classes=("good",))
    results = found((1, 1, BOX, 0.9), (1, 1, FAR, 0.3))
    own = report(ground_truth, results, ("good",))
    given = report(ground_truth, results, ("good",), thresholds={"good": 0.5})
    assert own["confusion"]["counts"] == [[2, 0], [0, 0]]
    assert given["confusion"]["counts"] == [[1, 1], [0, 0]]
    assert own["per_class"]["good"]["threshold"] == own["per_class"]["good"]["best_f1"]["threshold"] == 0.3
    assert given["per_class"]["good"]["threshold"] == 0.5
    assert given["per_class"]["good"]["best_f1"] == own["per_class"]["good"]["best_f1"]


@pytest.mark.parametrize("classes", [CLASSES[::-1], CLASSES[:-1], (*CLASSES, "circle")])
def test_other_classes_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="E-CLASSES"):
        report(truth([(1, 1, BOX)]), [], classes)


def test_folder_round_trip(tmp_path: Path) -> None:
    ground_truth, results = random_set(0)
    table = report(ground_truth, results, CLASSES)
    folder = tmp_path / "run" / "eval"
    write_report(folder, table, results)
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png", "metrics.json", "per_class.csv", "pr_curve.png", "predictions.json",
    ]  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail) == table
    assert json.loads((folder / "predictions.json").read_text()) == results
    rows = list(csv.DictReader((folder / "per_class.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["class"] for row in rows] == list(CLASSES)
    assert float(rows[0]["AP"]) == table["per_class"]["good"]["AP"]
    assert rows[3]["AP"] == rows[3]["f1"] == ""
    for name in ("pr_curve.png", "confusion.png"):
        assert min(Image.open(folder / name).size) > 300


@pytest.mark.filterwarnings("error")
def test_names_that_plots_and_csv_could_trip_over(tmp_path: Path) -> None:
    classes = ("井盖, 破损", "a$b$", 'with "quotes"', "x" * 60, *(f"class {i}" for i in range(26)))
    ground_truth = truth([(1, 1, BOX), (1, 2, FAR)], classes=classes)
    table = report(ground_truth, perfect(ground_truth), classes)
    write_report(tmp_path, table, [])
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == table
    rows = list(csv.DictReader((tmp_path / "per_class.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["class"] for row in rows] == list(classes)


def test_every_curve_is_named_in_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or b"")
    ground_truth = truth([(1, 1, BOX), (1, 2, FAR)], classes=("_good", "broke", "lose"))
    plots.precision_recall(report(ground_truth, perfect(ground_truth), ("_good", "broke", "lose")))
    names = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert names == ["_good  1.000", "broke  1.000"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground_truth, results = random_set(0)
    write_report(tmp_path, report(ground_truth, results, CLASSES), results)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_report(tmp_path, report(ground_truth, [], CLASSES), [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
