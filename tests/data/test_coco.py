"""Reading COCO files: what is put right, what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvpeft.data import coco as room
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.errors import DataError

from .sets import CLASSES, coco, write


def refusal(*files: Path, classes: tuple[str, ...] = ()) -> str:
    with pytest.raises(DataError) as caught:
        load_coco(files, classes=classes)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- sound


def test_a_sound_file(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, coco())])
    assert data.classes == CLASSES
    assert data.notes == ()
    assert [image.id for image in data.images] == [1, 2, 3]
    first = data.images[0]
    assert (first.height, first.width, first.file_name) == (60, 100, "images/1.png")
    assert first.path == (tmp_path / "images/1.png").resolve()
    assert first.boxes.tolist() == [[5, 10, 20, 10], [35, 10, 20, 10]]
    assert first.labels.tolist() == [1, 2]
    assert first.areas.tolist() == [200, 200]
    assert first.crowd.tolist() == [False, False]


def test_real_photographs(potholes: Path) -> None:
    data = load_coco([potholes / "train.json"])
    assert len(data.images) == 390
    assert sum(len(image.boxes) for image in data.images) == 965
    assert data.classes == ("pothole",)
    assert {image.domain for image in data.images} == {potholes.name}
    raw = json.loads((potholes / "train.json").read_text())
    assert [a["bbox"] for a in data.ground_truth()["annotations"]] == [a["bbox"] for a in raw["annotations"]]


def test_negatives_are_kept(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, coco(annotations=[]))])
    assert len(data.images) == 3
    assert all(image.boxes.shape == (0, 4) and image.labels.shape == (0,) for image in data.images)
    assert data.images[0].labels.dtype == np.int64
    assert data.ground_truth()["annotations"] == []


def change(content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The content with fields of its first annotation replaced; ... deletes a field."""
    content = copy.deepcopy(content)
    for key, value in fields.items():
        if value is ...:
            del content["annotations"][0][key]
        else:
            content["annotations"][0][key] = value
    return content


@pytest.mark.parametrize("fields", [{"area": ...}, {"area": None}, {"area": 0}, {"iscrowd": ...}, {"iscrowd": None}])
def test_missing_area_and_crowd(tmp_path: Path, fields: dict[str, Any]) -> None:
    first = load_coco([write(tmp_path, change(coco(), **fields))]).images[0]
    assert first.areas[0] == 200
    assert not first.crowd[0]


@pytest.mark.parametrize("number", [0, "x", None, 1.5, ..., 2])
def test_annotation_ids_do_not_matter(tmp_path: Path, number: Any) -> None:
    truth = load_coco([write(tmp_path, change(coco(), id=number))]).ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert truth["annotations"] == load_coco([write(tmp_path, coco())]).ground_truth()["annotations"]


def test_repeated_annotation_ids_are_noted(tmp_path: Path) -> None:
    content = coco()
    for annotation in content["annotations"]:
        annotation["id"] = 1
    assert load_coco([write(tmp_path, content)]).notes == (
        "berlin.json: 5 annotation ids repeat; they are renumbered in memory",
    )


def test_crowd_is_kept(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, change(coco(), iscrowd=1))])
    assert data.images[0].crowd.tolist() == [True, False]
    assert [a["iscrowd"] for a in data.ground_truth()["annotations"]] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("bbox", "inside"),
    [
        ([-2, 10, 22, 10], [0, 10, 20, 10]),
        ([82, 10, 20, 10], [82, 10, 18, 10]),
        ([5, 52, 20, 10], [5, 52, 20, 8]),
        ([-1.5, -2, 103, 64], [0, 0, 100, 60]),
        ([0.1, 0.2, 99.9, 59.8], [0.1, 0.2, 99.9, 59.8]),
    ],
)
def test_up_to_two_pixels_outside_are_clipped(tmp_path: Path, bbox: list[float], inside: list[float]) -> None:
    first = load_coco([write(tmp_path, change(coco(), bbox=bbox, area=...))]).images[0]
    assert np.allclose(first.boxes[0], inside)
    assert np.isclose(first.areas[0], inside[2] * inside[3])


