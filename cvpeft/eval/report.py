"""Everything that an evaluation tells, as one dict for metrics.json, and the folder that holds it.

The dict is plain JSON: None stands for a number that does not exist (a class without boxes), never NaN.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cvpeft.errors import DataError
from cvpeft.eval import plots
from cvpeft.eval.coco_map import CocoScore, score, subset
from cvpeft.eval.matching import BestF1, Boxes, Matches, best_f1, confusion, gather, match_class
from cvpeft.files import write_whole

__all__ = ["DEFAULT_THRESHOLD", "Report", "report", "thresholds", "write_report"]

DEFAULT_THRESHOLD = 0.5  # of a class for which no best one can be known
MATCH_IOU = 0.5

Report = dict[str, Any]


def thresholds(meta: Mapping[str, Any]) -> dict[str, float]:
    """Class name -> the score that was best on val, of an adapter_config.json; the default where there is none."""
    given: Mapping[str, float] = meta.get("thresholds") or {}
    return {name: given.get(name, DEFAULT_THRESHOLD) for name in meta["classes"]}


def report(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    *,
    alarm_threshold: float | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Report:
    """Score COCO results and say where they fail.

    ground_truth, results: as `coco_map.score` takes them; images may carry "domain".
    classes: names in the order of the labels 1..K; DataError where the ground truth has others.
    alarm_threshold: score that counts as an alarm, for all classes; None: the threshold of each class.
    thresholds: class name -> score threshold that was chosen elsewhere, on a validation split, say. A class that is
        not in it gets the best-F1 threshold of these very results, which flatters them a little; DEFAULT_THRESHOLD
        where there is none.

    Keys: images, boxes, detections; coco (the 12 numbers); per_class (boxes, AP, AP50, the threshold in use, best_f1
    with threshold, precision, recall, f1); per_domain (images, boxes, AP, AP50); false_alarms (negative_images,
    per_image, threshold: None where each class has its own); iou, of best_f1 and of what follows; confusion (labels,
    counts by truth and detection, at the thresholds in use); pr_curve (recall, precision by class).
    """
    _check_classes(ground_truth, classes)
    overall = score(ground_truth, results)
    images = gather(ground_truth, results)
    matches = [match_class(images, label, MATCH_IOU) for label in range(1, len(classes) + 1)]
    best = [best_f1(entry) for entry in matches]
    chosen = [_threshold(name, found, thresholds or {}) for name, found in zip(classes, best, strict=True)]
    alarms = chosen if alarm_threshold is None else [alarm_threshold] * len(classes)
    return _json_ready(
        {
            "images": len(images),
            "boxes": sum(entry.boxes for entry in matches),
            "detections": len(results),
            "coco": overall.stats,
            "per_class": _per_class(overall, matches, best, chosen),
            "per_domain": _per_domain(ground_truth, results, overall),
            "false_alarms": _false_alarms(images, matches, alarms, alarm_threshold),
            "iou": MATCH_IOU,
            "confusion": {"labels": [*classes, "background"], "counts": confusion(images, chosen, MATCH_IOU).tolist()},
            "pr_curve": _curves(overall),
        }
    )


def write_report(folder: Path, report: Report, results: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.json, per_class.csv, predictions.json (COCO results), pr_curve.png, confusion.png into the folder.

    Each file replaces its forerunner as a whole, metrics.json last. Raises ResourceError where that fails.
    """
    write_whole(folder / "predictions.json", json.dumps(list(results), allow_nan=False))
    write_whole(folder / "per_class.csv", _csv(report))
    write_whole(folder / "pr_curve.png", plots.precision_recall(report))
    write_whole(folder / "confusion.png", plots.confusion(report))
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / "metrics.json", text)


def _check_classes(ground_truth: Mapping[str, Any], classes: Sequence[str]) -> None:
    found = [(category["id"], category["name"]) for category in ground_truth["categories"]]
    if sorted(found) != list(enumerate(classes, start=1)):
        raise DataError(
            "CLASSES",
            f"the model's classes are {list(classes)}, those of the data {[name for _, name in sorted(found)]}",
            why="Labels would be compared under wrong names",
            fix="load the data with classes= set to the model's.",
        )


def _threshold(name: str, best: BestF1 | None, given: Mapping[str, float]) -> float:
    return given.get(name, best.threshold if best else DEFAULT_THRESHOLD)


def _per_class(
    overall: CocoScore, matches: Sequence[Matches], best: Sequence[BestF1 | None], chosen: Sequence[float]
) -> dict[str, Any]:
    return {
        name: {
            "boxes": entry.boxes,
            "AP": overall.per_class[name],
            "AP50": overall.per_class_50[name],
            "threshold": threshold,
            "best_f1": asdict(found) if found else None,
        }
        for name, entry, found, threshold in zip(overall.classes, matches, best, chosen, strict=True)
    }


def _per_domain(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], overall: CocoScore
) -> dict[str, Any]:
    """One set of numbers for each city or camera, in order of first appearance; images without one are domain ""."""
    domains: dict[str, set[int]] = defaultdict(set)
    for image in ground_truth["images"]:
        domains[image.get("domain", "")].add(image["id"])
    table = {}
    for domain, ids in domains.items():
        part = subset(ground_truth, ids)
        found = (
            overall if len(domains) == 1 else score(part, [result for result in results if result["image_id"] in ids])
        )
        boxes = sum(not box.get("iscrowd", 0) for box in part["annotations"])
        table[domain] = {"images": len(ids), "boxes": boxes, "AP": found.AP, "AP50": found.AP50}
    return table


def _false_alarms(
    images: Mapping[int, tuple[Boxes, Boxes]],
    matches: Sequence[Matches],
    alarms: Sequence[float],
    alarm_threshold: float | None,
) -> dict[str, Any]:
    """Mean number of detections at or above the threshold on images without a box; in a crowd region none counts."""
    negative = [image_id for image_id, (truth, _) in images.items() if truth.crowd.all()]
    count = sum(
        int((np.isin(entry.images, negative) & ~entry.ignored & (entry.scores >= threshold)).sum())
        for entry, threshold in zip(matches, alarms, strict=True)
    )
    return {
        "negative_images": len(negative),
        "per_image": count / len(negative) if negative else None,
        "threshold": alarm_threshold,
    }


def _curves(overall: CocoScore) -> dict[str, Any]:
    """COCO's 101 recall levels and, by class, the interpolated precision there; None for a class without boxes."""
    precision = overall.precision[list(overall.iou_thresholds).index(MATCH_IOU)]  # (T, R, K) -> (R, K)
    curves = {
        name: None if np.isnan(column).any() else column.tolist()
        for name, column in zip(overall.classes, precision.T, strict=True)
    }
    return {"recall": overall.recall_levels.tolist(), "precision": curves}


def _json_ready(value: Any) -> Any:
    """The same with None for NaN."""
    if isinstance(value, dict):
        return {key: _json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_json_ready(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "boxes", "AP", "AP50", "threshold", "best_threshold", "precision", "recall", "f1"])
    for name, row in report["per_class"].items():
        best = row["best_f1"] or {}
        point = [best.get(key) for key in ("threshold", "precision", "recall", "f1")]
        writer.writerow([name, row["boxes"], row["AP"], row["AP50"], row["threshold"], *point])
    return text.getvalue()
