"""Formula-drawn shapes: seen, the same for the same arguments, and one class unlike another."""

from __future__ import annotations

import numpy as np

from cvpeft.data.render.formula import draw_formula, draw_formulas


def test_the_same_arguments_give_the_same_picture() -> None:
    one, other = draw_formula(3, 1, 64), draw_formula(3, 1, 64)
    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, other)
    assert not np.array_equal(one, draw_formula(3, 2, 64))
    assert not np.array_equal(one, draw_formula(3, 1, 64, seed=1))


def test_classes_follow_one_another() -> None:
    pictures, labels = draw_formulas(3, 2, 48)
    assert pictures.shape == (6, 48, 48, 3)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(pictures[3], draw_formula(1, 1, 48))


def test_a_shape_covers_a_part_of_its_ground() -> None:
    for label in range(8):
        picture = draw_formula(label, 0, 96).astype(int)
        commonest = np.unique((picture // 4).reshape(-1, 3), axis=0, return_counts=True)[1].max()
        assert 20 < commonest < 0.7 * 96 * 96, label
