"""VIA's csv: a row for each region."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cvpeft.data.convert.importer import import_labels
from cvpeft.errors import DataError
from tests.data.sources import labels, photo, put

HEAD = ["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes",
        "region_attributes"]  # fmt: skip
RECT = {"name": "rect", "x": 10, "y": 10, "width": 20, "height": 30}


def via(root: Path, *regions: tuple[str, Any, Any], file: str = "via_region_data.csv") -> Path:
    """regions: photo, shape (None for a photo without regions), attributes."""
    for name, _, _ in regions:
        photo(root / name)
    return table(root, *regions, file=file)


def table(root: Path, *regions: tuple[str, Any, Any], file: str = "via_region_data.csv") -> Path:
    """The csv alone."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(HEAD)
    for name, shape, attributes in regions:
        rows.writerow([name, 1, "{}", int(shape is not None), 0, json.dumps(shape or {}), json.dumps(attributes)])
    put(root / file, text.getvalue())
    return root


def test_shapes_become_boxes(tmp_path: Path) -> None:
    root = via(
        tmp_path / "set",
        ("a.jpg", RECT, {"type": "good"}),
        ("a.jpg", {"name": "circle", "cx": 50, "cy": 30, "r": 10.5}, {"type": "broke"}),
        (
            "a.jpg",
            {"name": "ellipse", "cx": 50, "cy": 30, "rx": 20, "ry": 10, "theta": 1.5707963267948966},
            {"type": "lose"},
        ),
        ("b.jpg", {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 2, 22]}, {"type": {"good": True}}),
        ("c.jpg", None, {}),
    )
    made = import_labels(root, tmp_path / "out")
    assert labels(tmp_path / "out/data.json") == {
        "a.jpg": [
            ("good", [10.0, 10.0, 20.0, 30.0]),
            ("broke", [39.5, 19.5, 21.0, 21.0]),
            ("lose", [40.0, 10.0, 20.0, 40.0]),
        ],
        "b.jpg": [("good", [1.0, 2.0, 8.0, 20.0])],
        "c.jpg": [],
    }
    assert "3 polygons, circles and ellipses are replaced by the upright boxes around them" in made.notes


def test_two_names_that_may_mean_one_photo_are_a_fault(tmp_path: Path) -> None:
    rows = [(name, RECT, {"type": "good"}) for name in ("berlin/a.jpg", "lyon/a.jpg")]
    root = table(tmp_path / "set", *rows)
    photo(root / "a.jpg")
    with pytest.raises(DataError, match=r"'berlin/a\.jpg' and 'lyon/a\.jpg' would both be a\.jpg"):
        import_labels(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "stated", "photos", "meant"),
    [
        ("via.csv", "lyon/1.jpg", ["1.jpg", "lyon/1.jpg"], "lyon/1.jpg"),
        ("via.csv", "./lyon\\1.jpg", ["1.jpg", "lyon/1.jpg"], "lyon/1.jpg"),
        ("csv/via.csv", "../lyon/1.jpg", ["csv/1.jpg", "csv/lyon/1.jpg", "lyon/1.jpg"], "lyon/1.jpg"),
        ("via.csv", "/home/me/lyon/1.jpg", ["1.jpg", "berlin/1.jpg", "lyon/1.jpg"], "lyon/1.jpg"),
        ("via.csv", "/home/me/lyon/1.jpg", ["1.jpg", "berlin/1.jpg"], "1.jpg"),
        ("lyon/via.csv", "1.jpg", ["1.jpg", "lyon/1.jpg"], "lyon/1.jpg"),
        ("via.csv", "1.jpg", ["lyon/1.jpg", "lyon/2.jpg"], "lyon/1.jpg"),
    ],
)
def test_the_stated_folder_counts(tmp_path: Path, file: str, stated: str, photos: list[str], meant: str) -> None:
    root = table(tmp_path / "set", (stated, RECT, {"type": "good"}), file=file)
    for name in photos:
        photo(root / name)
    import_labels(root, tmp_path / "out")
    assert labels(tmp_path / "out/data.json") == {meant: [("good", [10.0, 10.0, 20.0, 30.0])]}


