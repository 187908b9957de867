"""The commands of datasets/README.md, as they stand there, on small folders of the shape of the public sets."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cvpeft.cli import main
from cvpeft.config.load import load
from cvpeft.config.shipped import shipped_configs
from cvpeft.data.coco import load_coco
from cvpeft.data.splits import open_splits
from cvpeft.peft.inject import signatures
from tests.data.sources import FIVE, coco, content, photo, put, state, xml, yolo

README = Path(__file__).parents[2] / "datasets/README.md"
COPIES, PHOTOS = 3, 40


def commands(name: str) -> list[list[str]]:
    """The import and the split that the README has for a set."""
    lines = re.findall(
        rf"^    cvpeft (data (?:import|split) .*/{name}[ /].*)$", README.read_text("utf-8"), re.MULTILINE
    )
    assert len(lines) == 2, name
    return [shlex.split(line) for line in lines]


def rf(number: int, copy: int) -> str:
    return f"IMG_{number:03d}_jpg.rf.{number * 100 + copy:032x}.jpg"


def five_yolo(root: Path) -> None:
    """Roboflow's copies of a photo lie in all three of its splits, as where an augmented set was uploaded once more."""
    folders = ("train", "valid", "test")
    photos: dict[str, str | None] = {
        f"{folders[copy]}/images/{rf(i, copy)}": "" if i % 8 == 0 else f"{i % 5} 0.5 0.5 0.3 0.4\n"
        for i in range(PHOTOS)
        for copy in range(COPIES)
    }
    yolo(root, photos)
    put(root / "train/labels/gone.txt", "0 0.5 0.5 0.3 0.4\n")
    put(root / f"train/labels/{Path(rf(3, 0)).stem}.txt", "7 0.5 0.5 0.3 0.4\n")


def five_voc(root: Path) -> None:
    for i in range(PHOTOS * COPIES):
        photo(root / f"JPEGImages/well{i:04d}.jpg")
        objects = [] if i % 8 == 0 else [(FIVE[i % 5], 10, 10, 40, 40)]
        put(root / f"Annotations/well{i:04d}.xml", xml(objects, f"well{i:04d}", (0, 0) if i % 2 else (60, 100)))
        put(root / f"labels/well{i:04d}.txt", "0 0.25 0.4 0.3 0.5\n")
    put(root / "Annotations/gone.xml", xml([("good", 1, 1, 9, 9)], "gone"))
    put(root / "labels/classes.txt", "\n".join(FIVE))


def four_classes(root: Path) -> None:
    """Roboflow's COCO: ids from 0 in each split, and its dummy category 0."""
    names = {0: "Broken-Lose-Uncovered-Good", 1: "Broken", 2: "Good", 3: "Lose", 4: "Uncovered"}
    for copy, folder in enumerate(("train", "valid", "test")):
        files = {rf(i, copy): [] if i % 8 == 0 else [(i % 4 + 1, (10, 10, 30, 30))] for i in range(PHOTOS)}
        for name in files:
            photo(root / folder / name)
        data = coco(files, names, start=0)
        for category in data["categories"][1:]:
            category["supercategory"] = names[0]
        put(root / folder / "_annotations.coco.json", json.dumps(data))


@pytest.mark.parametrize("make", [five_yolo, five_voc, four_classes])
def test_one_command_imports_a_set_and_one_splits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, out = tmp_path / "downloads" / make.__name__, tmp_path / "datasets" / make.__name__
    make(source)
    before = state(source)
    for command in commands(make.__name__):
        assert main(command) == 0
    assert state(source) == before

    parts = [out / f"data_{name}.json" for name in ("train", "val", "test")]
    photos = [
        {re.sub(r"\.rf\..*", "", Path(image["file_name"]).name) for image in content(part)["images"]} for part in parts
    ]
    assert sum(map(len, photos)) == len(set.union(*photos)), "copies of one photo are in two parts"
    images = [len(content(part)["images"]) for part in parts]
    assert sum(images) == PHOTOS * COPIES - (make is five_yolo)  # one photo has a label that means nothing
    assert images[0] >= 0.6 * sum(images)
    assert min(images) >= 0.1 * sum(images)

    config = load(shipped_configs()["manhole_five_classes.yaml"], [f"data.root={out}"], methods=signatures())
    splits = open_splits(config.data)
    assert splits.train.classes == FIVE
    assert splits.val is not None
    assert {image.domain for image in splits.train.images} == {make.__name__}
    assert load_coco(parts, classes=FIVE).classes == FIVE
