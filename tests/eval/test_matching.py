"""Our matching is COCO's, and what is computed from it can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask

from cvpeft.eval.coco_map import score
from cvpeft.eval.matching import CROWD, FALSE, Matches, best_f1, confusion, gather, iou, match, match_class
from tests.eval.sets import CLASSES, found, random_set, truth


def interpolated(matches: Matches) -> np.ndarray:
    """COCO's precision at its 101 recall levels, from the matches of one class."""
    true = matches.true[~matches.ignored]
    hits = np.cumsum(true)
    precision = hits / (np.arange(1, len(true) + 1) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    levels = np.linspace(0, 1, 101)
    at = np.searchsorted(hits / matches.boxes, levels)
    return np.where(at < len(true), np.append(envelope, 0)[np.minimum(at, len(true))], 0)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_precision_and_recall_are_those_of_pycocotools(seed: int, threshold: float) -> None:
    ground_truth, results = random_set(seed)
    theirs = score(ground_truth, results, iou_thresholds=[threshold]).precision[0]  # (R, K)
    images = gather(ground_truth, results)
    for k in range(len(CLASSES)):
        matches = match_class(images, k + 1, threshold)
        assert (matches.boxes == 0) == np.isnan(theirs[:, k]).all()
        if matches.boxes:
            np.testing.assert_allclose(interpolated(matches), theirs[:, k], atol=1e-12)


def test_iou_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    detections, boxes = (np.c_[rng.uniform(0, 50, (n, 2)), rng.uniform(0, 40, (n, 2))] for n in (30, 20))
    crowd = rng.random(20) < 0.3
    theirs = mask.iou(detections, boxes, crowd.astype(int).tolist())
    np.testing.assert_array_equal(iou(detections, boxes, crowd), theirs)


def test_match_by_hand() -> None:
    box = (0, 0, 10, 10)
    ground_truth = truth([(1, 1, box), (1, 1, (100, 0, 40, 40), True), (1, 1, (8, 0, 10, 10))])
    results = found(
        (1, 1, (1, 0, 10, 10), 0.9),  # IoU 9/11 with the first
        (1, 1, box, 0.8),  # better, but too late: its box is taken
        (1, 1, (110, 10, 10, 10), 0.7),  # inside the crowd
        (1, 1, (120, 10, 10, 10), 0.6),  # inside the crowd too
        (1, 1, (9, 0, 10, 10), 0.5),
    )
    [(boxes, detections)] = gather(ground_truth, results).values()
    assert match(detections, boxes).tolist() == [0, FALSE, CROWD, CROWD, 2]


def test_of_two_boxes_equally_near_the_last_is_taken() -> None:
    """As pycocotools does; here it leaves the second detection without a box."""
    ground_truth = truth([(1, 1, (0, 0, 10, 10)), (1, 1, (2, 0, 10, 10))])
    results = found((1, 1, (1, 0, 10, 10), 0.9), (1, 1, (5, 0, 10, 10), 0.8))
    [(boxes, detections)] = gather(ground_truth, results).values()
    assert match(detections, boxes).tolist() == [1, FALSE]
    assert score(ground_truth, results).AP50 < 0.6


def test_match_without_boxes_or_detections() -> None:
    images = gather(truth([(1, 1, (0, 0, 9, 9))], images=2), found((2, 1, (0, 0, 9, 9), 0.5)))
    assert match(images[1][1], images[1][0]).tolist() == []
    assert match(images[2][1], images[2][0]).tolist() == [FALSE]
    assert len(match_class({}, 1).scores) == 0


def test_best_f1_by_hand() -> None:
    """4 boxes. By falling score: hit, hit, miss, hit, miss, miss. F1: 2/5, 4/6, 4/7, 6/8, 6/9, 6/10."""
    matches = _matches([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "++-+--", boxes=4)
    best = best_f1(matches)
    assert best is not None
    assert (best.f1, best.precision, best.recall) == (0.75, 0.75, 0.75)
    assert best.threshold == pytest.approx(0.55)  # half-way between 0.6, which is in, and 0.5, which is out


def test_best_f1_takes_equal_scores_together() -> None:
    """The hit at 0.5 cannot be had without the two misses at 0.5, so F1 1.0 (hits only) is out of reach."""
    best = best_f1(_matches([0.5, 0.5, 0.5], "+--", boxes=1))
    assert best is not None
    assert (best.threshold, best.precision, best.recall, best.f1) == (0.5, 1 / 3, 1.0, 0.5)


def test_best_f1_leaves_crowd_out() -> None:
    best = best_f1(_matches([0.9, 0.8, 0.7], "c+c", boxes=1))
    assert best is not None
    assert (best.threshold, best.precision, best.recall, best.f1) == (0.8, 1.0, 1.0, 1.0)


def test_best_f1_of_equals_takes_the_higher_threshold() -> None:
    """F1 is 2/3 after the first and again after the last: 2/3, 2/4, 2/5, 4/6."""
    best = best_f1(_matches([0.9, 0.6, 0.3, 0.2], "+--+", boxes=2))
    assert best is not None
    assert best.threshold == pytest.approx(0.75)


@pytest.mark.parametrize(("flags", "boxes"), [("--", 3), ("", 3), ("--", 0)])
def test_no_best_f1_without_a_hit(flags: str, boxes: int) -> None:
    assert best_f1(_matches([0.9, 0.8][: len(flags)], flags, boxes)) is None


@pytest.mark.parametrize("seed", range(10))
def test_best_f1_is_the_best_of_all_thresholds(seed: int) -> None:
    """By trying: keep only results at or above each score and match anew."""
    ground_truth, results = random_set(seed)
    best = best_f1(match_class(gather(ground_truth, results), 1))
    assert best is not None

    def at(threshold: float) -> tuple[float, float, float]:
        kept = match_class(gather(ground_truth, [r for r in results if r["score"] >= threshold]), 1)
        hits, shown = kept.true.sum(), (~kept.ignored).sum()
        return hits / max(shown, 1), hits / kept.boxes, 2 * hits / (shown + kept.boxes)

    assert best.f1 == pytest.approx(max(at(threshold)[2] for threshold in {r["score"] for r in results}))
    assert at(best.threshold) == pytest.approx((best.precision, best.recall, best.f1))


def test_confusion_by_hand() -> None:
    a, b, c, d = (0, 0, 10, 10), (50, 0, 10, 10), (100, 0, 10, 10), (150, 0, 10, 10)
    ground_truth = truth([(1, 1, a), (1, 1, b), (1, 2, c), (2, 1, d, True)], images=2, classes=("good", "broke"))
    results = found(
        (1, 1, a, 0.9),  # right
        (1, 2, b, 0.8),  # right place, wrong name
        (1, 2, a, 0.7),  # its box is taken: a false alarm
        (1, 2, c, 0.3),  # below the threshold, so c is missed
        (2, 2, d, 0.9),  # in a crowd region, left out
        (2, 1, a, 0.5),  # nothing there
    )
    table = confusion(gather(ground_truth, results), [0.5, 0.6])
    assert table.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_confusion_counts_every_box_and_every_detection_once(seed: int) -> None:
    ground_truth, results = random_set(seed)
    for box in ground_truth["annotations"]:
        box["iscrowd"] = 0
    table = confusion(gather(ground_truth, results), [0.0] * len(CLASSES))
    of_label = [sum(box["category_id"] == k for box in ground_truth["annotations"]) for k in (1, 2, 3, 4)]
    assert table.sum(axis=1)[:-1].tolist() == of_label
    assert table.sum(axis=0)[:-1].tolist() == [sum(r["category_id"] == k for r in results) for k in (1, 2, 3, 4)]


def _matches(scores: list[float], flags: str, boxes: int) -> Matches:
    """flags: + a hit, - a miss, c in a crowd region."""
    marks = np.array(list(flags), dtype=str)
    return Matches(np.array(scores), marks == "+", marks == "c", np.ones(len(scores), dtype=int), boxes)
