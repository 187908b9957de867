"""The model card says what is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvpeft.train.card import model_card
from tests.helpers import settings

META = {
    "base": {"name": "convnext_atto", "weights": "none", "sha256": "0" * 64},
    "methods": [],
    "mode": "frozen",
    "classes": ["good"],
    "sites": [],
    "preprocessing": {"size": [64, 96]},
    "data": "1" * 64,
    "cvpeft": "1",
    "val": {"AP": 0.25, "AP50": 0.5, "epoch": 3},
}


@pytest.mark.parametrize(
    ("every", "told"), [(1, "which chose the epoch, 3"), (3, "scored once, after the last epoch"), (4, "scored once")]
)
def test_a_val_that_was_scored_once_is_not_said_to_have_chosen(tmp_path: Path, every: int, told: str) -> None:
    (tmp_path / "val.json").touch()
    card = model_card(META, settings(tmp_path, train={"epochs": 3, "eval_every": every}), 3)
    assert f"On val.json ({told}" in card
    assert "AP 0.250, AP50 0.500." in card
