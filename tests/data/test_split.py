"""What belongs together lies in one part, and each part has its share of everything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvpeft.cli import main
from cvpeft.data.coco import load_coco
from cvpeft.data.split import _deal, _dealt, leave_out, split_json
from cvpeft.errors import DataError

from .sets import picture

HALVES = {"a": 0.5, "b": 0.5}


def coco(folder: Path, sections: int = 12, each: int = 5) -> Path:
    """A road in sections: every third image has a crack, every fourth none of both classes."""
    images, boxes = [], []
    for number in range(1, sections * each + 1):
        section = (number - 1) // each
        name = f"s{section}/{number}.jpg"
        images.append({"id": number, "file_name": name, "width": 64, "height": 48, "section": f"S{section}"})
        for label in [] if number % 4 == 0 else [1, 2] if number % 3 == 0 else [1]:
            box = {"bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label, **box})
    categories = [{"id": 1, "name": "pothole"}, {"id": 2, "name": "crack"}]
    file = folder / "train.json"
    content = {"info": {"from": "a test"}, "images": images, "annotations": boxes, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def names(file: Path, field: str = "file_name") -> set[str]:
    return {image[field] for image in json.loads(file.read_text())["images"]}


@pytest.mark.parametrize("by", ["section", "folder"])
def test_groups_are_never_cut(tmp_path: Path, by: str) -> None:
    file = coco(tmp_path)
    before = file.read_bytes()
    parts = split_json(file, {"kept": 0.75, "held": 0.25}, by=by)
    kept, held = (names(part.file, "section") for part in parts)
    assert not kept & held
    assert [part.file.name for part in parts] == ["train_kept.json", "train_held.json"]
    assert [(part.images, part.groups) for part in parts] == [(45, 9), (15, 3)]
    assert names(parts[0].file) | names(parts[1].file) == names(file)
    assert file.read_bytes() == before
    assert json.loads(parts[0].file.read_text())["info"] == {"from": "a test"}


def test_classes_and_negatives_are_shared_out_too(tmp_path: Path) -> None:
    kept, held = split_json(coco(tmp_path, sections=60, each=1), {"kept": 0.8, "held": 0.2})
    assert (kept.images, held.images) == (48, 12)
    assert (kept.negatives, held.negatives) == (12, 3)
    assert kept.boxes == {"pothole": 36, "crack": 12}
    assert held.boxes == {"pothole": 9, "crack": 3}


def test_the_seed_decides_and_repeats(tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate((0, 0, 1)):
        (tmp_path / str(run)).mkdir()
        found.append(names(split_json(coco(tmp_path / str(run)), HALVES, by="section", seed=seed)[0].file))
    assert found[0] == found[1] != found[2]


def test_a_negative_seed_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = alike(tmp_path)
    for command in (["split", str(file)], ["show", str(file), "--out", str(tmp_path / "sheet.jpg")]):
        assert main(["data", *command, "--seed", "-1"]) == 2
        assert capsys.readouterr().err == "E-SEED the seed is -1. Fix: use 0 or more\n"


def test_roboflows_copies_of_a_photo_stay_together(tmp_path: Path) -> None:
    file = coco(tmp_path, sections=40, each=1)
    content = json.loads(file.read_text())
    for i, image in enumerate(content["images"]):
        image["file_name"] = f"photo{i // 4}_jpg.rf.{'abcd'[i % 4] * 8}.jpg"
    file.write_text(json.dumps(content))
    one, other = split_json(file, HALVES)
    photos = [{name.split("_")[0] for name in names(part.file)} for part in (one, other)]
    assert not photos[0] & photos[1]
    assert one.groups == other.groups == 5


@pytest.mark.parametrize("folders", [("train/images", "valid/images"), ("train", "test")])
def test_roboflows_copies_of_a_photo_stay_together_across_its_folders(tmp_path: Path, folders: tuple[str, str]) -> None:
    file = coco(tmp_path, sections=40, each=1)
    content = json.loads(file.read_text())
    for i, image in enumerate(content["images"]):
        image["file_name"] = f"{folders[i % 2]}/photo{i // 2}_jpg.rf.{'ab'[i % 2] * 8}.jpg"
    file.write_text(json.dumps(content))
    one, other = split_json(file, HALVES)
    photos = [{name.split("/")[-1].split("_")[0] for name in names(part.file)} for part in (one, other)]
    assert not photos[0] & photos[1]
    assert one.groups == other.groups == 10


def test_photos_of_one_name_in_two_cities_are_two(tmp_path: Path) -> None:
    file = coco(tmp_path, sections=2, each=10)
    content = json.loads(file.read_text())
    for i, image in enumerate(content["images"]):
        image["file_name"] = f"{image['section']}/train/images/photo{i % 10}_jpg.rf.{i}.jpg"
    file.write_text(json.dumps(content))
    inside, rest = leave_out(file, "section", "S0")
    assert (names(inside.file, "section"), names(rest.file, "section")) == ({"S0"}, {"S1"})


def test_one_city_may_be_left_out(tmp_path: Path) -> None:
    file = coco(tmp_path)
    inside, rest = leave_out(file, "section", "S3")
    assert (inside.file.name, rest.file.name) == ("train_S3.json", "train_without_S3.json")
    assert names(inside.file, "section") == {"S3"}
    assert "S3" not in names(rest.file, "section")
    assert inside.images + rest.images == 60
    with pytest.raises(DataError, match="no image's section is S99"):
        leave_out(file, "section", "S99")


@pytest.mark.parametrize(
    ("shares", "by", "told"),
    [
        ({"a": 1.0}, "", "the parts are a=1"),
        ({"a": 0.7, "b": 0.7}, "", "a=0.7 b=0.7"),
        (HALVES, "city", r"has no field 'city'.*section"),
        ({f"p{i}": 1 / 16 for i in range(16)}, "section", "12 groups leave nothing for"),
    ],
)
def test_what_makes_no_split_is_refused(tmp_path: Path, shares: dict[str, float], by: str, told: str) -> None:
    file = coco(tmp_path)
    with pytest.raises(DataError, match=told):
        split_json(file, shares, by=by)
    assert [f.name for f in tmp_path.iterdir()] == ["train.json"]


def test_a_file_in_the_way_is_not_lost_and_a_repeat_is_none(tmp_path: Path) -> None:
    file = coco(tmp_path)
    split_json(file, HALVES, by="section")
    split_json(file, HALVES, by="section")
    (tmp_path / "train_a.json").write_bytes(b"mine, m\xfcll")  # no UTF-8
    with pytest.raises(DataError, match="another file has this name"):
        split_json(file, HALVES, by="section")
    assert (tmp_path / "train_a.json").read_bytes() == b"mine, m\xfcll"
    (tmp_path / "train_a.json").unlink()
    (tmp_path / "train_a.json").symlink_to("elsewhere.json")
    with pytest.raises(DataError, match="another file has this name"):
        split_json(file, HALVES, by="section")


def test_the_command_tells_what_lies_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = coco(tmp_path)
    assert main(["data", "split", str(file), "--by", "section", "--parts", "kept=0.75", "held=0.25"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"train_kept\.json: 45 images in 9 groups, 1\d without boxes, pothole 3\d, crack 1\d\n", told)
    for name in ("kept", "held"):
        for image in json.loads((tmp_path / f"train_{name}.json").read_text())["images"]:
            (tmp_path / image["file_name"]).parent.mkdir(exist_ok=True)
            (tmp_path / image["file_name"]).touch()
        assert load_coco([tmp_path / f"train_{name}.json"]).classes == ("pothole", "crack")
    assert main(["data", "split", str(file), "--by", "section", "--leave-out", "S1"]) == 0
    assert main(["data", "split", str(file), "--parts", "kept"]) == 2
    assert "kept" in capsys.readouterr().err


def alike(folder: Path) -> Path:
    """Twelve photos in two sections, and a darker copy of each as if from another camera."""
    file = coco(folder, sections=2, each=12)
    content = json.loads(file.read_text())
    for number, image in enumerate(content["images"]):
        path = folder / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(48, 64, number % 12) // (1 + number // 12)).save(path)
        image["camera"] = f"c{number // 12}"
    file.write_text(json.dumps(content))
    return file


def test_a_split_that_leaks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = alike(tmp_path)
    with pytest.raises(
        DataError, match=r"12 pairs of near-duplicates would lie in different parts, such as s0/\d+\.jpg and s1/"
    ):
        leave_out(file, "camera", "c0")
    assert not list(tmp_path.glob("train_*.json"))
    command = ["data", "split", str(file), "--by", "camera", "--leave-out", "c0"]
    assert main(command) == 2
    assert main([*command, "--allow-leaks"]) == 0


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    one, other = split_json(alike(tmp_path), HALVES, by="near-duplicates")
    numbers = [{image["id"] % 12 for image in json.loads(part.file.read_text())["images"]} for part in (one, other)]
    assert not numbers[0] & numbers[1]
    assert (one.groups, other.groups) == (6, 6)


def test_near_duplicates_have_no_value_to_leave_out(tmp_path: Path) -> None:
    file = alike(tmp_path)
    with pytest.raises(DataError, match=r"near-duplicates have no value .* take near-duplicates out of --by"):
        leave_out(file, ["camera", "near-duplicates"], "c0")
    with pytest.raises(DataError) as told:
        leave_out(file, "camera", "c0")
    assert "--allow-leaks" in str(told.value)
    assert "add near-duplicates" not in str(told.value)
    with pytest.raises(DataError, match="add near-duplicates to --by"):
        split_json(file, HALVES, by="camera")
    assert not list(tmp_path.glob("train_*.json"))


def test_the_more_groups_the_fewer_deals_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred deals of ten thousand groups took minutes."""
    tried: list[int] = []

    def deal(weight: np.ndarray, *_: object) -> np.ndarray:
        tried.append(len(weight))
        return np.zeros(len(weight))

    monkeypatch.setattr("cvpeft.data.split._deal", deal)
    for count in (10, 1_000, 10_000, 300_000):
        _dealt(np.ones((count, 3)), np.array([0.8, 0.2]), 0)
    assert [tried.count(count) for count in (10, 1_000, 10_000, 300_000)] == [200, 200, 20, 1]


