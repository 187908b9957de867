"""Which detection found which box, at one IoU: COCO's greedy rule, and what follows from it.

Letters: D detections, G boxes of the ground truth, K classes. Boxes are xywh in source pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CROWD", "FALSE", "BestF1", "Boxes", "Matches", "best_f1", "confusion", "gather", "iou", "match"]

FALSE, CROWD = -1, -2  # what a detection is matched to if not to the index of a box
MAX_DETECTIONS = 100  # per image and class, as in COCO's AP


@dataclass(frozen=True, eq=False)
class Boxes:
    """The truth or the detections of one image; detections by falling score, ties in the order given.

    boxes: (N, 4) float64 xywh; labels: (N,) int64 1..K; crowd: (N,) bool; scores: (N,) float64, 1 for the truth.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    scores: np.ndarray

    def take(self, rows: np.ndarray) -> Boxes:
        return Boxes(self.boxes[rows], self.labels[rows], self.crowd[rows], self.scores[rows])


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of one class over all images, by falling score.

    scores: (D,); true: (D,) bool, has found a box of its own; ignored: (D,) bool, lies in a crowd region and counts
    neither way; images: (D,) image ids; boxes: how many boxes there are to be found, crowd left out.
    """

    scores: np.ndarray
    true: np.ndarray
    ignored: np.ndarray
    images: np.ndarray
    boxes: int


@dataclass(frozen=True)
class BestF1:
    """The score threshold with the highest F1, and precision, recall and F1 of the detections at or above it."""

    threshold: float
    precision: float
    recall: float
    f1: float


def gather(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Boxes, Boxes]]:
    """image id -> (truth, detections), for every image of the ground truth, also those without any box."""
    truth: dict[int, list] = defaultdict(list)
    found: dict[int, list] = defaultdict(list)
    for box in ground_truth["annotations"]:
        truth[box["image_id"]].append((*box["bbox"], box["category_id"], box.get("iscrowd", 0), 1.0))
    for result in results:
        found[result["image_id"]].append((*result["bbox"], result["category_id"], 0, result["score"]))
    ids = [image["id"] for image in ground_truth["images"]]
    return {i: (_columns(truth[i]), _by_score(_columns(found[i]))) for i in ids}


def iou(detections: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, 4), (G, 4), (G,) -> (D, G) intersection over union; over the detection's own area for a crowd box."""
    low = np.maximum(detections[:, None, :2], truth[None, :, :2])  # (D, G, 2)
    high = np.minimum(detections[:, None, :2] + detections[:, None, 2:], truth[None, :, :2] + truth[None, :, 2:])
    side = np.clip(high - low, 0, None)
    inner = side[..., 0] * side[..., 1]  # (D, G)
    area = (detections[:, 2] * detections[:, 3])[:, None]
    union = np.where(crowd, area, area + truth[:, 2] * truth[:, 3] - inner)
    return np.divide(inner, union, out=np.zeros_like(inner), where=inner > 0)


def match(detections: Boxes, truth: Boxes, threshold: float = 0.5) -> np.ndarray:
    """COCO's greedy rule for one image, whatever the labels: (D,) index of the box found, FALSE or CROWD.

    By falling score, each detection takes the free box of highest IoU at or above the threshold (the last of equals).
    A crowd box is taken only where no other is left, and by any number of detections.
    """
    overlap = iou(detections.boxes, truth.boxes, truth.crowd)  # (D, G)
    inside_crowd = (overlap[:, truth.crowd] >= threshold).any(axis=1)  # (D,)
    free = np.where(truth.crowd | (overlap < threshold), -1.0, overlap)
    matched = np.where(inside_crowd, CROWD, FALSE)
    for row in range(len(free) if free.size else 0):
        best = free.shape[1] - 1 - int(free[row, ::-1].argmax())
        if free[row, best] >= 0:
            matched[row] = best
            free[:, best] = -1.0
    return matched


def match_class(images: Mapping[int, tuple[Boxes, Boxes]], label: int, threshold: float = 0.5) -> Matches:
    """Match one class over all images, with COCO's limit of 100 detections per image."""
    rows = []
    boxes = 0
    for image_id, (truth, detections) in images.items():
        own = truth.take(truth.labels == label)
        found = detections.take(np.flatnonzero(detections.labels == label)[:MAX_DETECTIONS])
        matched = match(found, own, threshold)
        rows.append((found.scores, matched, np.full(len(matched), image_id)))
        boxes += int((~own.crowd).sum())
    scores, matched, ids = (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else np.zeros((3, 0))
    order = np.argsort(-scores, kind="stable")
    scores, matched, ids = scores[order], matched[order], ids[order]
    return Matches(scores, matched >= 0, matched == CROWD, ids, boxes)


def best_f1(matches: Matches) -> BestF1 | None:
    """The best threshold of one class; None where it has no box, or where no detection is right.

    Detections of equal score stand or fall together. Of equal F1 the higher threshold is taken: fewer alarms. The
    threshold lies half-way to the next lower score, so that an exported model's rounding does not move a box across.
    """
    counted = ~matches.ignored
    scores, true = matches.scores[counted], matches.true[counted]
    if not matches.boxes or not true.any():
        return None
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # the last row of each run of equal scores
    hits = np.cumsum(true)[last]
    f1 = 2 * hits / (last + 1 + matches.boxes)  # 2 TP / (2 TP + FP + FN)
    best = int(f1.argmax())
    score = float(scores[last[best]])
    below = float(scores[last[best] + 1]) if best + 1 < len(last) else score
    precision, recall = hits[best] / (last[best] + 1), hits[best] / matches.boxes
    return BestF1((score + below) / 2, float(precision), float(recall), float(f1[best]))


def confusion(
    images: Mapping[int, tuple[Boxes, Boxes]], thresholds: Sequence[float], iou_threshold: float = 0.5
) -> np.ndarray:
    """(K+1, K+1) counts: rows are the truth, columns the detected class, the last of each is background.

    Detections at or above their class's threshold are matched by place alone, so that a box found under a wrong name is
    told from one that was missed. The last row holds false alarms, the last column missed boxes; crowd is left out.
    """
    K = len(thresholds)
    limits = np.array([np.inf, *thresholds])  # by label, which starts at 1
    table = np.zeros((K + 1, K + 1), dtype=np.int64)
    for truth, detections in images.values():
        shown = detections.take(detections.scores >= limits[detections.labels])
        matched = match(shown, truth, iou_threshold)
        hit = matched >= 0
        np.add.at(table, (truth.labels[matched[hit]] - 1, shown.labels[hit] - 1), 1)
        np.add.at(table, (K, shown.labels[matched == FALSE] - 1), 1)
        missed = ~truth.crowd
        missed[matched[hit]] = False
        np.add.at(table, (truth.labels[missed] - 1, K), 1)
    return table


def _columns(rows: list[tuple]) -> Boxes:
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return Boxes(table[:, :4], table[:, 4].astype(np.int64), table[:, 5] > 0, table[:, 6])


def _by_score(detections: Boxes) -> Boxes:
    return detections.take(np.argsort(-detections.scores, kind="stable"))
