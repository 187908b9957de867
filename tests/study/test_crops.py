"""Crops: cut at the boxes, told apart by a backbone, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvpeft.backbone.build import Backbone, build_backbone
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.study.crops import (
    SIDE,
    STORED,
    Crops,
    CropSettings,
    _cut,
    _mirrored,
    add_formulas,
    cut_crops,
    train_on_crops,
)
from tests.helpers import COLOURS, ellipses


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    return load_coco([ellipses(tmp_path_factory.mktemp("crops"), 40, negatives=4)])


@pytest.fixture(scope="module")
def crops(data: CocoData) -> Crops:
    return cut_crops(data)


def body() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("convnext_atto", "none", (SIDE, SIDE))


def test_every_box_is_in_the_middle_of_its_crop(data: CocoData, crops: Crops) -> None:
    assert crops.pixels.shape[1:] == (3, STORED, STORED)
    assert crops.pixels.dtype == torch.uint8
    assert (crops.labels > 0).sum() == sum(len(image.boxes) for image in data.images)
    middle = crops.pixels[:, :, STORED // 2, STORED // 2].float()  # (N, 3)
    for label, colour in enumerate(COLOURS, 1):
        assert torch.allclose(middle[crops.labels == label], torch.tensor(colour).float(), atol=2)
    assert (middle[crops.labels == 0].std(1) < 20).all()  # grey ground
    assert (crops.labels == 0).sum() > 10


def test_formulas_are_classes_of_their_own(crops: Crops) -> None:
    more = add_formulas(crops, 2)
    added = len(more.labels) - len(crops.labels)
    assert added == 200
    assert torch.equal(more.pixels[:-added], crops.pixels)
    assert more.labels[-added:].unique().tolist() == [crops.labels.max() + 1, crops.labels.max() + 2]
    assert more.held_out[-added:].sum() == 10


def test_whole_images_are_held_out(crops: Crops) -> None:
    assert 0 < crops.held_out.sum() < len(crops.labels) / 4


def test_ground_is_drawn_from_the_seed_and_the_image(data: CocoData, crops: Crops) -> None:
    assert torch.equal(cut_crops(data).pixels, crops.pixels)
    assert not torch.equal(cut_crops(data, seed=1).pixels[:50], crops.pixels[:50])


def test_an_image_is_mirrored_beyond_its_borders() -> None:
    assert _mirrored(np.array([-3, 7]), 5).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2]
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    found = _cut(np.ascontiguousarray(ramp), 0.0, 50.0, 128.0)[64, :, 0].astype(int)
    assert np.abs(found - np.abs(np.arange(128) - 64)).max() <= 1


@pytest.mark.parametrize("place", [(0.0, 0.0, 500.0), (40.0, 99.0, 3.0), (-10.0, 120.0, 90.0)])
def test_a_square_of_any_size_and_place_gives_a_crop(place: tuple[float, float, float]) -> None:
    assert _cut(np.zeros((100, 60, 3), np.uint8), *place).shape == (STORED, STORED, 3)


def test_a_backbone_learns_to_tell_crops_apart(crops: Crops) -> None:
    trained = body()
    before = {key: t.clone() for key, t in trained.state_dict().items()}
    accuracy = train_on_crops(trained, crops, CropSettings(epochs=12, batch=16, lr=2e-3))
    assert accuracy >= 0.8
    assert any(not torch.equal(t, before[key]) for key, t in trained.state_dict().items())


def test_the_same_seed_gives_the_same_backbone(crops: Crops) -> None:
    few = Crops(crops.pixels[:32], crops.labels[:32], crops.held_out[:32])
    one, other = body(), body()
    for net in (one, other):
        train_on_crops(net, few, CropSettings(epochs=1, batch=16))
    assert all(torch.equal(t, other.state_dict()[key]) for key, t in one.state_dict().items())