def test_one_deal_of_many_groups_is_near_to_the_shares() -> None:
    contents, shares = np.random.default_rng(0).integers(0, 4, (10_000, 4)).astype(float), np.array([0.8, 0.2])
    dealt = _deal(contents / contents.sum(0), shares, np.random.default_rng(0))
    assert np.abs(contents[dealt == 0].sum(0) / contents.sum(0) - 0.8).max() < 0.001


def test_a_deal_is_the_same_for_ever() -> None:
    """A golden: a split that is made again holds what it held."""
    contents = np.random.default_rng(0).integers(0, 4, (12, 4)).astype(float)
    assert _dealt(contents, np.array([0.5, 0.3, 0.2]), 0).tolist() == GOLDEN


GOLDEN = [0, 1, 0, 0, 2, 2, 0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("part", "entry", "told"),
    [
        ("annotations", {"id": 1, "category_id": 1}, "image_id and category_id"),
        ("annotations", {"id": 1, "image_id": [1], "category_id": 1}, "image_id and category_id"),
        ("images", {"id": 1, "section": "S0"}, "id and file_name"),
        ("images", {"id": 1, "file_name": "", "section": "S0"}, "id and file_name"),
        ("images", 7, "the entry is 7, not one with id and file_name"),
        ("categories", {"name": "pothole"}, "id and name"),
        ("categories", "pothole", 'the entry is "pothole", not one with id and name'),
    ],
)
def test_a_malformed_json_is_told_in_one_sentence(tmp_path: Path, part: str, entry: object, told: str) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    content[part][1] = entry
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"^E-COCO .*: {part}\[1\] - .*{told}") as fault:
        split_json(file, HALVES, by="section")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("image_id", "7", r'E-IMGID .*2 annotations name none of the images, first annotations\[3\]: image_id is "7",'),
        ("image_id", 700, r"first annotations\[3\]: image_id is 700, and the ids there are like 1, 2, 3\."),
        ("category_id", "1", r"E-CAT .*2 annotations name none of the categories, .*are like 1, 2\."),
        ("category_id", 7, r"first annotations\[3\]: category_id is 7,"),
    ],
)
def test_boxes_of_no_image_or_category_are_not_dropped(tmp_path: Path, key: str, value: object, told: str) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    for number in (3, 9):
        content["annotations"][number][key] = value
    file.write_text(json.dumps(content))
    for split in (lambda: split_json(file, HALVES), lambda: leave_out(file, "section", "S0")):
        with pytest.raises(DataError, match=told):
            split()
    assert [f.name for f in tmp_path.iterdir()] == ["train.json"]


