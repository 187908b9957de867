"""Boxes on pictures: what is drawn, where, and that it can be seen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFont

from cvpeft.runtime.draw import colour, draw

H, W = 120, 160


def ground(value: int | tuple[int, int, int]) -> np.ndarray:
    return np.full((H, W, 3), value, np.uint8)


def one(image: np.ndarray, box=(40, 50, 100, 90), label=1, name="broke", score=0.9) -> np.ndarray:
    return np.asarray(draw(image, np.array([box], np.float32), [label], [name], [score]))


def test_draws_into_a_copy_of_the_same_size():
    image = ground(128)
    picture = draw(image, np.zeros((0, 4)), [], [], [])
    assert isinstance(picture, Image.Image)
    assert picture.size == (W, H)
    assert np.array_equal(np.asarray(picture), image)
    assert not np.array_equal(one(image), image)
    assert (image == 128).all()


def test_the_frame_has_the_colour_of_the_class_and_leaves_the_inside_alone():
    picture = one(ground(128), label=2)
    for y, x in ((70, 40), (70, 100), (90, 70)):
        assert tuple(picture[y, x]) == colour(2)
    assert (picture[55:85, 50:90] == 128).all()


@pytest.mark.parametrize("value", [0, 255, colour(1), colour(2), 128])
def test_a_frame_is_seen_on_any_ground(value):
    change = np.abs(one(ground(value)).astype(int) - ground(value)).sum(axis=2)
    left_side = change[70, 36:44]
    assert left_side.max() > 200


@pytest.mark.parametrize("box", [(-5, -5, 30, 20), (150, 110, 175, 130), (0, 0, W, H), (20, 2, 150, 60), (5, 5, 5, 5)])
def test_boxes_at_and_over_the_edge_are_drawn(box):
    assert not np.array_equal(one(ground(90), box=box, name="a rather long class name"), ground(90))


def test_colours_are_steady_and_apart():
    colours = [np.array(colour(label)) for label in range(1, 9)]
    assert colour(1) == colour(1)
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(colours, 2)) > 60


def test_the_best_score_lies_on_top():
    box = (40, 50, 100, 90)
    boxes = np.array([box, box], np.float32)
    picture = np.asarray(draw(ground(128), boxes, [1, 2], ["a", "b"], [0.9, 0.3]))
    assert tuple(picture[70, 40]) == colour(1)
    picture = np.asarray(draw(ground(128), boxes, [1, 2], ["a", "b"], [0.3, 0.9]))
    assert tuple(picture[70, 40]) == colour(2)


def test_a_name_without_a_font_is_written_as_its_number(monkeypatch):
    monkeypatch.setattr("cvpeft.runtime.draw._wide", lambda letters: None)
    assert np.array_equal(one(ground(128), name="井盖破损", label=3), one(ground(128), name="class 3", label=3))
    monkeypatch.setattr("cvpeft.runtime.draw._wide", ImageFont.load_default)
    assert not np.array_equal(one(ground(128), name="井盖破损", label=3), one(ground(128), name="class 3", label=3))
