"""Augmentations: boxes follow their pixels, the seed decides everything, negatives pass through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cvpeft.data import transforms as room
from cvpeft.data.transforms import ALLOWED, PRESETS, Spec, build_augment
from cvpeft.errors import ConfigError
from cvpeft.runtime.image import letterbox

from .sets import picture

SIZE = (104, 160)
NONE = np.zeros((0, 4)), np.zeros(0, np.int64)
SETTINGS = {
    "RandomSizedBBoxSafeCrop": {"height": 90, "width": 120},
    "AtLeastOneBBoxRandomCrop": {"height": 90, "width": 120},
}


def marked(boxes: Sequence[Sequence[int]], height: int = 200, width: int = 320) -> np.ndarray:
    """A dark image with one bright rectangle at each box."""
    image = np.full((height, width, 3), 20, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 250
    return image


def bright(image: np.ndarray) -> np.ndarray:
    """x1 y1 x2 y2 around what is bright."""
    rows, columns = np.nonzero(image.min(-1) > 190)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def geometry_only(spec: str) -> room.Augment:
    augment = build_augment(spec, SIZE)
    if isinstance(augment, room.Road) and augment.weather is not None:
        augment.weather.transforms.clear()
    return augment


@pytest.mark.parametrize("spec", PRESETS)
def test_boxes_follow_their_pixels(spec: str) -> None:
    box = [120, 70, 180, 120]
    augment, image, seen = geometry_only(spec), marked([box]), set()
    for seed in range(120):
        canvas, boxes, labels, _ = augment(image, np.array([box]), np.array([7]), (200, 320), seed)
        assert canvas.shape == (*SIZE, 3)
        assert canvas.dtype == np.uint8
        assert labels.tolist() == [7]
        assert np.abs(boxes[0] - bright(canvas)).max() <= 1
        seen.add(tuple(boxes[0].round()))
    assert len(seen) == {"none": 1, "flip": 2}.get(spec, len(seen))
    assert spec != "road" or len(seen) > 60


def test_boxes_refer_to_the_full_photograph_where_it_is_decoded_smaller() -> None:
    box = [120, 70, 180, 120]
    for spec in (*PRESETS, ["HorizontalFlip"]):
        augment = geometry_only(spec) if isinstance(spec, str) else build_augment(spec, SIZE)
        canvas, boxes, _, _ = augment(marked([box]), np.array([box]) * 4.0, np.array([1]), (800, 1280), 3)
        assert np.abs(boxes[0] - bright(canvas)).max() <= 1


def test_none_is_the_letterbox_of_deployment() -> None:
    image, box = picture(200, 320), np.array([[10.0, 20, 200, 100]])
    canvas, boxes, _, geometry = build_augment("none", SIZE)(image, box, np.array([1]), (200, 320), 5)
    expected, letter = letterbox(image, SIZE)
    assert geometry == letter
    assert np.array_equal(canvas, expected)
    assert np.allclose(boxes, letter.forward(box))


def test_crops_give_small_objects_more_pixels() -> None:
    box = np.array([[150, 90, 160, 98]])
    augment, plain = geometry_only("road"), build_augment("none", SIZE)
    args = marked(box), box, np.array([1]), (200, 320)
    usual = np.ptp(plain(*args, 0)[1][0, [0, 2]])
    widths = np.array([np.ptp(boxes[0, [0, 2]]) for seed in range(200) for boxes in [augment(*args, seed)[1]]])
    assert 1.6 < widths.max() / usual < 2.1
    assert 0.55 < widths.min() / usual < 0.75
    assert 0.3 < (widths > 1.02 * usual).mean() < 0.55


def test_a_crop_holds_one_box_as_a_whole_and_drops_what_is_cut_away() -> None:
    boxes = np.array([[2, 2, 30, 30], [290, 170, 318, 198]])
    augment, counts = geometry_only("road"), []
    for seed in range(200):
        _, kept, labels, geometry = augment(marked(boxes), boxes, np.array([1, 2]), (200, 320), seed)
        counts.append(len(kept))
        top, left, (height, width) = geometry.top, geometry.left, geometry.inner
        assert len(kept) == len(labels) >= 1
        assert (kept >= (left, top, left, top)).all()
        assert (kept <= (left + width, top + height, left + width, top + height)).all()
    assert 0.2 < np.mean(np.array(counts) == 1) < 0.6


def test_a_box_that_loses_seventy_percent_is_dropped() -> None:
    letter = letterbox(marked([]), (200, 320))[1]
    boxes = np.array([[-69.0, 0, 31, 50], [-71, 0, 29, 50], [10, 10, 10.5, 40]])
    kept, labels = room.keep(boxes, np.array([1, 2, 3]), letter)
    assert labels.tolist() == [1]
    assert kept.tolist() == [[0, 0, 31, 50]]


SPECS: list[Spec] = [*PRESETS, ["HorizontalFlip", {"RandomBrightnessContrast": {"p": 1.0}}]]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_seed_decides_everything(spec: Spec) -> None:
    image, box = picture(200, 320), np.array([[100.0, 60, 200, 120]])
    one, two = build_augment(spec, SIZE), build_augment(spec, SIZE)
    results = []
    for seed in (5, 6, 5, 7):
        results.append(one(image, box, np.array([1]), (200, 320), seed))
        again = two(image, box, np.array([1]), (200, 320), seed)
        assert np.array_equal(results[-1][0], again[0])
        assert np.array_equal(results[-1][1], again[1])
    assert np.array_equal(results[0][0], results[2][0])
    if spec == "road":
        assert not np.array_equal(results[0][0], results[1][0])


def test_transforms_do_not_share_their_luck() -> None:
    """With the library's own reseeding a mirrored image is always the one that is turned upside down too."""
    augment = build_augment(["HorizontalFlip", "VerticalFlip"], (64, 64))
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, :32] = 255
    corners = [tuple(augment(image, *NONE, (64, 64), seed)[0][::63, ::63, 0].ravel() // 255) for seed in range(200)]
    counts = [corners.count(corner) for corner in set(corners)]
    assert len(counts) == 4
    assert min(counts) > 25


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_images_without_boxes(spec: Spec) -> None:
    augment = build_augment(spec, SIZE)
    for seed in range(30):
        canvas, boxes, labels, _ = augment(picture(200, 320), *NONE, (200, 320), seed)
        assert canvas.shape == (*SIZE, 3)
        assert boxes.shape == (0, 4)
        assert labels.shape == (0,)


@pytest.mark.parametrize("shape", [(40, 30), (1, 1), (3, 500), (700, 90), (104, 160)])
@pytest.mark.parametrize("spec", PRESETS)
def test_images_of_any_shape(spec: str, shape: tuple[int, int]) -> None:
    height, width = shape
    augment = build_augment(spec, SIZE)
    for seed in range(15):
        whole = np.array([[0, 0, width, height]])
        canvas, boxes, _, _ = augment(picture(height, width), whole, np.array([1]), shape, seed)
        assert canvas.shape == (*SIZE, 3)
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()


@pytest.mark.parametrize("name", ALLOWED)
def test_every_transform_of_the_list_works_with_boxes(name: str) -> None:
    settings = SETTINGS.get(name, {}) | {"p": 1.0}
    augment = build_augment([{name: settings}], SIZE)
    box = np.array([[100.0, 60, 200, 120]])
    for seed in range(3):
        canvas, boxes, labels, _ = augment(picture(200, 320), box, np.array([2]), (200, 320), seed)
        assert canvas.shape == (*SIZE, 3)
        assert canvas.dtype == np.uint8
        assert labels.tolist() == [2] * len(boxes)
        assert labels.dtype == np.int64


def test_a_list_runs_in_its_order_on_the_source_pixels() -> None:
    augment = build_augment([{"HorizontalFlip": {"p": 1.0}}], SIZE)
    box = [20, 40, 100, 90]
    canvas, boxes, _, _ = augment(marked([box]), np.array([box]), np.array([1]), (200, 320), 0)
    assert np.abs(boxes[0] - bright(canvas)).max() <= 1
    assert np.allclose(boxes[0], [110, 22, 150, 47])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("rood", "data.augment is 'rood'; it may be none, flip, road or a list"),
        (
            ["HorizontalFlp"],
            "names 'HorizontalFlp', which is not among the transforms (did you mean 'HorizontalFlip'?)",
        ),
        (["Compose"], "names 'Compose', which is not among the transforms"),
        ([{"Rotate": {"limt": 3}}], "Rotate in data.augment does not take its settings (Argument(s) 'limt'"),
        ([{"Rotate": {"p": 3}}], "Rotate in data.augment does not take its settings"),
        ([{"ImageCompression": {"quality_range": [0, 900]}}], "ImageCompression in data.augment does not take"),
        ([{"RandomSizedBBoxSafeCrop": {}}], "RandomSizedBBoxSafeCrop in data.augment does not take"),
        ([{"Rotate": {}, "Blur": {}}], "an entry of data.augment names one transform, not Rotate, Blur"),
        ([{}], "names one transform, not none"),
    ],
)
def test_a_wrong_setting_is_told_in_one_sentence(spec: Spec, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_augment(spec, SIZE)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_transform_that_does_not_suit_the_image_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = build_augment(["Blur"], SIZE)
    assert isinstance(augment, room.Listed)

    def refuse(**_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(
        augment, "compose", type("Broken", (), {"set_random_state": lambda *_: None, "__call__": refuse})()
    )
    with pytest.raises(ConfigError, match="fails on an image of 320x200"):
        augment(picture(200, 320), *NONE, (200, 320), 0)


def test_nothing_asks_the_package_index() -> None:
    import os

    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_a_box_that_begins_at_minus_zero_can_be_cropped_around() -> None:
    """Clipped boxes begin at -0.0; a window as long as the image then leaves the range 0.0 to -0.0 to choose from."""
    image, boxes = np.zeros((48, 64, 3), np.uint8), np.array([[-0.0, -0.0, 64.0, 48.0]])
    road = build_augment("road", (32, 32))
    for seed in range(200):
        _, found, _, _ = road(image, boxes, np.array([1]), (48, 64), seed)
        assert found.shape in ((0, 4), (1, 4))  # and no error on the way
