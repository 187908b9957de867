"""What the table makes of figures that are odd."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from cvpeft.config.load import load
from cvpeft.eval import plots
from cvpeft.peft.inject import signatures
from cvpeft.study.outcome import Outcome
from cvpeft.study.table import write_tables
from tests.study.sets import config


def outcome(mode: str, samples: list[float], ap: float = 0.5, seed: int = 0) -> Outcome:
    trained = {"full": (0, 5, 7, 9), "frozen": (0, 0, 7, 9)}.get(mode, (5, 0, 7, 9))
    return Outcome(mode, "", seed, *trained, 1.0, ap, 0.6, 10.0, 1.0, 100.0, 1, "", np.array([samples, samples]).T)


def advice(folder: Path, aps: dict[str, tuple[float, ...]]) -> str:
    """The sentence below a table of these rows, with an AP for each seed; images move all of them alike."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.025, 200)
    found = [
        outcome(mode, (ap + image + rng.normal(0, 0.005, 200)).tolist(), ap, seed)
        for mode, values in aps.items()
        for seed, ap in enumerate(values)
    ]
    settings = load(config(folder), (), methods=signatures())
    write_tables(folder, found, settings, "val", command="cvpeft compare", planned=len(found))
    return (folder / "table.md").read_text().strip().splitlines()[-1]


def test_advice_is_what_the_figures_support(tmp_path: Path) -> None:
    apart = advice(tmp_path, {"adapters": (0.5, 0.51, 0.49), "full": (0.41, 0.4, 0.42), "frozen": (0.2, 0.21, 0.19)})
    assert apart == (
        "On these images take adapters: AP 0.500 ± 0.010 from 21 parameters; better than full fine-tuning in 100% of "
        "the draws; better than a frozen backbone in 100% of the draws."
    )
    worse = advice(tmp_path, {"adapters": (0.3, 0.31, 0.32), "full": (0.6, 0.61, 0.62), "frozen": (0.2, 0.21, 0.19)})
    assert worse.startswith("On these images full fine-tuning is better than every row with an adapter (AP 0.610 ± ")
    assert "in 0% of the draws" in worse
    nothing = advice(tmp_path, {"adapters": (0.2, 0.21, 0.19), "frozen": (0.2, 0.19, 0.21)})
    assert nothing.startswith("These images do not tell whether any row is better than a frozen backbone (AP 0.200 ± ")
    few = advice(tmp_path, {"adapters": (0.5,), "full": (0.4,)})
    assert few.endswith("Fewer than three seeds: another seed may turn this round.")


def test_seeds_that_differ_make_a_difference_unsure(tmp_path: Path) -> None:
    """The means are 0.44 and 0.40; with other seeds it may be the other way round."""
    told = advice(tmp_path, {"adapters": (0.50, 0.36, 0.46), "full": (0.38, 0.45, 0.37)})
    share = int(told.partition("full fine-tuning in ")[2].partition("%")[0])
    assert 70 < share < 95


def test_the_interval_holds_the_truth_where_draws_lie_above_it(tmp_path: Path) -> None:
    settings = load(config(tmp_path), (), methods=signatures())
    found = [outcome("full", [0.50, 0.52, 0.54, 0.56], 0.5)]
    write_tables(tmp_path, found, settings, "val", command="cvpeft compare", planned=1)
    (row,) = csv.DictReader((tmp_path / "table.csv").open())
    assert float(row["AP_low"]) < 0.45
    assert float(row["AP_high"]) < 0.5


def test_a_draw_without_a_box_says_nothing(tmp_path: Path) -> None:
    """Of few photos with boxes a draw may hold none: its AP is no number, and no reason to have no interval."""
    settings = load(config(tmp_path), (), methods=signatures())
    found = [outcome("adapters", [0.2, np.nan, 0.4, 0.6]), outcome("full", [0.1, np.nan, 0.5, 0.7])]
    write_tables(tmp_path, found, settings, "val", command="cvpeft compare", planned=2)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(round(float(row["AP_low"]), 9), round(float(row["AP_high"]), 9)) for row in rows] == [
        (0.41, 0.79),  # mirrored about 0.5
        (0.31, 0.88),
    ]
    assert "better than full fine-tuning in 33% of the draws" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("span", [(1.26e6, 1.6e6), (2e5, 4.5e6), (3e4, 9e7)])
def test_what_stands_at_the_axis_of_the_picture_can_be_read(
    monkeypatch: pytest.MonkeyPatch, span: tuple[float, float]
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or b"")
    names = [f"method {n}" for n in range(10)]
    plots.trade_off([(name, round(span[n % 2]), 0.05, 0.01) for n, name in enumerate(names)], "AP")
    plots.trade_off([(name, round(span[n % 2]), 0.05, 0.01) for n, name in enumerate(names[:2])], "AP")
    many, few = drawn
    assert [text.get_text() for text in many.legends[0].get_texts()] == names
    assert not few.legends
    for figure in drawn:
        figure.canvas.draw()
        low, high = figure.axes[0].get_xlim()
        told = [label for label in figure.axes[0].get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in told if label.get_text()]
        assert len(boxes) >= 2
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
