"""Every city's adapter on every city's photos: what a new city costs the old ones, and what adapters spare them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cvpeft.backbone.weights import read_weights
from cvpeft.data.coco import load_coco
from cvpeft.detector.device import pick_device
from cvpeft.detector.saved import LoadedRun, load_run, name_of
from cvpeft.errors import ConfigError
from cvpeft.eval.evaluate import evaluate
from cvpeft.files import write_whole
from cvpeft.peft.state import disabled

__all__ = ["Score", "cross"]

HEAD = ("head", "anchor_sizes", "aspect_ratios")  # settings without which a head's numbers mean other boxes


@dataclass(frozen=True)
class Score:
    """A model on one city's test data; AP and AP50 are None where that holds no box."""

    model: str
    city: str
    AP: float | None
    AP50: float | None


def cross(runs: Sequence[Path], out: Path) -> Path:
    """Score every run on the test data (else val) of every run, and write out/cities.md and .csv; returns the former.

    Where the base of a run is a detector of the same head and classes, it is a row too: the run's model with its
    adapter switched off, which gives that detector back bit for bit. A base that several runs share is scored once.
    ConfigError: fewer than two runs, two of one name, other classes, or a run without test and val data.
    """
    loaded = [load_run(run) for run in runs]
    cities = _cities(loaded)
    _check(loaded)
    scores: list[Score] = []
    seen: set[str] = set()
    for one in loaded:
        model = one.model.to(pick_device(one.settings.train.device))
        scores += _row(name_of(one.folder), one, model, cities)
        if one.meta["mode"] != "full" and (base := _detector_base(one)) and base not in seen:
            seen.add(base)
            with disabled(model):
                scores += _row(f"base of {name_of(one.folder)}", one, model, cities)
        _write(out, scores, list(cities))
    return out / "cities.md"


def _cities(loaded: Sequence[LoadedRun]) -> dict[str, tuple[Path, ...]]:
    """Name of the first run that has them -> json files; runs of one city share a column."""
    cities: dict[str, tuple[Path, ...]] = {}
    for one in loaded:
        data = one.settings.data
        files = data.test or data.val
        if not files:
            what = "the run names neither data.test nor data.val"
            raise ConfigError("CITIES", what, where=str(one.folder), why="There is nothing to score on")
        if files not in cities.values():
            cities[name_of(one.folder)] = files
    return cities


def _check(loaded: Sequence[LoadedRun]) -> None:
    names = [name_of(one.folder) for one in loaded]
    if len(loaded) < 2 or len(set(names)) < len(names):
        raise ConfigError("CITIES", f"the runs {', '.join(names)} make no table", fix="name two or more, none twice")
    for one in loaded[1:]:
        if one.classes != loaded[0].classes:
            what = f"{name_of(one.folder)} finds {', '.join(one.classes)}, {names[0]} {', '.join(loaded[0].classes)}"
            raise ConfigError("CITIES", what, why="One AP cannot be compared with the other", fix="set data.classes")


def _detector_base(one: LoadedRun) -> str:
    """What tells the base from others where it is a detector of the run's own head and classes; empty where it is none.

    Of one with another kind of head the run has backbone and neck alone, and beside other anchors its boxes are others.
    """
    weights = one.settings.backbone.weights
    about = read_weights(weights).metadata if isinstance(weights, Path) else {}
    head, own = json.loads(about.get("detector", "{}")), one.meta["detector"]
    if about.get("classes") != "\n".join(one.classes) or any(head.get(key) != own.get(key) for key in HEAD):
        return ""
    return f"{weights} {one.meta['base']['sha256']}"


def _row(name: str, one: LoadedRun, model: nn.Module, cities: dict[str, tuple[Path, ...]]) -> list[Score]:
    scores = []
    for city, files in cities.items():
        result, _ = evaluate(model, load_coco(files, classes=one.classes), one.settings)
        scores.append(Score(name, city, result["coco"]["AP"], result["coco"]["AP50"]))
    return scores


def _write(out: Path, scores: Sequence[Score], cities: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "city", "AP", "AP50"])
    writer.writerows([s.model, s.city, s.AP, s.AP50] for s in scores)
    write_whole(out / "cities.csv", text.getvalue())
    rows = [["model", *(f"{city}: AP / AP50" for city in cities)], ["---", *("--:" for _ in cities)]]
    for name in dict.fromkeys(score.model for score in scores):
        rows.append([name, *(f"{_told(s.AP)} / {_told(s.AP50)}" for s in scores if s.model == name)])
    caption = "A column is the test data (else val) of the run that it is named after."
    # a folder's name may hold a bar, which would move the figures below other cities
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    write_whole(out / "cities.md", "\n".join([*lines, "", caption, ""]))


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
