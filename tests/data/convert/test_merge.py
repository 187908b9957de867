"""Cities in one set: perfect predictions score 1.0, and nothing of one city is taken for a thing of another."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvpeft.cli import main
from cvpeft.data.coco import load_coco
from cvpeft.data.convert.merge import merge_jsons
from cvpeft.errors import DataError
from tests.data.sets import coco, write
from tests.data.sources import content, state


def perfect(file: Path) -> float:
    """AP of the boxes of a json as predictions of themselves, by pycocotools as it is."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        boxes = [{**box, "score": 1 - i / 1e4} for i, box in enumerate(content(file)["annotations"])]
        score = COCOeval(truth, truth.loadRes(boxes), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return float(score.stats[0])


def cities(root: Path, count: int, *, start: int = 0, seed: int = 0) -> list[Path]:
    """Jsons with the same ids and file names, ids from `start`, the categories shuffled."""
    rng = np.random.default_rng(seed)
    files = []
    for city in range(count):
        data = coco(4)
        order = rng.permutation(3)
        numbers = {k + 1: int(order[k]) + start for k in range(3)}
        for category in data["categories"]:
            category["id"] = numbers[category["id"]]
        for image in data["images"]:
            image.update(id=image["id"] - 1 + start, section=f"s{image['id'] % 2}")
        for box in data["annotations"]:
            box.update(id=box["id"] - 1 + start, image_id=box["image_id"] - 1 + start)
            box["category_id"] = numbers[box["category_id"]]
        files.append(write(root / f"city{city}", data, "train.json"))
    return files


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("start", [0, 1])
def test_perfect_predictions_on_merged_cities_score_one(tmp_path: Path, count: int, start: int) -> None:
    files = cities(tmp_path / "in", count, start=start, seed=count)
    before = state(tmp_path / "in")
    part, _ = merge_jsons(files, tmp_path / "out")
    assert part.file == tmp_path / "out/train.json"
    assert (part.images, sum(part.boxes.values())) == (4 * count, 8 * count)
    assert perfect(part.file) == pytest.approx(1.0, abs=1e-12)
    assert state(tmp_path / "in") == before


def test_the_merged_set_is_the_set_of_its_files(tmp_path: Path) -> None:
    files = cities(tmp_path / "in", 3)
    part, _ = merge_jsons(files, tmp_path / "out")
    names = [category["name"] for category in content(part.file)["categories"]]
    one, many = load_coco([part.file]), load_coco(files, classes=names)
    assert one.classes == many.classes
    assert [image.domain for image in one.images] == [image.domain for image in many.images]
    assert {image.domain for image in one.images} == {"city0", "city1", "city2"}
    for merged, source in zip(one.images, many.images, strict=True):
        assert merged.boxes.tolist() == source.boxes.tolist()
        assert merged.labels.tolist() == source.labels.tolist()
        assert merged.path.read_bytes() == source.path.read_bytes()
    assert {image["section"] for image in content(part.file)["images"]} == {"s0", "s1"}


def test_names_of_different_places_are_kept_apart(tmp_path: Path) -> None:
    files = cities(tmp_path / "in", 2)
    for file in files:  # the same domain too
        data = content(file)
        for image in data["images"]:
            image["city"] = "Köln/../Süd"
        file.write_text(json.dumps(data))
    part, _ = merge_jsons(files, tmp_path / "out", copy=True)
    names = [image["file_name"] for image in content(part.file)["images"]]
    assert names[0] == "Köln_.._Süd/images/1.png"
    assert names[4] == "Köln_.._Süd/images/1_2.png"
    assert len(set(names)) == 8
    assert not (tmp_path / "out" / names[0]).samefile(tmp_path / "in/city0/images/1.png")


def test_a_json_above_all_images_names_them_where_they_lie(tmp_path: Path) -> None:
    files = cities(tmp_path, 2)
    before = state(tmp_path)
    part, _ = merge_jsons(files, tmp_path / "both.json")
    assert [image["file_name"] for image in content(part.file)["images"]][::4] == [
        "city0/images/1.png",
        "city1/images/1.png",
    ]
    assert state(tmp_path).keys() - before.keys() == {str(tmp_path / "both.json")}
    with pytest.raises(DataError, match="the file is there already"):
        merge_jsons(files, tmp_path / "both.json")
    with pytest.raises(DataError, match="not all images lie below"):
        merge_jsons(files, tmp_path / "city0/both.json")


def test_a_json_takes_no_copies(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none is copied.*leave out --copy"):
        merge_jsons(cities(tmp_path, 2), tmp_path / "both.json", copy=True)
    assert not (tmp_path / "both.json").exists()


def test_the_folder_that_one_stands_in_is_no_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cities(tmp_path / "in", 2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for here in (Path(), tmp_path / "here"):
        with pytest.raises(DataError, match="this is the folder that you are in"):
            merge_jsons(files, here)
    assert list(Path().iterdir()) == []


def test_classes_are_the_union_by_name(tmp_path: Path) -> None:
    one, other = coco(), coco()
    other["categories"][2]["name"] = "circle"
    dummy = {"id": 0, "name": "covers", "supercategory": "none"}
    other["categories"] = [dummy, *({**c, "supercategory": "covers"} for c in other["categories"])]
    files = [write(tmp_path / "a", one), write(tmp_path / "b", other)]
    part, notes = merge_jsons(files, tmp_path / "out")
    assert part.boxes == {"good": 4, "broke": 4, "lose": 2, "circle": 2}
    assert "berlin.json: category 0 'covers' only stands above the others and is left out" in notes


def test_faults_of_all_files_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    bad = coco()
    bad["annotations"][0]["bbox"] = [0, 0, -5, 5]
    files = [write(tmp_path / "a", bad), write(tmp_path / "b", bad)]
    with pytest.raises(DataError, match="2 faults in the data set"):
        merge_jsons(files, tmp_path / "out")
    with pytest.raises(DataError, match="not two different json files"):
        merge_jsons([files[0], files[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_category_that_is_a_list_is_a_fault(tmp_path: Path) -> None:
    files = cities(tmp_path, 2)
    broken = content(files[1])
    broken["annotations"][0]["category_id"] = [1]
    files[1].write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"category_id is \[1\], but the categories are"):
        merge_jsons(files, tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(file) for file in cities(tmp_path, 2)]
    assert main(["data", "merge", *files, "--out", str(tmp_path / "all")]) == 0
    assert "train.json: 8 images, 0 without boxes" in capsys.readouterr().out
    assert main(["data", "merge", files[0], "--out", str(tmp_path / "one")]) == 2
