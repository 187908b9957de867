"""Crops: cut at the boxes, told apart by a backbone, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cvpeft.backbone.build import Backbone, build_backbone
from cvpeft.backbone.pyramid import build_pyramid
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.render import PARTS, render_dataset
from cvpeft.errors import DataError
from cvpeft.study.crops import (
    SIDE,
    STORED,
    UNKNOWN,
    Crops,
    CropSettings,
    _cut,
    _mirrored,
    _parts_loss,
    _sampled,
    _shown,
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


NECK = nn.Identity()  # stays out of it where no parts are known


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


@pytest.mark.parametrize(("optimizer", "epochs"), [("adamw", 12), ("muon", 6)])
def test_a_backbone_learns_to_tell_crops_apart(crops: Crops, optimizer: str, epochs: int) -> None:
    trained = body()
    before = {key: t.clone() for key, t in trained.state_dict().items()}
    accuracy = train_on_crops(trained, NECK, crops, CropSettings(epochs=epochs, batch=16, lr=2e-3, optimizer=optimizer))
    assert accuracy >= 0.8
    assert any(not torch.equal(t, before[key]) for key, t in trained.state_dict().items())


def test_the_same_seed_gives_the_same_backbone(crops: Crops) -> None:
    few = Crops(crops.pixels[:32], crops.labels[:32], crops.held_out[:32])
    one, other = body(), body()
    for net in (one, other):
        train_on_crops(net, NECK, few, CropSettings(epochs=1, batch=16))
    assert all(torch.equal(t, other.state_dict()[key]) for key, t in one.state_dict().items())


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    return load_coco([render_dataset(tmp_path_factory.mktemp("yard"), "yard", 6, 0, (240, 320), workers=1, parts=True)])


def test_parts_are_cut_with_their_pixels(yard: CocoData) -> None:
    crops = cut_crops(yard, parts=True)
    assert crops.parts is not None
    assert crops.parts.shape == (len(crops.labels), STORED, STORED)
    middle = crops.parts[:, STORED // 4 : -STORED // 4, STORED // 4 : -STORED // 4].flatten(1)
    assert ((middle > 0).float().mean(1)[crops.labels > 0] > 0.4).all()
    assert ((middle > 0).float().mean(1)[crops.labels == 0] < 0.1).all()
    plain = cut_crops(yard)
    assert plain.parts is None
    assert torch.equal(plain.pixels, crops.pixels)
    added = add_formulas(crops, 1)
    assert added.parts is not None
    assert (added.parts[len(crops.labels) :] == UNKNOWN).all()


def test_parts_turn_with_their_pixels() -> None:
    half = torch.zeros(1, STORED, STORED, dtype=torch.uint8)
    half[:, :, : STORED // 2] = 2
    quarter = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]])  # the left half comes to lie above or below
    shown = _shown(half, quarter)[0]
    as_pixels = _sampled(half[:, None].expand(1, 3, STORED, STORED) * 100, quarter, body())[0, 0]
    assert torch.equal(shown[2] > 0.5, as_pixels > as_pixels.mean())
    assert torch.equal(shown.sum(0), torch.ones(SIDE, SIDE))
    assert _shown(torch.full_like(half, UNKNOWN), quarter).sum() == 0


def test_parts_that_are_not_there_are_asked_for_in_one_sentence(data: CocoData) -> None:
    with pytest.raises(DataError, match=r"E-PARTS .*train_1\.png.*data.render.parts=true"):
        cut_crops(data, parts=True)


def test_what_is_unknown_costs_nothing() -> None:
    scores = torch.randn(2, len(PARTS), 4, 4)
    shown = torch.zeros(2, len(PARTS), SIDE, SIDE)
    assert _parts_loss(scores, shown) == 0
    shown[:, 1, : SIDE // 2] = 1  # the upper half of each map
    right = torch.zeros(2, len(PARTS), 4, 4)
    right[:, 1, :2] = 20
    assert _parts_loss(right, shown) < 1e-3 < _parts_loss(scores, shown)


def test_the_pyramid_is_trained_as_far_as_its_finest_levels_reach(yard: CocoData) -> None:
    crops, trunk = cut_crops(yard, parts=True), body()
    torch.manual_seed(0)
    neck = build_pyramid(trunk.channels, 32)
    before = {key: t.clone() for key, t in neck.state_dict().items()}
    train_on_crops(trunk, neck, crops, CropSettings(epochs=1, batch=16))
    same = {key for key, t in neck.state_dict().items() if torch.equal(t, before[key])}
    assert {key.rsplit(".", 2)[0] for key in same} == {"fpn.layer_blocks.2", "fpn.layer_blocks.3"}
