"""The COCO numbers, as pycocotools gives them. The only file that imports pycocotools.

Letters: T IoU thresholds, R recall levels, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvpeft.errors import DataError

__all__ = ["STATS", "CocoScore", "resampled", "score", "subset"]

# The order of pycocotools' summary.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, eq=False)
class CocoScore:
    """COCO box metrics in 0..1; nan where no box of the ground truth could count (pycocotools says -1 there).

    AP is the mean over IoU 0.50:0.05:0.95; s, m, l are areas below 32^2, 32^2..96^2 and above 96^2 source pixels;
    AR1, AR10, AR100 allow so many detections per image and class.
    per_class, per_class_50: class name -> AP, AP50.
    precision: (T, R, K) interpolated, all areas, 100 detections per image and class; nan for a class without boxes.
    scores: (T, R, K) score at which each recall level is reached; 0 where it never is.
    iou_thresholds: (T,); recall_levels: (R,); classes: K names, by category id.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: dict[str, float]
    per_class_50: dict[str, float]
    precision: np.ndarray
    scores: np.ndarray
    iou_thresholds: np.ndarray
    recall_levels: np.ndarray
    classes: tuple[str, ...]

    @property
    def stats(self) -> dict[str, float]:
        """The 12 numbers by name, in pycocotools' order."""
        return {name: getattr(self, name) for name in STATS}


def score(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_thresholds: Sequence[float] | None = None,
) -> CocoScore:
    """Score COCO results against a COCO dict; neither is changed.

    ground_truth: `CocoData.ground_truth()`, or any dict with images, categories and annotations (id, image_id,
        category_id, bbox xywh, area, iscrowd), whose annotation ids are distinct and above 0.
    results: dicts of image_id, category_id, bbox xywh and score. None at all scores 0; no annotation at all scores nan.
    iou_thresholds: instead of COCO's ten. AP50 and AP75 are nan where 0.5 and 0.75 are not among them.
    Raises DataError where pycocotools would give a wrong number without a word (annotation ids that repeat or are
    below 1, unknown categories, numbers that are not finite) or fail without a reason (unknown images).
    """
    _check_annotation_ids(ground_truth["annotations"])
    _check_results(ground_truth, results)
    with redirect_stdout(io.StringIO()):
        truth = _index(ground_truth, ground_truth["annotations"])
        evaluation = COCOeval(truth, _index(ground_truth, _boxes(results)), "bbox")
        if iou_thresholds is not None:
            evaluation.params.iouThrs = np.asarray(iou_thresholds, dtype=np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _gather(evaluation, ground_truth["categories"])


def resampled(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, samples: int = 200, seed: int = 0
) -> np.ndarray:
    """(samples, 2) float64 AP and AP50 on as many images, drawn with replacement: the bootstrap over images.

    The same images in the same order and the same seed give the same draws, whatever the results: differences between
    two models are paired. nan where a draw holds no box. DataError as in `score`.
    """
    _check_annotation_ids(ground_truth["annotations"])
    _check_results(ground_truth, results)
    with redirect_stdout(io.StringIO()):
        truth = _index(ground_truth, ground_truth["annotations"])
        evaluation = COCOeval(truth, _index(ground_truth, _boxes(results)), "bbox")
        p = evaluation.params
        p.areaRng, p.areaRngLbl, p.maxDets = p.areaRng[:1], p.areaRngLbl[:1], p.maxDets[-1:]
        evaluation.evaluate()
        matched = np.array(evaluation.evalImgs, dtype=object).reshape(-1, len(evaluation.params.imgIds))  # (K, images)
        rng = np.random.default_rng(seed)
        drawn = rng.integers(matched.shape[1], size=(samples, matched.shape[1]))
        return np.array([_mean_ap(evaluation, matched[:, chosen]) for chosen in drawn]).reshape(samples, 2)


def _mean_ap(evaluation: COCOeval, matched: np.ndarray) -> tuple[float, float]:
    """AP and AP50 of what `evaluate` found on some images, (K, images), one of them perhaps twice."""
    evaluation.evalImgs = matched.ravel().tolist()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (T, R, K, 1, 1), -1 for a class without boxes
    return tuple(
        float(np.mean(part[part > -1])) if (part > -1).any() else np.nan for part in (precision, precision[:1])
    )  # type: ignore[return-value]


def subset(ground_truth: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """The same ground truth with only these images and their annotations; all categories stay."""
    keep = set(image_ids)
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in keep],
        "annotations": [box for box in ground_truth["annotations"] if box["image_id"] in keep],
    }


def _check_annotation_ids(annotations: Sequence[Mapping[str, Any]]) -> None:
    """pycocotools keeps one annotation per id and takes a match with id 0 for no match."""
    ids = [box["id"] for box in annotations]
    if len(set(ids)) < len(ids) or min(ids, default=1) < 1:
        raise DataError(
            "ID",
            f"{len(ids) - len(set(ids))} annotation ids repeat and {sum(i < 1 for i in ids)} are below 1",
            why="pycocotools would drop such boxes and score perfect predictions below 1",
            fix="number the annotations from 1, as CocoData.ground_truth() does.",
        )


def _check_results(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        unknown = {result[key] for result in results} - {entry["id"] for entry in ground_truth[section]}
        if unknown:
            raise DataError(
                "RESULTS",
                f"{len(unknown)} values of {key} in the results are not in the ground truth, such as {min(unknown)}",
                why="Such detections would not be counted",
                fix="score the results with the data that they were made from.",
            )
    numbers = np.array([[*result["bbox"], result["score"]] for result in results], dtype=np.float64).reshape(-1, 5)
    broken = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(broken):
        raise DataError(
            "RESULTS",
            f"{len(broken)} results hold numbers that are not finite, such as {dict(results[broken[0]])}",
            why="They cannot be ranked",
        )


def _boxes(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results as annotations. COCO.loadRes does the same, but fails on an empty list and writes into its input."""
    return [
        {**result, "id": i, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for i, result in enumerate(results, start=1)
    ]


def _index(ground_truth: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> COCO:
    """pycocotools' own table; annotations are copied, because COCOeval writes marks into them."""
    coco = COCO()
    coco.dataset = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": [dict(box) for box in annotations],
    }
    coco.createIndex()
    return coco


def _gather(evaluation: COCOeval, categories: Sequence[Mapping[str, Any]]) -> CocoScore:
    names = {category["id"]: category["name"] for category in categories}
    classes = tuple(names[i] for i in evaluation.params.catIds)
    ious = evaluation.params.iouThrs
    precision = _nan(evaluation.eval["precision"][:, :, :, 0, -1])  # (T, R, K, areas, limits) -> (T, R, K)
    per_class = precision.mean(axis=(0, 1))  # (K,): a class has boxes at every threshold or at none
    at_50 = precision[ious == 0.5]  # (1, R, K), or (0, R, K) under other thresholds
    per_class_50 = at_50.mean(axis=(0, 1)) if len(at_50) else np.full(len(classes), np.nan)
    return CocoScore(
        **dict(zip(STATS, _nan(evaluation.stats).tolist(), strict=True)),
        per_class=dict(zip(classes, per_class.tolist(), strict=True)),
        per_class_50=dict(zip(classes, per_class_50.tolist(), strict=True)),
        precision=precision,
        scores=_nan(evaluation.eval["scores"][:, :, :, 0, -1]),
        iou_thresholds=ious,
        recall_levels=evaluation.params.recThrs,
        classes=classes,
    )


def _nan(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, np.nan, values)
