"""Where a trained run and the labels disagree: the likeliest faults of the labels first.

A confident detection where no box is drawn is more often a forgotten label than a false alarm, once a run is good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvpeft.eval.matching import FALSE, Boxes, gather, iou, match

__all__ = ["KINDS", "Finding", "review"]

SAME_PLACE = 0.5  # IoU from which two boxes stand for one thing, as in the evaluation
TOUCHING = 0.1  # IoU below which a detection has nothing to do with a box

KINDS = {
    "unlabelled": "Found with confidence where no box is drawn: labels that were likely forgotten.",
    "other name": "Found in the place of a box under another name: labels that are likely confused.",
    "other place": "Found half beside a box of its name: boxes that are likely drawn loosely.",
    "missed": "Boxes that the run does not find: hard ones, and boxes around nothing. The least suspected first.",
}


@dataclass(frozen=True)
class Finding:
    """One disagreement. box: x y w h in source pixels, of the detection; of the label where it was missed.

    name: the class of that box. label: the class of the label that it meets, "" without one. iou: with that label.
    score: of the detection; where the label was missed, the highest of any detection in its place, 0 without one.
    """

    kind: str
    image_id: int
    box: tuple[float, float, float, float]
    name: str
    label: str
    score: float
    iou: float


def review(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, list[Finding]]:
    """Kind, as in KINDS, -> its findings, the most suspicious first.

    ground_truth, results: as `report` takes them. thresholds: class name -> score from which a detection counts.
    Detections in crowd regions, and second ones of one thing, are no findings.
    """
    limits = np.array([np.inf, *(thresholds[name] for name in classes)])  # by label, which starts at 1
    found: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for image_id, (truth, detections) in gather(ground_truth, results).items():
        for finding in _of_image(image_id, truth, detections, limits, classes):
            found[finding.kind].append(finding)
    for kind, findings in found.items():
        findings.sort(key=_least_seen if kind == "missed" else _most_confident)
    return found


def _most_confident(finding: Finding) -> float:
    return -finding.score


def _least_seen(finding: Finding) -> tuple[float, float]:
    """Of labels with equal scores the largest: it is the hardest to overlook."""
    return finding.score, -finding.box[2] * finding.box[3]


def _of_image(
    image_id: int, truth: Boxes, detections: Boxes, limits: np.ndarray, classes: Sequence[str]
) -> Iterator[Finding]:
    def finding(kind: str, boxes: Boxes, row: int, label: int, score: float, overlap: float) -> Finding:
        x, y, w, h = boxes.boxes[row].tolist()
        name, other = classes[boxes.labels[row] - 1], classes[label - 1] if label else ""
        return Finding(kind, image_id, (x, y, w, h), name, other, score, overlap)

    shown = detections.take(detections.scores >= limits[detections.labels])
    matched = match(shown, truth, SAME_PLACE)  # by place alone, whatever the name
    overlap = iou(shown.boxes, truth.boxes, truth.crowd)  # (D, G)
    open_labels = ~truth.crowd
    open_labels[matched[matched >= 0]] = False
    told: list[int] = []  # rows of `shown`; a thing that is found under two names is told once
    for row, hit in enumerate(matched):
        score = float(shown.scores[row])
        if hit >= 0 and truth.labels[hit] != shown.labels[row]:
            yield finding("other name", shown, row, truth.labels[hit], score, float(overlap[row, hit]))
        if hit != FALSE or _again(shown, row, told):
            continue
        near = np.where(truth.crowd, 0.0, overlap[row])
        nearest = int(near.argmax()) if near.size else -1
        if nearest < 0 or near[nearest] < TOUCHING:
            told.append(row)
            yield finding("unlabelled", shown, row, 0, score, 0.0)
        elif open_labels[nearest] and truth.labels[nearest] == shown.labels[row]:
            open_labels[nearest] = False
            yield finding("other place", shown, row, truth.labels[nearest], score, float(near[nearest]))
    everything = iou(detections.boxes, truth.boxes, truth.crowd)  # weak detections too
    for row in np.flatnonzero(open_labels).tolist():
        seen = detections.scores[everything[:, row] >= SAME_PLACE]
        score, best = float(seen.max(initial=0.0)), float(everything[:, row].max(initial=0.0))
        yield finding("missed", truth, row, truth.labels[row], score, best)


def _again(shown: Boxes, row: int, told: Sequence[int]) -> bool:
    """Whether one of the rows that were told lies in the same place."""
    others = shown.take(np.array(told, dtype=np.int64))
    return bool((iou(shown.boxes[[row]], others.boxes, others.crowd) >= SAME_PLACE).any())
