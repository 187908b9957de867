"""A contact sheet shows boxes where they are, and takes no file's place; stats count what there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvpeft.cli import main
from cvpeft.data.coco import load_coco
from cvpeft.data.pictures import GAP, labelled, write_sheet
from cvpeft.errors import DataError
from cvpeft.runtime.draw import colour

from .sets import coco, write


def test_boxes_lie_where_the_json_says(tmp_path: Path) -> None:
    Image.new("RGB", (400, 240)).save(tmp_path / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 400, "height": 240}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 100, 200, 80]}],
        "categories": [{"id": 1, "name": "good"}],
    }
    (tmp_path / "berlin.json").write_text(json.dumps(content))
    data = load_coco([tmp_path / "berlin.json"])
    picture = np.asarray(labelled(data.images[0], data.classes, 200))  # half the size: x 50 to 150, y 50 to 90
    assert picture.shape == (120, 200, 3)
    sides = picture[[70, 70, 90], [50, 150, 100]]  # left, right, lower; the name lies over the upper one
    assert sides.tolist() == [list(colour(1))] * 3
    assert not picture[70, 60:140].any()


def test_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, coco(5))
    (tmp_path / "images/2.png").write_bytes(b"broken")
    out = tmp_path / "sheet.jpg"
    command = ["data", "show", str(file), "--out", str(out), "--columns", "2"]
    assert main(command) == 0
    assert "5 of 5 images" in capsys.readouterr().out
    before = out.read_bytes()
    assert Image.open(out).width == 2 * (320 + GAP) + GAP
    assert main(command) == 2
    assert "the file is there already" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("images", "columns", "fix"),
    [(800, 4, "raise --columns to 5 or more"), (800, 300, "lower --columns"), (40_000, 4, "lower --images")],
)
def test_a_sheet_longer_than_a_jpeg_is_refused(tmp_path: Path, images: int, columns: int, fix: str) -> None:
    data = load_coco([write(tmp_path, coco(1))])
    many = replace(data, images=data.images * images)
    with pytest.raises(DataError, match=f"JPEG's sides end at 65,500 px.*{fix}"):
        write_sheet(tmp_path / "sheet.jpg", many, images=images, columns=columns)


def test_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco(3)
    content["annotations"] = content["annotations"][:3]
    content["annotations"][0]["area"] = 2000
    content["images"][2]["city"] = "paris"
    assert main(["data", "stats", str(write(tmp_path, content))]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["good", "1", "0", "1", "0", "1"] in lines
    assert ["all", "3", "2", "1", "0", "2"] in lines
    assert ["berlin", "3", "2", "1", "0", "2", "0"] in lines
    assert ["paris", "0", "0", "0", "0", "1", "1"] in lines


def test_stats_tell_what_they_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco(3)
    content["annotations"][0]["bbox"] = [10, 10, 0, 0]
    assert main(["data", "stats", str(write(tmp_path, content))]) == 0
    assert "\nnote: berlin.json: 1 boxes have no area and are dropped\n" in capsys.readouterr().out
