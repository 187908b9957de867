"""Mosaics: quarters of four inputs, their boxes where the objects are, the same whatever the workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.loader import TrainLoader, train_loader
from cvpeft.data.mosaic import mosaic
from cvpeft.data.transforms import build_augment
from cvpeft.types import Target

from .sets import coco, write

SIZE = (64, 96)


def scene(boxes: list[list[int]], colour: int) -> tuple[Tensor, Target]:
    """A dark image in which every box is filled with one colour."""
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = colour
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return image, {"boxes": corners, "labels": torch.full((len(boxes),), colour), "image_id": colour}


def test_objects_lie_in_their_boxes_and_nowhere_else() -> None:
    places: list[list[list[int]]] = [[[70, 40, 80, 50]], [], [[0, 0, 10, 6], [90, 60, 96, 64]], [[30, 2, 40, 8]]]
    inputs = [scene(boxes, colour) for colour, boxes in enumerate(places, 1)]
    for seed in range(50):
        image, target = mosaic(inputs, SIZE, np.random.default_rng(seed))
        assert image.shape == (3, *SIZE)
        assert target["image_id"] == 1
        covered = torch.zeros(SIZE, dtype=torch.bool)
        for (x1, y1, x2, y2), label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            assert (image[:, y1:y2, x1:x2] == label).all()
            covered[y1:y2, x1:x2] = True
        assert (image[0][~covered] == 0).all()
        assert set(target["labels"].tolist()) == {1, 3, 4}  # a window lies around a box wherever there is one
        assert target["boxes"].dtype == torch.float32


def test_objects_keep_their_size_and_the_quarters_their_places() -> None:
    inputs = [scene([[20, 20, 28, 26]], colour) for colour in (1, 2, 3, 4)]
    _, target = mosaic(inputs, SIZE, np.random.default_rng(0))
    assert (target["boxes"][:, 2:] - target["boxes"][:, :2]).tolist() == [[8, 6]] * 4
    right, down = target["boxes"][:, 0] >= 48, target["boxes"][:, 1] >= 32
    assert (target["labels"] - 1).tolist() == (right.int() + 2 * down.int()).tolist()


def test_a_box_larger_than_its_quarter_is_clipped_to_it() -> None:
    inputs = [scene([[0, 0, 96, 64]], colour) for colour in (1, 2, 3, 4)]
    _, target = mosaic(inputs, SIZE, np.random.default_rng(0))
    assert len(target["boxes"]) == 0  # a quarter of it is less than what a box must keep
    inputs = [scene([[10, 10, 70, 40]], colour) for colour in (1, 2, 3, 4)]
    _, target = mosaic(inputs, SIZE, np.random.default_rng(0))
    assert target["boxes"][:, 0].tolist() == [0, 48, 0, 48]
    assert (target["boxes"][:, 2:] - target["boxes"][:, :2]).tolist() == [[48, 30]] * 4  # all of the quarter's width


# ---------------------------------------------------------------------------------------------------- in the loader


@pytest.fixture
def data(tmp_path: Path) -> CocoData:
    return load_coco([write(tmp_path, coco(5))])


def batches(data: CocoData, share: float, *, workers: int = 0, start: tuple[int, int] = (0, 0)) -> TrainLoader:
    augment = build_augment("flip", SIZE)
    return train_loader(data, SIZE, augment, batch=2, workers=workers, seed=3, epochs=2, start=start, mosaic=share)


def as_lists(loader: TrainLoader) -> list[tuple[bytes, list[bytes], list[str]]]:
    return [
        (b.images.numpy().tobytes(), [t["boxes"].numpy().tobytes() for t in b.targets], b.names) for _, _, b in loader
    ]


@pytest.mark.parametrize("start", [(0, 0), (0, 2), (1, 1)])
def test_workers_and_restarts_change_nothing(data: CocoData, start: tuple[int, int]) -> None:
    whole = as_lists(batches(data, 0.5))
    assert as_lists(batches(data, 0.5, workers=2, start=start)) == whole[start[0] * 3 + start[1] :]


@pytest.mark.parametrize(("share", "expected"), [(0.0, {1}), (1.0, {4}), (0.5, {1, 4})])
def test_the_share_of_mosaics_and_whose_parts_they_show(data: CocoData, share: float, expected: set[int]) -> None:
    names = [name for _, _, batch in batches(data, share) for name in batch.names]
    assert len(names) == 10  # every epoch still has one input for each image
    assert {len(name.split(" + ")) for name in names} == expected
    assert sorted(name.split(" + ")[0] for name in names[:5]) == [f"images/{i}.png" for i in range(1, 6)]


def test_an_input_that_is_no_mosaic_is_what_it_was_without_them(data: CocoData) -> None:
    plain = {(e, n): x for e, _, b in batches(data, 0.0) for n, x in zip(b.names, b.images, strict=True)}
    mixed = {
        (e, n): x for e, _, b in batches(data, 0.5) for n, x in zip(b.names, b.images, strict=True) if "+" not in n
    }
    assert 0 < len(mixed) < len(plain)
    assert all(torch.equal(x, plain[key]) for key, x in mixed.items())
