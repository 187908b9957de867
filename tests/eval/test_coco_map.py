"""Our numbers are those of pycocotools fed by hand, and where pycocotools would be silently wrong, we refuse."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvpeft.errors import DataError
from cvpeft.eval.coco_map import STATS, resampled, score, subset
from tests.eval.sets import CLASSES, found, perfect, random_set, truth


def by_hand(ground_truth: dict, results: list, folder: Path) -> COCOeval:
    """pycocotools from files, as its own tutorial does it."""
    (folder / "gt.json").write_text(json.dumps(ground_truth))
    (folder / "dt.json").write_text(json.dumps(results))
    coco = COCO(str(folder / "gt.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(folder / "dt.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(40))
def test_equals_pycocotools(seed: int, tmp_path: Path) -> None:
    ground_truth, results = random_set(seed)
    ours, theirs = score(ground_truth, results), by_hand(ground_truth, results, tmp_path)
    for name, number in zip(STATS, theirs.stats, strict=True):
        assert ours.stats[name] == pytest.approx(number, abs=1e-12) if number >= 0 else math.isnan(ours.stats[name])
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    for k, name in enumerate(CLASSES):
        if (precision[:, :, k] < 0).all():
            assert math.isnan(ours.per_class[name])
            assert math.isnan(ours.per_class_50[name])
        else:
            assert ours.per_class[name] == pytest.approx(precision[:, :, k].mean(), abs=1e-12)
            assert ours.per_class_50[name] == pytest.approx(precision[0, :, k].mean(), abs=1e-12)


@pytest.mark.slow
def test_equals_pycocotools_on_many_sets(tmp_path: Path) -> None:
    for seed in range(40, 2000):
        test_equals_pycocotools(seed, tmp_path)


def test_the_random_sets_hold_what_they_promise() -> None:
    sets = [random_set(seed) for seed in range(40)]
    assert all(0 < sum(box["iscrowd"] for box in t["annotations"]) < len(t["annotations"]) / 2 for t, _ in sets)
    assert all(0.05 < score(*one).AP < 0.95 for one in sets)
    assert all(len({r["score"] for r in results}) < len(results) / 4 for _, results in sets)
    assert all(max(np.unique([r["image_id"] for r in results], return_counts=True)[1]) > 100 for _, results in sets)
    assert all(len({box["image_id"] for box in t["annotations"]}) < len(t["images"]) for t, _ in sets)
    assert all(4 not in {box["category_id"] for box in t["annotations"]} for t, _ in sets)


def test_perfect_predictions_score_exactly_one() -> None:
    ground_truth, _ = random_set(3)
    ground_truth["annotations"] = [box for box in ground_truth["annotations"] if not box["iscrowd"]]
    numbers = score(ground_truth, perfect(ground_truth))
    assert numbers.AP == numbers.AP50 == numbers.AP75 == numbers.AR100 == 1.0
    assert all(value == 1.0 for name, value in numbers.per_class.items() if name != "uncovered")


def test_order_of_distinct_scores_does_not_matter() -> None:
    ground_truth, results = random_set(5, distinct=True)
    forward, backward = score(ground_truth, results), score(ground_truth, results[::-1])
    np.testing.assert_array_equal(list(forward.stats.values()), list(backward.stats.values()))
    np.testing.assert_array_equal(forward.precision, backward.precision)


def test_input_stays_as_it_was() -> None:
    ground_truth, results = random_set(1)
    before = copy.deepcopy((ground_truth, results))
    score(ground_truth, results)
    assert (ground_truth, results) == before


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score(*random_set(2))
    assert capfd.readouterr() == ("", "")


def test_no_results_score_zero() -> None:
    numbers = score(truth([(1, 1, (0, 0, 10, 10)), (1, 2, (0, 0, 50, 50))]), [])
    assert numbers.AP == numbers.AP50 == numbers.AR100 == numbers.APs == numbers.APm == 0.0
    assert math.isnan(numbers.APl)
    assert numbers.per_class["good"] == 0.0
    assert math.isnan(numbers.per_class["lose"])


@pytest.mark.parametrize("images", [0, 2])
def test_no_truth_scores_nan(images: int) -> None:
    results = found((1, 1, (0, 0, 10, 10), 0.9)) if images else []
    numbers = score(truth([], images=images), results)
    assert all(math.isnan(value) for value in numbers.stats.values())
    assert all(math.isnan(value) for value in numbers.per_class.values())


def test_other_iou_thresholds() -> None:
    ground_truth, results = random_set(4)
    full, loose = score(ground_truth, results), score(ground_truth, results, iou_thresholds=[0.5])
    strict = score(ground_truth, results, iou_thresholds=[0.9])
    assert loose.AP == loose.AP50 == full.AP50
    assert math.isnan(strict.AP50)
    assert all(math.isnan(value) for value in strict.per_class_50.values())
    assert strict.AP < full.AP50


@pytest.mark.parametrize("ids", [(1, 1), (0, 1), (-1, 2)])
def test_bad_annotation_ids_are_refused(ids: tuple[int, int]) -> None:
    ground_truth = truth([(1, 1, (0, 0, 10, 10)), (1, 1, (20, 20, 10, 10))])
    for box, number in zip(ground_truth["annotations"], ids, strict=True):
        box["id"] = number
    with pytest.raises(DataError, match="E-ID"):
        score(ground_truth, perfect(ground_truth))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((7, 1, (0, 0, 9, 9), 0.5), "image_id"),
        ((1, 9, (0, 0, 9, 9), 0.5), "category_id"),
        ((1, 1, (0, 0, 9, math.nan), 0.5), "not finite"),
        ((1, 1, (0, 0, 9, 9), math.inf), "not finite"),
    ],
)
def test_results_that_cannot_be_scored_are_refused(row: tuple, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        score(truth([(1, 1, (0, 0, 9, 9))]), found(row))


def test_subset_keeps_categories_and_own_boxes() -> None:
    ground_truth = truth([(1, 1, (0, 0, 9, 9)), (2, 2, (0, 0, 9, 9)), (2, 1, (5, 5, 9, 9))], images=3)
    part = subset(ground_truth, [2, 3])
    assert [image["id"] for image in part["images"]] == [2, 3]
    assert [box["id"] for box in part["annotations"]] == [2, 3]
    assert part["categories"] == ground_truth["categories"]


def copied(ground_truth: dict, results: list, chosen: list[int]) -> tuple[dict, list]:
    """A set that really holds the chosen images, each drawn one as an image of its own."""
    images = [ground_truth["images"][i] for i in chosen]
    boxes = [
        {**box, "image_id": n}
        for n, image in enumerate(images, 1)
        for box in ground_truth["annotations"]
        if box["image_id"] == image["id"]
    ]
    whole = {
        **ground_truth,
        "images": [{**image, "id": n} for n, image in enumerate(images, 1)],
        "annotations": [{**box, "id": i} for i, box in enumerate(boxes, 1)],
    }
    again = [{**r, "image_id": n} for n, image in enumerate(images, 1) for r in results if r["image_id"] == image["id"]]
    return whole, again


@pytest.mark.parametrize("seed", range(4))
def test_a_redrawn_set_scores_as_if_its_images_had_been_copied(seed: int) -> None:
    ground_truth, results = random_set(seed)
    ground_truth = {**ground_truth, "images": sorted(ground_truth["images"], key=lambda image: image["id"])}
    # without ties between images, whose order would be another one in the copy
    results = [{**r, "score": r["score"] + 1e-6 * i} for i, r in enumerate(results)]
    found_ap = resampled(ground_truth, results, samples=3, seed=seed)
    count = len(ground_truth["images"])
    for (ap, ap50), chosen in zip(found_ap, np.random.default_rng(seed).integers(count, size=(3, count)), strict=True):
        expected = score(*copied(ground_truth, results, chosen.tolist()))
        assert ap == pytest.approx(expected.AP, abs=1e-12)
        assert ap50 == pytest.approx(expected.AP50, abs=1e-12)


def test_draws_are_the_same_for_all_results_and_nan_without_a_box() -> None:
    ground_truth, results = random_set(1)
    assert np.array_equal(resampled(ground_truth, results, samples=5), resampled(ground_truth, results, samples=5))
    assert (resampled(ground_truth, perfect(ground_truth), samples=5) == 1).all()
    assert (resampled(ground_truth, [], samples=2) == 0).all()
    assert np.isnan(resampled({**ground_truth, "annotations": []}, [], samples=2)).all()