@pytest.mark.parametrize(
    ("file", "stated", "photos"),
    [
        ("via.csv", "1.jpg", ["berlin/1.jpg", "lyon/1.jpg"]),
        ("csv/via.csv", "nice/1.jpg", ["csv/1.jpg", "1.jpg"]),
        ("via.csv", "/home/me/1.jpg", ["berlin/me/1.jpg", "lyon/me/1.jpg"]),
        ("via.csv", "nice/1.jpg", ["berlin/1.jpg", "lyon/1.jpg"]),
    ],
)
def test_a_name_that_is_not_certain_is_a_fault(tmp_path: Path, file: str, stated: str, photos: list[str]) -> None:
    root = table(tmp_path / "set", (stated, RECT, {"type": "good"}), file=file)
    for name in photos:
        photo(root / name)
    with pytest.raises(DataError, match=r"E-MISSING .*is not there, or more than one could be meant"):
        import_labels(root, tmp_path / "out")


def test_regions_without_a_class_can_be_named_together(tmp_path: Path) -> None:
    root = via(tmp_path / "set", ("a.jpg", RECT, {}))
    with pytest.raises(DataError, match=r"the object has no class.*--map =NAME"):
        import_labels(root, tmp_path / "out")
    import_labels(root, tmp_path / "out", rename={"": "manhole"})
    assert labels(tmp_path / "out/data.json") == {"a.jpg": [("manhole", [10.0, 10.0, 20.0, 30.0])]}


@pytest.mark.parametrize(
    "attributes",
    [
        {"class": "good", "type": "round"},
        {"name": "", "type": "good", "colour": "grey"},
        {"colour": "grey", "label": "good"},
        {"state": "good"},
    ],
)
def test_the_class_is_one_of_several_attributes(tmp_path: Path, attributes: dict[str, str]) -> None:
    import_labels(via(tmp_path / "set", ("a.jpg", RECT, attributes)), tmp_path / "out")
    assert labels(tmp_path / "out/data.json") == {"a.jpg": [("good", [10.0, 10.0, 20.0, 30.0])]}


def test_an_attribute_is_not_the_class_where_other_regions_have_more(tmp_path: Path) -> None:
    """VIA leaves out what was not set: a region without a type would be of the class grey."""
    root = via(
        tmp_path / "set", ("a.jpg", RECT, {"type": "good", "colour": "grey"}), ("b.jpg", RECT, {"colour": "grey"})
    )
    with pytest.raises(DataError, match="the region has the attributes colour; which is the class cannot be known"):
        import_labels(root, tmp_path / "out")
    import_labels(root, tmp_path / "out", skip=True)
    assert labels(tmp_path / "out/data.json") == {"a.jpg": [("good", [10.0, 10.0, 20.0, 30.0])]}


@pytest.mark.parametrize(
    ("shape", "attributes", "told"),
    [
        ({"name": "point", "cx": 1, "cy": 2}, {"type": "good"}, "a point of these points has no box"),
        ({"name": "rect", "x": 1, "y": 2}, {"type": "good"}, "lacks one of the numbers"),
        (RECT, {"colour": "grey", "state": "good"}, "which is the class cannot be known"),
        (RECT, {"name": "broke", "type": "round"}, "attributes name, type; which is the class cannot be known"),
        (RECT, {"class": "", "type": "round"}, "the object has no class"),
        (RECT, {"type": {"good": True, "broke": True}}, "is good and broke at once"),
        (["rect"], {"type": "good"}, "not an object of json"),
    ],
)
def test_regions_that_cannot_be_read_are_faults(tmp_path: Path, shape: Any, attributes: Any, told: str) -> None:
    root = via(tmp_path / "set", ("a.jpg", shape, attributes), ("b.jpg", RECT, {"type": "good"}))
    with pytest.raises(DataError, match=told):
        import_labels(root, tmp_path / "out")
    import_labels(root, tmp_path / "out", skip=True)
    assert list(labels(tmp_path / "out/data.json")) == ["b.jpg"]


def test_a_csv_without_its_columns_is_told(tmp_path: Path) -> None:
    root = via(tmp_path / "set", ("a.jpg", RECT, {"type": "good"}))
    text = (root / "via_region_data.csv").read_text()
    put(root / "via_region_data.csv", text.replace("region_count,", '"region_count,'))
    with pytest.raises(DataError, match="region_count"):
        import_labels(root, tmp_path / "out", form="via")
    put(root / "via_region_data.csv", "#" + text)  # VIA 1
    import_labels(root, tmp_path / "out")
    assert list(labels(tmp_path / "out/data.json")) == ["a.jpg"]
