"""From json files on disk to the report: perfect detections score 1, whatever the ids in the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.data.coco import CocoData, load_coco
from cvpeft.data.loader import eval_loader
from cvpeft.eval.coco_map import score
from cvpeft.eval.evaluate import evaluate
from tests.eval.sets import perfect

CLASSES = ("good", "broke", "lose")
SIZE = (64, 96)


def city(folder: Path, name: str, seed: int, first_id: int = 1, images: int = 3, height: int = 60) -> Path:
    """A json with ids of its own: annotations from `first_id`, images from 0, categories shuffled; last image empty."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": str(label)} for i, label in enumerate(rng.permutation(CLASSES), start=7)]
    data: dict = {"images": [], "annotations": [], "categories": categories}
    for image in range(images):
        data["images"].append({"id": image, "file_name": f"{name}{image}.png", "height": height, "width": 90})
        Image.new("RGB", (90, height), (seed * 40 % 256, image * 80 % 256, 90)).save(folder / f"{name}{image}.png")
        for label in range(0 if image == images - 1 else len(CLASSES)):
            box = [*rng.uniform(0, 30, 2).round(2).tolist(), *rng.uniform(10, 25, 2).round(2).tolist()]
            data["annotations"].append({"image_id": image, "category_id": label + 7, "bbox": box})
    rng.shuffle(data["annotations"])
    for number, box in enumerate(data["annotations"], start=first_id):
        box.update({"id": number, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data))
    return path


class Oracle(nn.Module):
    """Finds exactly the labelled boxes of a data set; knows its images by their pixels."""

    def __init__(self, data: CocoData) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.known = {}
        for batch in eval_loader(data, SIZE, batch=1, workers=0):
            self.known[batch.images.numpy().tobytes()] = batch.targets[0]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        targets = [self.known[image.numpy().tobytes()] for image in images]
        return [{"boxes": t["boxes"], "labels": t["labels"], "scores": torch.ones(len(t["labels"]))} for t in targets]


def settings(batch: int, workers: int = 0, latency_images: int = 0) -> schema.Settings:
    return schema.Settings(
        data=schema.Data(size=SIZE, workers=workers), eval=schema.Eval(batch=batch, latency_images=latency_images)
    )


@pytest.mark.parametrize("cities", range(1, 6))
def test_restarted_and_zero_ids_do_not_cost_a_point(cities: int, tmp_path: Path) -> None:
    files = [city(tmp_path, f"city{i}", seed=i, first_id=i % 2) for i in range(cities)]
    ground_truth = load_coco(files, classes=CLASSES).ground_truth()
    assert len(ground_truth["annotations"]) == 6 * cities
    numbers = score(ground_truth, perfect(ground_truth))
    assert numbers.AP == numbers.AP50 == numbers.AP75 == 1.0
    assert set(numbers.per_class.values()) == {1.0}


def test_order_of_files_does_not_matter(tmp_path: Path) -> None:
    files = [city(tmp_path, f"city{i}", seed=i, first_id=0) for i in range(3)]
    rng = np.random.default_rng(0)
    noise = {}  # the same detections, found by image name and box, whatever the ids
    numbers = []
    for order in (files, files[::-1]):
        ground_truth = load_coco(order, classes=CLASSES).ground_truth()
        names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
        results = perfect(ground_truth)
        for result in results:
            key = (names[result["image_id"]], *result["bbox"])
            shift, result["score"] = noise.setdefault(key, (rng.normal(0, 2, 4), rng.random()))
            result["bbox"] = (np.array(result["bbox"]) + shift).tolist()
        numbers.append(score(ground_truth, results))
    assert 0.1 < numbers[0].AP < 0.9
    assert numbers[0].per_class == numbers[1].per_class


def test_evaluate_from_disk_to_report(tmp_path: Path) -> None:
    files = [city(tmp_path, "north", seed=0, first_id=0), city(tmp_path, "south", seed=1, height=150)]
    data = load_coco(files, classes=CLASSES)
    report, results = evaluate(Oracle(data), data, settings(batch=4, latency_images=2))
    assert report["coco"]["AP"] == 1.0
    assert {name: row["AP"] for name, row in report["per_domain"].items()} == {"north": 1.0, "south": 1.0}
    assert report["false_alarms"]["negative_images"] == 2
    assert report["latency"]["images"] == 2
    truth = data.ground_truth()["annotations"]
    assert [result["category_id"] for result in results] == [box["category_id"] for box in truth]
    np.testing.assert_allclose([r["bbox"] for r in results], [box["bbox"] for box in truth], atol=1e-4)


def test_batch_size_and_workers_do_not_change_results(tmp_path: Path) -> None:
    data = load_coco([city(tmp_path, "north", seed=0, images=5)], classes=CLASSES)
    oracle = Oracle(data)
    runs = [evaluate(oracle, data, settings(batch=b, workers=w)) for b, w in ((1, 0), (3, 0), (2, 1))]
    for report, _ in runs:
        assert report.pop("latency")["median_ms"] is None
    assert runs[0] == runs[1] == runs[2]