def test_one_percent_outside_is_clipped_in_large_images(tmp_path: Path) -> None:
    path = write(tmp_path, change(coco(size=(600, 1000)), bbox=[900, 10, 110, 10]))
    assert load_coco([path]).images[0].boxes[0].tolist() == [900, 10, 100, 10]
    assert "E-BOX" in refusal(write(tmp_path, change(coco(size=(600, 1000)), bbox=[900, 10, 111, 10])))


@pytest.mark.parametrize("bbox", [[5, 5, 0, 10], [5, 5, 10, 0.0], [500, 5, 0, 0]])
def test_boxes_without_area_are_dropped_and_counted(tmp_path: Path, bbox: list[float]) -> None:
    data = load_coco([write(tmp_path, change(coco(), bbox=bbox))])
    assert len(data.images[0].boxes) == 1
    assert data.notes == ("berlin.json: 1 boxes have no area and are dropped",)


def test_a_box_just_outside_is_dropped_and_counted(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, change(coco(), bbox=[100, 5, 1, 10]))])
    assert len(data.images[0].boxes) == 1
    assert "1 boxes lie just outside" in data.notes[0]


def test_rotated_boxes_become_the_boxes_around_them(tmp_path: Path) -> None:
    content = change(coco(), bbox=[30, 20, 20, 10], attributes={"rotation": 90.0})
    data = load_coco([write(tmp_path, content)])
    assert np.allclose(data.images[0].boxes[0], [35, 15, 10, 20])
    assert "1 rotated boxes" in data.notes[0]
    content["annotations"][0]["attributes"] = {"rotation": 0.0, "occluded": False}
    assert load_coco([write(tmp_path, content)]).images[0].boxes[0].tolist() == [30, 20, 20, 10]


@pytest.mark.parametrize("value", [..., None])
def test_a_size_that_is_not_stated_is_read_from_the_upright_file(tmp_path: Path, value: Any) -> None:
    content = coco(1)
    path = write(tmp_path, content)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 100)).save(tmp_path / "images/1.jpg", exif=exif)
    image = content["images"][0] | {"file_name": "images/1.jpg"}
    content["images"] = (
        [{k: v for k, v in image.items() if k != "width"}] if value is ... else [image | {"width": None}]
    )
    path.write_text(json.dumps(content))
    data = load_coco([path])
    assert (data.images[0].height, data.images[0].width) == (60, 100)
    assert data.notes == ("berlin.json: 1 images state no size; it was read from their files",)


def test_backslashes_spaces_and_chinese_names(tmp_path: Path) -> None:
    content = coco(2)
    content["images"][0]["file_name"] = "bilder\\neu a\\井盖 1.png"
    path = write(tmp_path, content, pictures=["bilder/neu a/井盖 1.png", "images/2.png"])
    assert load_coco([path]).images[0].file_name == "bilder/neu a/井盖 1.png"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_coco([path]).images) == 3


# ------------------------------------------------------------------------------------------------------- several files


def shuffled(content: dict[str, Any], order: list[int], start: int) -> dict[str, Any]:
    """The same labels with category ids and order of another tool."""
    content = copy.deepcopy(content)
    for category in content["categories"]:
        category["id"] = start + order.index(category["id"])
    for annotation in content["annotations"]:
        annotation["category_id"] = start + order.index(annotation["category_id"])
    content["categories"].sort(key=lambda c: c["id"])
    return content


def test_two_cities_with_restarted_ids_and_shuffled_categories(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", coco()), write(tmp_path / "b", shuffled(coco(), [3, 1, 2], 0), "paris.json")
    data = load_coco([one, two])
    assert [image.id for image in data.images] == [1, 2, 3, 4, 5, 6]
    assert [image.domain for image in data.images] == ["berlin"] * 3 + ["paris"] * 3
    for first, second in zip(data.images[:3], data.images[3:], strict=True):
        assert first.labels.tolist() == second.labels.tolist()
    truth = data.ground_truth()
    assert [c["name"] for c in truth["categories"]] == list(CLASSES)
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 13))
    assert {a["image_id"] for a in truth["annotations"]} == {1, 2, 3, 4, 5, 6}


