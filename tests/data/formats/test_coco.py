"""COCO exports of Roboflow, CVAT, Label Studio and VIA, each with its own habits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cvpeft.data.convert.importer import Imported, import_labels
from cvpeft.errors import DataError
from tests.data.sources import coco, content, labels, photo, put, state

NAMES = {1: "good", 2: "broke"}
BOX = (1, (10, 10, 20, 30))
GOOD = ("good", [10.0, 10.0, 20.0, 30.0])


def run(root: Path, **options: object) -> Imported:
    return import_labels(root, root.parent / "out", **options)  # type: ignore[arg-type]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        run(root)
    return str(caught.value)


def write(file: Path, data: Any) -> None:
    put(file, json.dumps(data))


def test_roboflows_ids_start_at_0_in_each_split_and_its_dummy_is_no_class(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "valid"):
        names = {0: "covers", 1: "good", 2: "broke"}
        data = coco({f"{split}_jpg.rf.ab.jpg": [BOX, (2, (50, 10, 10, 10))], f"{split}2.jpg": []}, names, start=0)
        for category in data["categories"][1:]:
            category["supercategory"] = "covers"
        write(root / split / "_annotations.coco.json", data)
        for name in (f"{split}_jpg.rf.ab.jpg", f"{split}2.jpg"):
            photo(root / split / name)
    before = state(root)
    made = run(root)
    second = ("broke", [50.0, 10.0, 10.0, 10.0])
    assert labels(tmp_path / "out/train.json") == {"train/train_jpg.rf.ab.jpg": [GOOD, second], "train/train2.jpg": []}
    assert labels(tmp_path / "out/val.json") == {"valid/valid_jpg.rf.ab.jpg": [GOOD, second], "valid/valid2.jpg": []}
    assert list(made.parts[0].boxes) == ["good", "broke"]
    assert {image["photo"] for image in content(made.parts[0].file)["images"]} == {"train", "train2"}
    assert state(root) == before


def test_cvats_images_lie_beside_annotations_and_its_rotated_boxes_become_hulls(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [(1, (40, 20, 20, 10))]}, NAMES)
    data["annotations"][0]["attributes"] = {"occluded": False, "rotation": 90.0}
    write(root / "annotations/instances_default.json", data)
    photo(root / "images/a.jpg")
    made = run(root)
    assert labels(tmp_path / "out/data.json") == {"images/a.jpg": [("good", [45.0, 15.0, 10.0, 20.0])]}
    assert "1 rotated boxes are replaced by the upright boxes around them" in made.notes


@pytest.mark.parametrize(
    "name",
    [
        "..\\..\\label-studio\\media\\upload\\4\\cb06-a.jpg",
        "/data/local-files/?d=photos/cb06-a.jpg",
        "s3://bucket/street%20one/cb06-a.jpg",
        "images\\cb06-a.jpg",
    ],
)
def test_label_studios_prefixes_are_matched_by_their_end_and_told(tmp_path: Path, name: str) -> None:
    root = tmp_path / "set"
    data = coco({name: [(0, (10, 10, 20, 30))]}, {0: "good", 1: "broke"}, start=0)
    write(root / "result.json", data)
    photo(root / "images/cb06-a.jpg")
    made = run(root)
    assert labels(tmp_path / "out/data.json") == {"images/cb06-a.jpg": [GOOD]}
    told = [note for note in made.notes if "found by the end of their path" in note]
    assert bool(told) == (not name.startswith("images"))
    assert not told or f"{name} is images/cb06-a.jpg" in told[0]


def test_an_end_that_fits_two_images_is_a_fault(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "result.json", coco({"upload/frame_000000.PNG": [BOX]}, NAMES))
    for task in ("one", "two"):
        photo(root / task / "frame_000000.PNG")
    assert "is not there, or more than one could be meant" in refusal(root)


def test_a_missing_photo_is_never_the_one_of_another_place(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "berlin.json", coco({"berlin/1.jpg": [BOX], "2.jpg": []}, NAMES))
    for name in ("lyon/1.jpg", "2.jpg"):
        photo(root / name)
    assert 'the image "berlin/1.jpg" is not there' in refusal(root)
    run(root, skip=True)
    assert labels(tmp_path / "out/data.json") == {"2.jpg": []}


def test_two_names_that_may_mean_one_photo_are_a_fault(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "result.json", coco({"upload/1.jpg": [BOX], "store/1.jpg": [], "2.jpg": []}, NAMES))
    for name in ("images/1.jpg", "2.jpg"):
        photo(root / name)
    assert "images/1.jpg has labels in two places" in refusal(root)
    run(root, skip=True)
    assert list(labels(tmp_path / "out/data.json")) == ["2.jpg"]


def test_of_two_images_of_one_name_the_one_of_the_jsons_split_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "val"):
        write(root / f"annotations/instances_{split}2017.json", coco({"1.jpg": [BOX]}, NAMES))
        photo(root / f"images/{split}2017/1.jpg")
    run(root)
    for split in ("train", "val"):
        assert labels(tmp_path / f"out/{split}.json") == {f"images/{split}2017/1.jpg": [GOOD]}


def test_a_missing_photo_is_never_the_one_of_another_split(tmp_path: Path) -> None:
    """Frames are numbered anew in each task, and the labels of val have not come yet."""
    root = tmp_path / "set"
    write(root / "annotations/instances_train2017.json", coco({"1.jpg": [BOX], "2.jpg": []}, NAMES))
    for name in ("train2017/2.jpg", "val2017/1.jpg"):
        photo(root / name)
    assert 'the image "1.jpg" is not there' in refusal(root)


def test_names_never_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    photo(tmp_path / "secret.jpg")
    photo(root / "a.jpg")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        write(root / "result.json", coco({name: [BOX]}, NAMES))
        assert "secret.jpg" in refusal(root)


def test_crowd_marks_may_be_texts_and_an_area_that_is_none_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    marks = ["0", "false", "1", True, None]
    data = coco({f"{i}.jpg": [BOX] for i in range(len(marks))}, NAMES)
    for box, mark, area in zip(data["annotations"], marks, (-5, 0, "?", 500, None), strict=True):
        box.update(iscrowd=mark, area=area)
    write(root / "x.json", data)
    for i in range(len(marks)):
        photo(root / f"{i}.jpg")
    run(root)
    made = content(tmp_path / "out/data.json")["annotations"]
    assert [(box["iscrowd"], box["area"]) for box in made] == [(0, 600), (0, 600), (1, 600), (1, 500), (0, 600)]
    assert len(labels(tmp_path / "out/data.json")) == len(marks)


def test_a_null_category_of_via_is_a_fault_until_it_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [BOX]}, {1: "x"})
    data["annotations"][0].update(category_id=None, iscrowd=None, id=None)
    write(root / "via.json", data)
    photo(root / "a.jpg")
    assert "the object has no class" in refusal(root)
    run(root, rename={"": "good"})
    assert labels(tmp_path / "out/data.json") == {"a.jpg": [GOOD]}


def test_ids_may_be_texts_and_repeat_and_a_polygon_alone_gives_a_box(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [BOX, BOX]}, NAMES)
    data["images"][0]["id"] = "1"
    data["annotations"][0].update(category_id="1", image_id=1.0)
    data["annotations"][1].update(id=1, bbox=[], segmentation=[[50, 10, 70, 10, 60, 40]])
    write(root / "via.json", data)
    photo(root / "a.jpg")
    made = run(root)
    assert labels(tmp_path / "out/data.json") == {"a.jpg": [GOOD, ("good", [50.0, 10.0, 20.0, 30.0])]}
    assert [box["id"] for box in content(tmp_path / "out/data.json")["annotations"]] == [1, 2]
    assert "1 annotations have polygons and no box; the boxes around them were taken" in made.notes


def test_fields_of_images_are_kept_and_two_categories_of_one_name_are_one(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [BOX, (2, (50, 10, 10, 10))]}, {1: "good", 2: "good"})
    data["images"][0].update(city="Lyon", date_captured="2024-05-01", license=1, extra={"name": "a"})
    write(root / "x.json", data)
    photo(root / "a.jpg")
    run(root)
    made = content(tmp_path / "out/data.json")
    assert made["categories"] == [{"id": 1, "name": "good"}]
    assert made["images"][0] == {
        "city": "Lyon", "date_captured": "2024-05-01", "id": 1, "file_name": "a.jpg", "width": 100, "height": 60,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_id": 9}, "image_id is 9, which no image has"),
        ({"category_id": 9}, "category_id is 9, but the categories are 1 good, 2 broke"),
        ({"bbox": [1, 2, 3]}, "not four numbers"),
        ({"iscrowd": "yes"}, 'iscrowd is "yes", not 0 or 1'),
        ({"iscrowd": [1]}, "iscrowd is [1], not 0 or 1"),
        ({"bbox": [90, 10, 50, 20]}, "leaves the image"),
    ],
)
def test_faults_of_annotations(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [BOX], "b.jpg": [BOX]}, NAMES)
    data["annotations"][0].update(change)
    write(root / "x.json", data)
    for name in ("a.jpg", "b.jpg"):
        photo(root / name)
    assert told in refusal(root)
    run(root, skip=True)
    assert labels(tmp_path / "out/data.json")["b.jpg"] == [GOOD]


def test_a_size_that_is_not_the_images_is_a_fault_unless_the_boxes_refute_it(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [BOX]}, NAMES)
    data["images"][0].update(width=64, height=64)
    write(root / "x.json", data)
    photo(root / "a.jpg")
    assert "the labels say 64x64, the upright image has 100x60" in refusal(root)
    data["annotations"][0]["bbox"] = [70, 10, 20, 30]
    write(root / "x.json", data)
    run(root)
    assert labels(tmp_path / "out/data.json") == {"a.jpg": [("good", [70.0, 10.0, 20.0, 30.0])]}


def test_an_image_id_used_twice_spoils_both_images(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = coco({"a.jpg": [BOX], "b.jpg": [BOX], "c.jpg": [BOX]}, NAMES)
    data["images"][1]["id"] = 1
    write(root / "x.json", data)
    for name in "abc":
        photo(root / f"{name}.jpg")
    assert "which others have too" in refusal(root)
    run(root, skip=True)
    assert list(labels(tmp_path / "out/data.json")) == ["c.jpg"]


@pytest.mark.parametrize("value", [[1], {"a": 1}, None])
@pytest.mark.parametrize(("part", "key"), [("images", "id"), ("annotations", "image_id"), ("categories", "id")])
def test_an_id_that_is_none_is_a_fault(tmp_path: Path, part: str, key: str, value: object) -> None:
    photo(tmp_path / "set/1.jpg")
    data = coco({"1.jpg": [BOX]}, NAMES)
    data[part][0][key] = value
    write(tmp_path / "set/a.json", data)
    assert json.dumps(value) in refusal(tmp_path / "set")


def test_a_category_that_is_a_list_is_a_fault(tmp_path: Path) -> None:
    photo(tmp_path / "set/1.jpg")
    data = coco({"1.jpg": [BOX]}, NAMES)
    data["annotations"][0]["category_id"] = [1]
    write(tmp_path / "set/a.json", data)
    assert "category_id is [1], but the categories are 1 good, 2 broke" in refusal(tmp_path / "set")