def test_boxes_of_two_images_with_one_id_are_not_given_to_both(tmp_path: Path) -> None:
    """Two exports joined by hand: each part would have ids of its own again, and load with the boxes of the other."""
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    one, other = content["images"][0], content["images"][5]
    for box in content["annotations"]:
        box["image_id"] = one["id"] if box["image_id"] == other["id"] else box["image_id"]
    other["id"] = one["id"]
    file.write_text(json.dumps(content))
    for split in (lambda: split_json(file, HALVES), lambda: leave_out(file, "section", "S0")):
        with pytest.raises(DataError, match=r"E-IMGID .*image id 1 is used by s0/1\.jpg and s1/6\.jpg\."):
            split()
    assert [f.name for f in tmp_path.iterdir()] == ["train.json"]


def test_ids_that_are_texts_throughout_are_split_as_they_are(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["id"] = str(image["id"])
    for box in content["annotations"]:
        box["image_id"] = str(box["image_id"])
    file.write_text(json.dumps(content))
    assert sum(sum(part.boxes.values()) for part in split_json(file, HALVES)) == len(content["annotations"])


def test_several_fields_are_joined(tmp_path: Path) -> None:
    parts = split_json(alike(tmp_path), HALVES, by=["section", "camera"], allow_leaks=True)
    assert [part.groups for part in parts] == [1, 1]
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="1 groups leave nothing"):
        split_json(alike(tmp_path / "a"), HALVES, by=["section", "near-duplicates"])
