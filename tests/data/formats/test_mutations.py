"""Label files with foreign, lost and doubled bytes end in a set that loads or in one DataError, and in nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cvpeft.data.convert.importer import import_labels
from cvpeft.errors import DataError
from tests.data.sources import coco, labels, photo, put, xml, yolo

from .test_labelme import labelme, shape
from .test_via import RECT, via

MUTATIONS = 60
SPICE = (b"0", b"-", b"9", b".", b" ", b"\n", b"null", b"NaN", b"[", b"{", b'"', b"<", b"\xff", b"\0", b"1e999", b"..")


def make_yolo(root: Path) -> list[Path]:
    yolo(
        root,
        {
            "train/images/a.jpg": "0 0.5 0.5 0.2 0.5\n4 0.1 0.25 0.1 0.1\n",
            "valid/images/b.jpg": "1 0.1 0.1 0.9 0.1 0.5 0.9",
        },
    )
    return [root / "data.yaml", root / "train/labels/a.txt", root / "valid/labels/b.txt"]


def make_voc(root: Path) -> list[Path]:
    photo(root / "JPEGImages/a.jpg")
    return [put(root / "Annotations/a.xml", xml([("good", 10, 10, 30, 40, 1), ("broke", 5, 5, 9, 9)], "a.jpg"))]


def make_coco(root: Path) -> list[Path]:
    photo(root / "a.jpg")
    return [
        put(root / "a.json", json.dumps(coco({"a.jpg": [(1, (10, 10, 20, 30)), (2, (1, 1, 5, 5))]}, {1: "x", 2: "y"})))
    ]


def make_labelme(root: Path) -> list[Path]:
    labelme(root, "a", shape("rectangle", [[40, 50], [10, 20]]), shape("polygon", [[1, 2], [9, 2], [5, 22]]))
    return [root / "a.json"]


def make_via(root: Path) -> list[Path]:
    return [
        via(root, ("a.jpg", RECT, {"type": "good"}), ("a.jpg", RECT, {"type": {"x": True}})) / "via_region_data.csv"
    ]


def mutated(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 1, 5, 40)))
        data = data[:start] + rng.choice((*SPICE, b"", data[start:end] * 2)) + data[end:]
    return data


@pytest.mark.parametrize("make", [make_yolo, make_voc, make_coco, make_labelme, make_via])
def test_damaged_labels_load_or_are_told(tmp_path: Path, make: Callable[[Path], list[Path]]) -> None:
    files = make(tmp_path / "set")
    form = make.__name__.removeprefix("make_")
    whole = {file: file.read_bytes() for file in files}
    rng = random.Random(0)
    ends = {"loaded": 0, "told": 0}
    for number in range(MUTATIONS):
        file = rng.choice(files)
        file.write_bytes(mutated(whole[file], rng))
        try:
            made = import_labels(tmp_path / "set", tmp_path / f"out{number}", form=form, skip=number % 2 == 0)
        except DataError:
            ends["told"] += 1
        else:
            ends["loaded"] += 1
            for part in made.parts:
                labels(part.file)
        file.write_bytes(whole[file])
    assert min(ends.values()) > 0, ends
