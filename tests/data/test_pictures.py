"""A contact sheet shows boxes where they are, and takes no file's place; stats count what there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvpeft.cli import main
from cvpeft.data.coco import load_coco
from cvpeft.data.pictures import GAP, labelled
from cvpeft.runtime.draw import colour

from .sets import coco, write


def test_boxes_lie_where_the_json_says(tmp_path: Path) -> None:
    data = load_coco([write(tmp_path, coco(1))])
    picture = np.asarray(labelled(data.images[0], data.classes, 50))  # half the size
    assert picture.shape == (30, 50, 3)
    near = np.abs(picture[10, [9, 24]].astype(int) - (colour(1), colour(2)))  # lower sides of (5 and 35, 10, 20, 10)
    assert near.max() <= 40  # letters are blended over the line; colours of classes differ by more


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