def perfect_score(data: CocoData) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = data.ground_truth()
    truth.createIndex()
    keys = ("image_id", "category_id", "bbox")
    found = truth.loadRes([{k: a[k] for k in keys} | {"score": 0.9} for a in truth.dataset["annotations"]])
    score = COCOeval(truth, found, "bbox")
    score.evaluate()
    score.accumulate()
    score.summarize()
    return score.stats


@pytest.mark.parametrize("start", [0, 1, 7])
def test_perfect_predictions_score_one(tmp_path: Path, start: int) -> None:
    files = [
        write(tmp_path / str(k), shuffled(coco(), order, start), f"city{k}.json")
        for k, order in enumerate(([1, 2, 3], [3, 2, 1], [2, 3, 1]))
    ]
    for file in files:
        content = json.loads(file.read_text())
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number % 2  # restarts in every image
        file.write_text(json.dumps(content))
    assert perfect_score(load_coco(files))[:3].tolist() == pytest.approx([1, 1, 1], abs=1e-12)


def test_classes_decide_the_order_of_labels(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, coco())], classes=("lose", "uncovered", "good", "broke"))
    assert data.classes == ("lose", "uncovered", "good", "broke")
    assert data.images[0].labels.tolist() == [3, 4]
    assert data.notes == ("berlin.json: class 'uncovered' does not occur in this file",)


def test_the_first_file_decides_where_no_classes_are_given(tmp_path: Path) -> None:
    other = coco()
    other["categories"][1]["name"] = "Broken"
    text = refusal(write(tmp_path / "a", coco()), write(tmp_path / "b", other))
    assert "E-CLASS" in text
    assert "2 'Broken' is not among the classes good, broke, lose (did you mean 'broke'?)" in text


def test_a_category_without_boxes_that_is_no_class_is_left_out(tmp_path: Path) -> None:
    content = coco()
    content["categories"].append({"id": 9, "name": "{weird} {}"})
    data = load_coco([write(tmp_path, content)], classes=CLASSES)
    assert data.classes == CLASSES
    assert data.notes == ("berlin.json: category '{weird} {}' has no boxes and is not among the classes; left out",)


def test_the_dummy_category_of_roboflow_is_left_out(tmp_path: Path) -> None:
    content = coco()
    content["categories"] = [{"id": 0, "name": "covers", "supercategory": "none"}] + [
        category | {"supercategory": "covers"} for category in content["categories"]
    ]
    data = load_coco([write(tmp_path, content)])
    assert data.classes == CLASSES
    assert data.images[0].labels.tolist() == [1, 2]
    assert "category 0 'covers' only stands above the others" in data.notes[0]


def test_a_category_zero_with_boxes_is_a_class(tmp_path: Path) -> None:
    content = shuffled(coco(), [1, 2, 3], 0)
    for category in content["categories"][1:]:
        category["supercategory"] = "good"
    assert load_coco([write(tmp_path, content)]).classes == CLASSES


@pytest.mark.parametrize(
    ("file", "domain"),
    [
        ("berlin.json", "berlin"),
        ("berlin_train.json", "berlin"),
        ("test-paris.json", "paris"),
        ("oslo/train.json", "oslo"),
        ("oslo/annotations/instances_default.json", "oslo"),
        ("oslo/train/_annotations.coco.json", "oslo"),
        ("oslo/instances_val2017.json", "oslo"),
        ("oslo/train_labels.json", "oslo"),
        ("trainyard.json", "trainyard"),
    ],
)
def test_domain_by_file_name(tmp_path: Path, file: str, domain: str) -> None:
    path = write((tmp_path / file).parent, coco(1), Path(file).name)
    assert load_coco([path]).images[0].domain == domain


