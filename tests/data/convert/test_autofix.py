"""A refused json becomes one that loads, or it is told what is left; the json itself stays as it is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cvpeft.cli import main
from cvpeft.data.coco import load_coco
from cvpeft.data.convert.autofix import Fixed, autofix
from cvpeft.errors import DataError
from tests.data.sets import coco, write
from tests.data.sources import content, photo, state


def fix(file: Path) -> Fixed:
    before = state(file.parent)
    fixed = autofix(file, file.with_name("fixed.json"))
    assert {name: found for name, found in state(file.parent).items() if name in before} == before
    return fixed


def sound(file: Path) -> list[tuple[str, list[int], list[list[float]]]]:
    return [(image.file_name, image.labels.tolist(), image.boxes.tolist()) for image in load_coco([file]).images]


def test_a_sound_json_is_not_changed(tmp_path: Path) -> None:
    file = write(tmp_path, {**coco(), "info": {"year": 2024}})
    fixed = fix(file)
    assert (fixed.counts, fixed.left) == ({}, None)
    assert content(fixed.file) == content(file)


def text_ids(data: dict[str, Any]) -> None:
    for image in data["images"]:
        image["id"] = str(image["id"])
    for box in data["annotations"]:
        box.update(image_id=float(box["image_id"]), category_id=str(box["category_id"]))


def double_category(data: dict[str, Any]) -> None:
    data["categories"].append({"id": 9, "name": "good"})
    data["annotations"][0]["category_id"] = 9


def double_image(data: dict[str, Any]) -> None:
    data["images"].append({**data["images"][0], "id": 9})
    data["annotations"][1]["image_id"] = 9


def double_box(data: dict[str, Any]) -> None:
    data["annotations"].insert(2, {**data["annotations"][1], "id": 99})


def foreign_prefix(data: dict[str, Any]) -> None:
    data["images"][1]["file_name"] = "..\\..\\label-studio\\upload\\2.png"


def no_size(data: dict[str, Any]) -> None:
    data["images"][0].update(width=0, height=0)
    del data["images"][1]["width"]


def odd_marks(data: dict[str, Any]) -> None:
    data["annotations"][0].update(area=-1, iscrowd="0")
    data["annotations"][1].update(area="?", iscrowd="false")


def restarted_ids(data: dict[str, Any]) -> None:
    for box in data["annotations"]:
        box["id"] %= 2


def no_area(data: dict[str, Any]) -> None:
    data["annotations"].append({**data["annotations"][0], "id": 99, "bbox": [3, 3, 0, 5]})


@pytest.mark.parametrize(
    ("spoil", "repair", "count"),
    [
        (text_ids, "ids become whole numbers", 3 + 12),
        (double_category, "categories of one name are joined", 1),
        (double_image, "entries of one image are joined", 1),
        (double_box, "boxes that are there twice are dropped once", 1),
        (foreign_prefix, "file names lead to their image", 1),
        (no_size, "sizes are those of the upright image", 2),
        (odd_marks, "crowd marks become 0 or 1", 2),
        (restarted_ids, "annotations are numbered anew", 5),
        (no_area, "boxes without area are dropped", 1),
    ],
)
def test_each_repair_gives_the_labels_of_the_sound_json(tmp_path: Path, spoil: Any, repair: str, count: int) -> None:
    data = coco()
    expected = sound(write(tmp_path / "sound", data))
    spoilt = copy.deepcopy(data)
    spoil(spoilt)
    fixed = fix(write(tmp_path / "spoilt", spoilt, pictures=[image["file_name"] for image in data["images"]]))
    assert fixed.left is None
    assert fixed.counts[repair] == count
    assert sound(fixed.file) == expected
    assert sum(change["repair"] == repair for change in content(fixed.log)["changes"]) == count
    again = autofix(fixed.file, tmp_path / "spoilt/again.json")
    assert (again.counts, again.left) == ({}, None)


def test_a_box_that_leaves_its_image_a_little_is_clipped_and_one_that_leaves_it_far_is_told(tmp_path: Path) -> None:
    data = coco()
    data["annotations"][0].update(bbox=[90, 10, 16, 10], area=160)
    data["annotations"][1]["bbox"] = [98, 10, 40, 10]
    fixed = fix(write(tmp_path, data))
    first, second = content(fixed.file)["annotations"][:2]
    assert (first["bbox"], first["area"]) == ([90.0, 10.0, 10.0, 10.0], 100.0)
    assert second["bbox"] == [98, 10, 40, 10]
    assert "annotation 2 - bbox [98.0, 10.0, 40.0, 10.0] leaves the image" in str(fixed.left)


@pytest.mark.parametrize(("bbox", "mended"), [([10, 70, 20, 20], True), ([10, 10, 20, 20], False)])
def test_a_swapped_size_is_mended_where_the_boxes_fit_one_way_only(
    tmp_path: Path, bbox: list[int], mended: bool
) -> None:
    data = coco(1, per_image=1)
    data["images"][0]["file_name"] = "1.jpg"
    data["annotations"][0]["bbox"] = bbox
    file = write(tmp_path, data, pictures=[])
    photo(tmp_path / "1.jpg", (60, 100), orientation=6)
    fixed = fix(file)
    image = content(fixed.file)["images"][0]
    assert (image["height"], image["width"]) == ((100, 60) if mended else (60, 100))
    assert fixed.counts["sizes are those of the upright image"] == mended


def test_what_cannot_be_known_is_left_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco()
    data["annotations"][0]["bbox"] = [1, 1, -5, 5]
    data["annotations"][1]["category_id"] = 77
    data["annotations"][2]["image_id"] = 77
    data["annotations"].append({**data["annotations"][3], "id": 4})
    file = write(tmp_path, data)
    assert main(["data", "autofix", str(file), "--out", str(tmp_path / "fixed.json")]) == 2
    told = capsys.readouterr()
    assert "1 x boxes that are there twice are dropped once" in told.out
    assert "corrected by hand" in told.out
    for words in ("negative size", "category_id is 77", "image_id is 77"):
        assert words in told.err
    assert len(content(tmp_path / "fixed.json")["annotations"]) == 6


def unchanged(file: Path) -> str:
    """What is left to be told of a json in which nothing may be put right."""
    before, fixed = content(file), fix(file)
    assert not fixed.counts
    assert content(fixed.file) == before
    return str(fixed.left)


@pytest.mark.parametrize("ids", [(1, 2, 2), (1, 1, 2)])
def test_categories_whose_id_others_have_are_not_joined(tmp_path: Path, ids: tuple[int, int, int]) -> None:
    """Boxes of the id that `broke` has would become `good`."""
    data = coco(2)
    data["categories"] = [{"id": i, "name": name} for i, name in zip(ids, ("good", "broke", "good"), strict=True)]
    assert "E-CAT" in unchanged(write(tmp_path, data))


def test_entries_of_one_image_whose_id_others_have_are_not_joined(tmp_path: Path) -> None:
    data = coco(2)
    data["images"][1]["id"] = 1
    data["images"].append({**data["images"][0], "id": 2})
    assert "image id 1 is used by" in unchanged(write(tmp_path, data))


def test_a_box_of_class_0_is_no_double_of_one_without_a_class(tmp_path: Path) -> None:
    data = coco(1)
    data["categories"][0]["id"] = 0
    data["annotations"][0]["category_id"] = 0
    data["annotations"].insert(0, {**data["annotations"][0], "id": 9, "category_id": None})
    unchanged(write(tmp_path, data))


def test_boxes_are_not_clipped_to_an_image_that_may_not_be_theirs(tmp_path: Path) -> None:
    data = coco(2)
    data["images"][1].update(id=1, height=30)
    data["annotations"][0]["bbox"] = [5, 15, 20, 20]
    file = write(tmp_path, data)
    photo(tmp_path / "images/2.png", (30, 100))
    unchanged(file)


def test_labels_are_never_moved_to_the_photo_of_another_place(tmp_path: Path) -> None:
    """Berlin's photos were not copied; Lyon's have the same names."""
    data = coco()
    for image, name in zip(data["images"], ("berlin/1.png", "lyon/1.png", "lyon/2.png"), strict=True):
        image["file_name"] = name
    fixed = fix(write(tmp_path, data, pictures=["lyon/1.png", "lyon/2.png"]))
    assert not fixed.counts
    assert content(fixed.file) == data
    assert "1 of 3 image files are missing: berlin/1.png" in str(fixed.left)


@pytest.mark.parametrize("other", ["images/1.png", "store/1.png"])
def test_an_image_that_another_entry_names_or_may_mean_is_not_matched(tmp_path: Path, other: str) -> None:
    data = coco(2)
    for image, name in zip(data["images"], ("upload/1.png", other), strict=True):
        image["file_name"] = name
    fixed = fix(write(tmp_path, data, pictures=["images/1.png"]))
    assert not fixed.counts
    assert [image["file_name"] for image in content(fixed.file)["images"]] == ["upload/1.png", other]


def test_the_new_json_may_stand_above_and_nowhere_else(tmp_path: Path) -> None:
    data = coco()
    data["annotations"][0]["id"] = 0
    file = write(tmp_path / "berlin", data)
    fixed = autofix(file, tmp_path / "fixed.json")
    assert fixed.left is None
    assert content(fixed.file)["images"][0]["file_name"] == "berlin/images/1.png"
    with pytest.raises(DataError, match="the images lie in or below"):
        autofix(file, tmp_path / "elsewhere/fixed.json")
    for taken in (file, fixed.file):
        with pytest.raises(DataError, match="the file is there"):
            autofix(file, taken)
    assert json.loads(file.read_text())["annotations"][0]["id"] == 0


def test_a_folder_is_no_new_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, coco())
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), Path("images")):
        with pytest.raises(DataError, match="the file is there"):
            autofix(file, folder)


def test_images_that_cannot_be_read_are_taken_out_when_asked(tmp_path: Path) -> None:
    """One missing, one cut off, of forty; their boxes go with them, and the log keeps all of it."""
    file = write(tmp_path, coco(40))
    (tmp_path / "images/3.png").unlink()
    broken = tmp_path / "images/7.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    before, boxes = state(tmp_path), content(file)["annotations"]
    fixed = autofix(file, tmp_path / "fixed.json", drop_unreadable=True, progress=False)
    assert {name: found for name, found in state(tmp_path).items() if name in before} == before
    lost = {3, 7}
    kept = [box for box in boxes if box["image_id"] not in lost]
    assert fixed.left is None
    assert [image["id"] for image in content(fixed.file)["images"]] == [n for n in range(1, 41) if n not in lost]
    assert content(fixed.file)["annotations"] == kept
    changes = content(fixed.log)["changes"]
    assert [change["before"]["id"] for change in changes if change["repair"].startswith("images")] == [3, 7]
    assert [change["before"] for change in changes if change["repair"].startswith("boxes")] == [
        box for box in boxes if box["image_id"] in lost
    ]


def test_without_the_word_nothing_is_taken_out(tmp_path: Path) -> None:
    file = write(tmp_path, coco(40))
    (tmp_path / "images/3.png").unlink()
    fixed = fix(file)
    assert content(fixed.file) == content(file)
    assert fixed.left is not None
    assert "--drop-unreadable" in str(fixed.left)


def test_many_unreadable_images_are_no_accident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, coco(10))
    (tmp_path / "images/3.png").write_bytes(b"")
    out = tmp_path / "fixed.json"
    assert main(["data", "autofix", str(file), "--out", str(out), "--drop-unreadable"]) == 2
    assert "1 of 10 images cannot be decoded, more than 5%" in capsys.readouterr().err
    assert not out.exists()
