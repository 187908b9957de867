"""The pictures tell where boxes lie, class by class, and how large they are beside the anchors."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from cvpeft.data.check.finding import Anchors
from cvpeft.data.check.plots import BRIGHT, DARK, HEAT, heat_maps, size_plot
from tests.data.check.test_check import run
from tests.data.sets import coco, write

SIZE = (60, 100)


def pictures(html: str) -> dict[str, np.ndarray]:
    """Each heat map by its alternative text, True where it is bright."""
    found = re.findall(r'<img class="heat" alt="([^"]+)" src="data:image/png;base64,([^"]+)">', html)
    maps = {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in found}
    assert all(set(map(tuple, m.reshape(-1, 3))) <= {tuple(DARK), tuple(BRIGHT)} for m in maps.values())
    return {alt: (m == BRIGHT).all(2) for alt, m in maps.items()}


def test_each_class_is_bright_where_its_boxes_lie(tmp_path: Path) -> None:
    content = coco(1, per_image=0)
    box = {"image_id": content["images"][0]["id"], "iscrowd": 0}
    places = {"good": (0, 0, 50, 30), "broke": (50, 30, 50, 30)}  # the upper left quarter, the lower right one
    ids = {category["name"]: category["id"] for category in content["categories"]}
    content["annotations"] = [
        {**box, "id": k + 1, "category_id": ids[name], "bbox": list(place), "area": place[2] * place[3]}
        for k, (name, place) in enumerate(places.items())
    ]
    maps = pictures(heat_maps(run({"train": [write(tmp_path, content)]}).case))
    rows, columns = HEAT[0] // 2, HEAT[1] // 2
    upper, lower = np.zeros(HEAT, bool), np.zeros(HEAT, bool)
    upper[:rows, :columns] = lower[rows:, columns:] = True
    assert (maps.pop("heat map of boxes over the image area") == (upper | lower)).all()
    assert (maps.pop("heat map of good") == upper).all()
    assert (maps.pop("heat map of broke") == lower).all()
    assert maps == {}, "a class without boxes has no map"


def test_boxes_are_drawn_at_the_input_beside_its_anchors(tmp_path: Path) -> None:
    splits = {"train": [write(tmp_path, coco(4))]}
    photos = size_plot(run(splits).case)
    assert 'class="anchor"' not in photos
    assert "in pixels of the photos" in photos
    twice = (SIZE[0] * 2, SIZE[1] * 2)
    beside = size_plot(run(splits, anchors=Anchors((16.0, 32.0), (0.5, 1.0, 2.0), twice)).case)
    assert beside.count('class="anchor"') == 6
    assert f"the network's input of {twice[0]} x {twice[1]}; crosses are its anchors" in beside
    before, after = (re.search(r"Median (\d+) x (\d+) px", text) for text in (photos, beside))
    assert before
    assert after
    assert [int(side) for side in after.groups()] == [2 * int(side) for side in before.groups()]