def test_a_domain_is_text_that_a_report_can_hold(tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["domain"] = "a\ud800"
    data = load_coco([write(tmp_path, content, os.fsdecode(b"caf\xe9_train.json"))])
    assert [image.domain for image in data.images] == ["a?", "caf?", "caf?"]


def test_domain_of_a_file_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "berlin/notes").mkdir(parents=True)
    write(tmp_path / "berlin", coco(), "train.json")
    monkeypatch.chdir(tmp_path / "berlin/notes")
    assert load_coco([Path("../train.json")]).images[0].domain == "berlin"


def test_domain_by_image(tmp_path: Path) -> None:
    content = coco(4)
    for image, extra in zip(
        content["images"], ({"domain": "x"}, {"city": "y"}, {"city": ""}, {"city": 3}), strict=True
    ):
        image.update(extra)
    assert [image.domain for image in load_coco([write(tmp_path, content)]).images] == ["x", "y", "berlin", "3"]


# -------------------------------------------------------------------------------------------------------------- faults


def edit(action: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = coco()
    action(content)
    return content


FAULTS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "not json": (lambda: "train: images/\nnc: 3\n", "E-JSON", "this is not JSON"),
    "half": (lambda: json.dumps(coco())[:-20], "E-JSON", "this is not JSON"),
    "empty": (lambda: "", "E-JSON", "this is not JSON"),
    "nan": (lambda: json.dumps(change(coco(), area=float("nan"))), "E-JSON", "NaN is not a number"),
    "infinity": (lambda: json.dumps(change(coco(), area=float("inf"))), "E-JSON", "Infinity is not a number"),
    "deep": (lambda: "[" * 100_000, "E-JSON", "nested too deep"),
    "long number": (lambda: "[" + "9" * 10_000 + "]", "E-JSON", "this is not JSON"),
    "predictions": (lambda: [{"image_id": 1, "score": 0.5}], "E-COCO", "a list of predictions"),
    "list": (lambda: [1, 2], "E-COCO", "the top level is a list"),
    "text": (lambda: '"text"', "E-COCO", 'the top level is "text"'),
    "labelme": (lambda: {"shapes": [], "version": "5"}, "E-COCO", "looks like a LabelMe file"),
    "no categories": (lambda: {"images": [], "annotations": []}, "E-COCO", "no list named categories"),
    "captions": (lambda: coco(annotations=[{"id": 1, "image_id": 1, "caption": "x"}]), "E-COCO", "captions, not boxes"),
    "no images": (lambda: coco(images=0) | {"images": []}, "E-COCO", "the list of images is empty"),
    "image is text": (lambda: edit(lambda c: c["images"].append("a.png")), "E-COCO", 'an image is "a.png"'),
    "annotation is null": (lambda: edit(lambda c: c["annotations"].append(None)), "E-COCO", "an annotation is null"),
    "category is text": (lambda: edit(lambda c: c["categories"].append("x")), "E-CAT", "the id is null"),
    "categories empty": (lambda: coco(categories=[], annotations=[]), "E-CAT", "the list of categories is empty"),
    "category id": (lambda: edit(lambda c: c["categories"].append({"id": "4", "name": "x"})), "E-CAT", 'the id is "4"'),
    "category id twice": (
        lambda: edit(lambda c: c["categories"].append({"id": 2, "name": "x"})), "E-CAT", "id 2 is used by 'broke' and"
    ),
    "category name twice": (
        lambda: edit(lambda c: c["categories"].append({"id": 4, "name": "good"})), "E-CAT", "'good' is used twice"
    ),
    "category with a line break": (
        lambda: edit(lambda c: c["categories"].append({"id": 4, "name": "open\r"})), "E-CAT",
        r'the name "open\r" has control characters or more than 200 letters',
    ),
    "category name is no text": (
        lambda: edit(lambda c: c["categories"].append({"id": 4, "name": "x\ud800"})), "E-CAT", "not a text"
    ),
    "category without name": (lambda: edit(lambda c: c["categories"].append({"id": 4})), "E-CAT", "the name is null"),
    "image id twice": (
        lambda: edit(lambda c: c["images"][1].update(id=1)), "E-IMGID", "image id 1 is used by images/1.png and"
    ),
    "image id text": (lambda: edit(lambda c: c["images"][1].update(id="2")), "E-IMGID", 'the id is "2"'),
    "image twice": (
        lambda: edit(lambda c: c["images"][1].update(file_name="images/../images/1.png")), "E-IMGNAME", "listed twice"
    ),
    "image without name": (lambda: edit(lambda c: c["images"][1].pop("file_name")), "E-NAME", "file_name is None"),
    "image size zero": (lambda: edit(lambda c: c["images"][1].update(width=0)), "E-IMGSIZE", "width is 0"),
    "image size text": (lambda: edit(lambda c: c["images"][1].update(height="60")), "E-IMGSIZE", 'height is "60"'),
    "outside": (lambda: edit(lambda c: c["images"][1].update(file_name="../x.png")), "E-PATH", "leads out of"),
    "absolute": (lambda: edit(lambda c: c["images"][1].update(file_name="/etc/passwd")), "E-PATH", "leads out of"),
    "drive": (lambda: edit(lambda c: c["images"][1].update(file_name="C:\\a.png")), "E-PATH", "leads out of"),
    "zero byte": (lambda: edit(lambda c: c["images"][1].update(file_name="a\0.png")), "E-PATH", "cannot be a path"),
    "missing": (
        lambda: edit(lambda c: c["images"][1].update(file_name="b.png")), "E-MISSING", "1 of 3 image files are missing"
    ),
    "unknown category": (
        lambda: change(coco(), category_id=7), "E-CAT",
        "annotation 1: category_id is 7, but the categories are 1 good, 2 broke, 3 lose",
    ),
    "category null": (lambda: change(coco(), category_id=None), "E-CAT", "category_id is null"),
    "unknown image": (lambda: change(coco(), image_id=9), "E-IMGID", "image_id is 9, which no image has"),
    "image id as text": (lambda: change(coco(), image_id="1"), "E-IMGID", 'image_id is "1"'),
    "box missing": (lambda: change(coco(), bbox=...), "E-BOX", "bbox is null, not four numbers"),
    "box short": (lambda: change(coco(), bbox=[1, 2, 3]), "E-BOX", "bbox is [1, 2, 3], not four numbers"),
    "box text": (lambda: change(coco(), bbox=[1, 2, 3, "4"]), "E-BOX", "not four numbers"),
    "box bool": (lambda: change(coco(), bbox=[1, 2, 3, True]), "E-BOX", "not four numbers"),
    "box 1e999": (lambda: json.dumps(coco()).replace("[5, 10", "[1e999, 10", 1), "E-BOX", "not four numbers"),
    "box 400 digits": (lambda: change(coco(), bbox=[10**400, 2, 3, 4]), "E-BOX", "not four numbers"),
    "box negative": (lambda: change(coco(), bbox=[10, 10, -5, 5]), "E-BOX", "has a negative size"),
    "box outside": (
        lambda: change(coco(), bbox=[90, 40, 50, 10]), "E-BOX",
        "images/1.png, annotation 1 - bbox [90.0, 40.0, 50.0, 10.0] leaves the image of 100x60",
    ),
    "box of the turned image": (lambda: change(coco(), bbox=[5, 70, 20, 20]), "E-BOX", "without its EXIF orientation"),
    "crowd": (lambda: change(coco(), iscrowd="no"), "E-CROWD", 'iscrowd is "no"'),
    "area": (lambda: change(coco(), area="big"), "E-AREA", 'area is "big"'),
    "area negative": (lambda: change(coco(), area=-1), "E-AREA", "area is -1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_told_in_one_sentence_that_names_the_file(tmp_path: Path, kind: str) -> None:
    make, code, words = FAULTS[kind]
    path = write(tmp_path, make(), pictures=[f"images/{i}.png" for i in (1, 2, 3)])
    text = refusal(path)
    assert f"{code} {path}" in text
    assert words in text


def test_a_missing_json(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.json").startswith(f"E-FILE {tmp_path / 'none.json'} - the json file does not exist")
    assert "E-FILE" in refusal(tmp_path)


def test_a_json_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff"}')
    assert refusal(tmp_path / "a.json").startswith("E-JSON")


def test_a_huge_json_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**30)
    assert "E-SIZE" in refusal(tmp_path / "a.json")


def test_all_faults_of_all_files_are_told_together(tmp_path: Path) -> None:
    content = coco(30)
    for annotation in content["annotations"][:25]:
        annotation["bbox"][2] = -1
    one = write(tmp_path / "a", content)
    two = write(tmp_path / "b", change(coco(), bbox=[1, 2], iscrowd=0), "paris.json")
    text = refusal(one, two)
    assert text.startswith("E-DATA 26 faults in the data set\n  E-BOX ")
    assert text.count("E-BOX") == 20
    assert text.endswith("\n  and 6 more; in all 26 BOX.")


def test_equal_faults_are_counted_instead_of_repeated(tmp_path: Path) -> None:
    content = coco()
    content["categories"] = content["categories"][:2]
    assert "annotation 3 and 1 more: category_id is 3, but the categories are 1 good, 2 broke" in refusal(
        write(tmp_path, content)
    )


def test_missing_images_are_listed_with_a_hint(tmp_path: Path) -> None:
    content = coco(8)
    path = write(tmp_path / "annotations", content, pictures=[])
    write(tmp_path, content)
    text = refusal(path)
    assert (
        "8 of 8 image files are missing: images/1.png, images/2.png, images/3.png, images/4.png, images/5.png, ..."
        in text
    )
    assert f"images/1.png lies in {tmp_path.resolve()}: move the json there" in text


def test_one_image_in_two_files(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, coco()), write(tmp_path, coco(2), "paris.json"))
    assert "paris.json - 2 images are also listed in" in text


def test_classes_that_repeat(tmp_path: Path) -> None:
    assert "the class 'good' is named twice" in refusal(
        write(tmp_path, coco()), classes=("good", "good", "broke", "lose")
    )


def test_no_file_at_all() -> None:
    assert "no json file is given" in refusal()


def test_an_unreadable_first_file_does_not_blame_the_second(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "a", "{", pictures=[]), write(tmp_path / "b", coco()))
    assert text.startswith("E-JSON")


