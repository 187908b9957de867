"""COCO, written as another tool's labels and imported again: the boxes, the classes and the images without any."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.convert.importer import import_labels
from tests.data.sets import write
from tests.data.sources import coco, put, xml

SIZE = np.array((100, 60))  # width, height of the pictures that `write` makes


def made_up(folder: Path) -> CocoData:
    """Thirty images, a third of them without a box; the boxes of the others lie between pixels, some on the border."""
    rng = np.random.default_rng(0)
    photos = {}
    for number in range(30):
        ends = np.sort(rng.uniform(0, 1, (3, 2, 2)), axis=1) * SIZE  # (boxes, near and far, x and y)
        ends[0, 1] = SIZE
        boxes = np.concatenate([ends[:, 0], ends[:, 1] - ends[:, 0]], 1)
        sound = boxes[(boxes[:, 2:] > 2).all(1)]
        photos[f"images/{number}.png"] = [(int(rng.integers(1, 4)), box.tolist()) for box in sound if number % 3]
    return load_coco([write(folder, coco(photos, {1: "good", 2: "broke", 3: "lose"}))])


def as_yolo(data: CocoData, root: Path) -> None:
    """Six decimals, as most tools write them."""
    (root / "images").mkdir(parents=True)
    for image in data.images:
        size = np.array([image.width, image.height])
        centres = (image.boxes[:, :2] + image.boxes[:, 2:] / 2) / size
        rows = np.concatenate([image.labels[:, None] - 1, centres, image.boxes[:, 2:] / size], 1)
        text = "".join(f"{int(k)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for k, x, y, w, h in rows)
        put(root / f"labels/{Path(image.file_name).stem}.txt", text)
        shutil.copy(image.path, root / "images")
    put(root / "data.yaml", f"train: images\nnc: {len(data.classes)}\nnames: [{', '.join(data.classes)}]\n")


def as_voc(data: CocoData, root: Path) -> None:
    """Whole pixels."""
    (root / "JPEGImages").mkdir(parents=True)
    for image in data.images:
        whole = corners(image.boxes).round().astype(int).tolist()
        objects = [(data.classes[k - 1], *box) for k, box in zip(image.labels, whole, strict=True)]
        text = xml(objects, Path(image.file_name).name, (image.height, image.width))
        put(root / f"Annotations/{Path(image.file_name).stem}.xml", text)
        shutil.copy(image.path, root / "JPEGImages")


def corners(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) x y w h -> x1 y1 x2 y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def same_labels(before: CocoData, folder: Path, write_as: Callable[[CocoData, Path], None]) -> None:
    write_as(before, folder / "source")
    (part,) = import_labels(folder / "source", folder / "out").parts
    after = load_coco([part.file], classes=before.classes)
    found = {image.path.name: image for image in after.images}
    assert found.keys() == {image.path.name for image in before.images}
    for image in before.images:
        other = found[image.path.name]
        assert other.labels.tolist() == image.labels.tolist()
        assert np.abs(corners(image.boxes) - corners(other.boxes)).max(initial=0) <= 0.5 + 1e-6


@pytest.mark.parametrize("write_as", [as_yolo, as_voc])
def test_boxes_between_pixels_come_back(tmp_path: Path, write_as: Callable[[CocoData, Path], None]) -> None:
    before = made_up(tmp_path / "coco")
    assert sum(not len(image.boxes) for image in before.images) >= 10
    same_labels(before, tmp_path, write_as)


@pytest.mark.parametrize("write_as", [as_yolo, as_voc])
def test_real_photographs_come_back(potholes: Path, tmp_path: Path, write_as: Callable[[CocoData, Path], None]) -> None:
    before = load_coco([potholes / "val.json"])
    assert sum(not len(image.boxes) for image in before.images) == 40
    same_labels(before, tmp_path, write_as)
