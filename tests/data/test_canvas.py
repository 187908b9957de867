"""A canvas: training inputs are windows of large images, evaluation sees all of them in tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.loader import TrainLoader, eval_loader, train_loader
from cvpeft.data.transforms import build_augment
from cvpeft.eval.predict import predict
from cvpeft.eval.report import report

from .sets import coco, write

SIZE = (64, 96)
CANVAS = (160, 256)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    """Six black photos; every object is filled with the red of its own."""
    folder = tmp_path_factory.mktemp("canvas")
    rng = np.random.default_rng(0)
    content = coco(6, per_image=4, size=CANVAS)
    pictures = np.zeros((6, *CANVAS, 3), np.uint8)
    for number, row in enumerate(content["annotations"]):
        column, image = number % 4, number // 4
        width, height = (int(n) for n in rng.integers(8, (24, 16)))
        x, y = 64 * column + int(rng.integers(1, 60 - width)), int(rng.integers(159 - height))
        row |= {"bbox": [x, y, width, height], "area": width * height, "category_id": 1}
        pictures[image, y : y + height, x : x + width] = (60 + 40 * column, 255, 0)
    content["annotations"] = content["annotations"][:-4]  # the last photo has objects, but no label
    file = write(folder, content)
    for number, pixels in enumerate(pictures, 1):
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
    return load_coco([file])


def windows(data: CocoData, *, mosaic: float = 0.0, **rest: Any) -> TrainLoader:
    settings = {"batch": 2, "workers": 0, "seed": 3, "epochs": 10} | rest
    return train_loader(data, SIZE, build_augment("flip", CANVAS), mosaic=mosaic, canvas=CANVAS, **settings)


@pytest.mark.parametrize("mosaic", [0.0, 1.0, 0.5])
def test_training_sees_windows_at_the_scale_of_the_canvas(data: CocoData, mosaic: float) -> None:
    seen = empty = 0
    sides = {tuple(box[2:]) for image in data.images for box in image.boxes}
    for _, _, batch in windows(data, mosaic=mosaic):
        assert batch.images.shape[1:] == (3, *SIZE)
        for image, target in zip(batch.images, batch.targets, strict=True):
            empty += not len(target["boxes"])
            for x1, y1, x2, y2 in target["boxes"].int().tolist():
                assert (image[1, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] == 255).all()
                seen += (x2 - x1, y2 - y1) in sides  # whole ones, unscaled
    assert seen > 20
    assert mosaic == 1 or empty > 2  # windows without an object are learnt too


def test_workers_and_restarts_change_nothing(data: CocoData) -> None:
    def contents(loader: TrainLoader) -> list[Any]:
        return [(b.images.numpy().tobytes(), [t["boxes"].tolist() for t in b.targets]) for _, _, b in loader]

    whole = contents(windows(data, mosaic=0.5))
    assert contents(windows(data, mosaic=0.5, workers=2, start=(1, 2))) == whole[5:]


class Finds(nn.Module):
    """A perfect detector: the columns and rows of each red in an input."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return [self._in_one(image) for image in images]

    def _in_one(self, image: Tensor) -> dict[str, Tensor]:
        boxes = []
        for column in range(4):
            rows, columns = torch.nonzero((image[0] == 60 + 40 * column) & (image[1] == 255), as_tuple=True)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        count = len(boxes)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            "labels": torch.ones(count, dtype=torch.int64),
            "scores": torch.full((count,), 0.5),
        }


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (4, 0), (3, 2)])
def test_perfect_tiles_make_perfect_photos(data: CocoData, batch: int, workers: int) -> None:
    labelled = CocoData(data.images[:5], data.classes, ())
    loader = eval_loader(labelled, SIZE, batch=batch, workers=workers, canvas=CANVAS)
    found = predict(Finds(), loader)
    assert len(found) == 20
    assert report(labelled.ground_truth(), found, labelled.classes)["coco"]["AP"] == 1.0


def test_the_boxes_of_a_tile_are_what_it_shows(data: CocoData) -> None:
    for batch in eval_loader(CocoData(data.images[:5], data.classes, ()), SIZE, batch=2, workers=0, canvas=CANVAS):
        for image, target in zip(batch.images, batch.targets, strict=True):
            for x1, y1, x2, y2 in target["boxes"].tolist():
                assert 0 <= x1 < x2 <= SIZE[1]
                assert 0 <= y1 < y2 <= SIZE[0]
                assert (image[1, round(y1) + 1 : round(y2) - 1, round(x1) + 1 : round(x2) - 1] == 255).all()