def test_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in tmp_path.rglob("*")}
    load_coco([path])
    assert before == {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in tmp_path.rglob("*")}


def test_random_damage_gives_the_same_data_or_one_error(tmp_path: Path) -> None:
    """One value anywhere in the file is replaced; no outcome but a data set or a DataError."""
    rng = np.random.default_rng(0)
    values: list[Any] = [None, -1, 0, 1.5, 10**30, "", "x", "../../x", [], {}, [None], True, {"id": 1}, "\ud800"]
    path = write(tmp_path, coco())
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(300):
        content = coco()
        spots = list(places(content))
        holder, key = spots[rng.integers(len(spots))]
        holder[key] = values[rng.integers(len(values))]
        path.write_text(json.dumps(content))
        try:
            truth = load_coco([path]).ground_truth()
            boxes = np.array([a["bbox"] for a in truth["annotations"]])
            assert (boxes[:, 2:] > 0).all()
            assert (boxes[:, :2] + boxes[:, 2:] <= (100, 60)).all() or "width" in str(key) or "height" in str(key)
            outcomes["loaded"] += 1
        except DataError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 30


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [spot for key in keys for spot in places(value[key])]


def test_public_names() -> None:
    assert room.__all__ == ["CocoData", "ImageRecord", "Reading", "load_coco", "read_coco"]
