"""What the table makes of figures that are odd."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from cvpeft.config.load import load
from cvpeft.peft.inject import signatures
from cvpeft.study.outcome import Outcome
from cvpeft.study.table import write_tables
from tests.study.sets import config


def outcome(mode: str, samples: list[float]) -> Outcome:
    trained = (5, 0, 7, 9) if mode == "adapters" else (0, 5, 7, 9)
    return Outcome(mode, "", 0, *trained, 1.0, 0.5, 0.6, 10.0, 1.0, 100.0, 1, "", np.array([samples, samples]).T)


def test_a_draw_without_a_box_says_nothing(tmp_path: Path) -> None:
    """Of few photos with boxes a draw may hold none: its AP is no number, and no reason to have no interval."""
    settings = load(config(tmp_path), (), methods=signatures())
    found = [outcome("adapters", [0.2, np.nan, 0.4, 0.6]), outcome("full", [0.1, np.nan, 0.5, 0.7])]
    write_tables(tmp_path, found, settings, "val", command="cvpeft compare", planned=2)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(round(float(row["AP_low"]), 9), round(float(row["AP_high"]), 9)) for row in rows] == [
        (0.21, 0.59),
        (0.12, 0.69),
    ]
    assert "better than full fine-tuning in 33% of the draws" in (tmp_path / "table.md").read_text()
