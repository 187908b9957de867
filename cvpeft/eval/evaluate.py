"""A trained run -> its figures on one split, written beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvpeft.config import schema
from cvpeft.data.check.run import tell_quick_check
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.loader import eval_loader
from cvpeft.data.splits import open_split
from cvpeft.detector.device import pick_device
from cvpeft.detector.saved import load_run, name_of, read_config
from cvpeft.eval.gallery import write_gallery
from cvpeft.eval.predict import latency, predict
from cvpeft.eval.report import Report, report, write_report
from cvpeft.eval.review import review
from cvpeft.runtime.photos import printable

__all__ = ["evaluate", "evaluate_run", "read_thresholds"]

NEUTRAL = {  # settings that change no box; a base that was moved is the same one, or it would not have been loaded
    "data": {"workers"}, "backbone": {"weights"}, "eval": {"batch", "latency_images"},
}  # fmt: skip
SEEN = "The run was trained on these photographs, and has learned some of their faults."


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    reviewed: bool = False,
) -> Path:
    """Score a run folder and return the folder with metrics.json, per_class.csv, predictions.json and the plots.

    split: which data of the run's config. files: COCO json files to score instead; the figures then lie under the
    files' names and a short digest of their paths, apart from those of the splits. overrides: where they change what is
    found or scored, the figures lie apart too, under a digest of those settings. reviewed: review.html and review.json
    are written too, see `review`.
    """
    loaded = load_run(run, overrides)
    settings, classes = loaded.settings, loaded.classes
    data = load_coco(files, classes=classes) if files else open_split(settings.data, split, classes)
    tell_quick_check({_name(files) if files else split: data})
    device = pick_device(settings.train.device)
    result, found = evaluate(loaded.model.to(device), data, settings, thresholds=read_thresholds(run))
    other = _digest(_scored(settings)) if _scored(settings) != _scored(loaded.trained) else ""
    folder = run / "eval" / "-".join(filter(None, (_name(files) if files else split, other)))
    result["overrides"] = list(overrides) if other else []
    result["files"] = [printable(file) for file in files or getattr(settings.data, split)]
    write_report(folder, result, found)
    if reviewed:
        limits = {name: row["threshold"] for name, row in result["per_class"].items()}
        disagreements = review(data.ground_truth(), found, classes, limits)
        note = SEEN if split == "train" and not files else ""
        write_gallery(folder, data, disagreements, title=f"{printable(name_of(run))} and its labels", note=note)
    return folder


def _name(files: Sequence[Path]) -> str:
    """Of the figures on other files: no split's name, and another one for files of the same name elsewhere."""
    paths = [file.absolute() for file in files]
    digest = _digest("\n".join(map(str, paths)))
    return printable("+".join(f"{path.parent.name}_{path.stem}" for path in paths))[:80] + f"-{digest}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:6]


def _scored(settings: schema.Settings) -> str:
    """Everything in the settings that a figure may depend on, as a text."""
    parts = ("data", "backbone", "detector", "eval")
    return json.dumps([getattr(settings, part).model_dump(mode="json", exclude=NEUTRAL.get(part)) for part in parts])


def evaluate(
    model: nn.Module,
    data: CocoData,
    settings: schema.Settings,
    *,
    thresholds: Mapping[str, float] | None = None,
) -> tuple[Report, list[dict[str, Any]]]:
    """Detect on a whole data set and report; returns the report and the COCO results behind it.

    thresholds: class name -> score that was chosen on other images; see `report`.
    """
    e, d = settings.eval, settings.data
    device = next(model.parameters()).device
    pin = device.type == "cuda"
    loader = eval_loader(data, d.size, batch=e.batch, workers=d.workers, canvas=d.canvas, pin=pin)
    found = predict(model, loader, device=device, precision=e.precision)
    result = report(data.ground_truth(), found, data.classes, alarm_threshold=e.alarm_threshold, thresholds=thresholds)
    result["latency"] = latency(model, _first_photos(data, settings), device=device, precision=e.precision)
    return result, found


def _first_photos(data: CocoData, settings: schema.Settings) -> list[torch.Tensor]:
    """The first photos, each as its network inputs (T, 3, H, W)."""
    first = CocoData(data.images[: settings.eval.latency_images], data.classes, ())
    tiles: dict[int, list[torch.Tensor]] = {}
    for batch in eval_loader(first, settings.data.size, batch=1, workers=0, canvas=settings.data.canvas):
        tiles.setdefault(batch.targets[0]["image_id"], []).append(batch.images)
    return [torch.cat(photo) for photo in tiles.values()]


def read_thresholds(run: Path) -> dict[str, float] | None:
    """Class name -> the score that was best on val when the run was trained; None where there was no val."""
    thresholds: dict[str, float] | None = read_config(run / "adapter").get("thresholds")
    return thresholds
