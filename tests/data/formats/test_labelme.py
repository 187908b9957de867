"""LabelMe: a json beside each photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cvpeft.data.convert.importer import import_labels
from cvpeft.errors import DataError
from tests.data.sources import content, labels, photo, put


def shape(kind: str, points: Any, label: str = "good") -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def labelme(root: Path, name: str, *shapes: Any, **changes: Any) -> None:
    photo(root / f"{name}.jpg")
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    put(root / f"{name}.json", json.dumps({**data, "imageHeight": 60, "imageWidth": 100, **changes}))


def test_shapes_become_boxes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    labelme(
        root, "train/a",
        shape("rectangle", [[40, 50], [10, 20]], "broke"), shape("circle", [[50, 30], [50, 40]]),
        shape("polygon", [[1, 2], [9, 2], [5, 22]]),
    )  # fmt: skip
    labelme(root, "train/b")
    made = import_labels(root, tmp_path / "out")
    assert labels(tmp_path / "out/train.json") == {
        "train/a.jpg": [
            ("broke", [10.0, 20.0, 30.0, 30.0]),
            ("good", [40.0, 20.0, 20.0, 20.0]),
            ("good", [1.0, 2.0, 8.0, 20.0]),
        ],
        "train/b.jpg": [],
    }
    assert "2 polygons and circles are replaced by the upright boxes around them" in made.notes


def test_the_image_path_leads_where_the_names_differ(tmp_path: Path) -> None:
    root = tmp_path / "set"
    labelme(root, "a", shape("rectangle", [[1, 1], [9, 9]]))
    (root / "a.jpg").rename(root / "b.jpg")
    put(root / "a.json", (root / "a.json").read_text().replace('"a.jpg"', '"..\\\\photos\\\\b.jpg"'))
    import_labels(root, tmp_path / "out")
    assert list(labels(tmp_path / "out/data.json")) == ["b.jpg"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (shape("point", [[1, 2]]), "a point has no box"),
        (shape("rectangle", [[1, 2]]), "not 2 or more pairs"),
        (shape("polygon", [[1, 2], [3, "x"], [4, 5]]), "not 3 or more pairs"),
        (shape("rectangle", [[1, 1], [9, 9]], ""), "the object has no class"),
        ("text", "not an object"),
    ],
)
def test_shapes_without_a_box_are_faults(tmp_path: Path, bad: Any, told: str) -> None:
    root = tmp_path / "set"
    labelme(root, "a", bad)
    labelme(root, "b", shape("rectangle", [[1, 1], [9, 9]]))
    with pytest.raises(DataError, match=told):
        import_labels(root, tmp_path / "out")
    import_labels(root, tmp_path / "out", skip=True)
    assert [image["file_name"] for image in content(tmp_path / "out/data.json")["images"]] == ["b.jpg"]
