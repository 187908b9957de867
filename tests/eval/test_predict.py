"""Boxes come back in source pixels, the model comes back as it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cvpeft.data.coco import load_coco
from cvpeft.data.loader import eval_loader
from cvpeft.errors import ResourceError
from cvpeft.eval.predict import latency, predict
from cvpeft.runtime.image import Letterbox, fit
from tests.data.sets import coco, write

SIZE = (96, 160)


class Fake(nn.Module):
    """Returns prepared predictions, image by image, and notes how it was called."""

    def __init__(self, predictions: list[dict[str, Tensor]] | None = None) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3).eval()
        self.predictions = iter(predictions or [])
        self.calls: list[dict[str, Any]] = []

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        made = torch.zeros(2, 2) @ torch.zeros(2, 2)
        self.calls.append(
            {
                "shape": tuple(images.shape),
                "dtype": images.dtype,
                "training": self.training,
                "grad": torch.is_grad_enabled(),
                "compute": made.dtype,
                "inference": made.is_inference(),
            }
        )
        return [next(self.predictions, _prediction(np.zeros((0, 4)))) for _ in images]


def _prediction(boxes: np.ndarray, labels: list[int] | None = None, scores: list[float] | None = None) -> dict:
    count = len(boxes)
    return {
        "boxes": torch.from_numpy(np.asarray(boxes, dtype=np.float64)),
        "labels": torch.tensor(labels or [1] * count, dtype=torch.int64),
        "scores": torch.tensor(scores or [0.5] * count, dtype=torch.float32),
    }


def _batch(letterboxes: list[Letterbox], ids: list[int]) -> Any:
    return SimpleNamespace(
        images=torch.zeros(len(ids), 3, *SIZE, dtype=torch.uint8),
        targets=[{"image_id": i} for i in ids],
        letterboxes=letterboxes,
        names=[str(i) for i in ids],
    )


def test_boxes_return_to_source_pixels() -> None:
    """Wide, tall, enlarged and odd sizes: boxes sent through the letterbox come back where they were."""
    rng = np.random.default_rng(0)
    letterboxes = [fit(source, SIZE) for source in ((480, 640), (1281, 719), (60, 80), (96, 160), (333, 1000))]
    sources = []
    for box in letterboxes:
        corner = rng.uniform(0, 0.5, (7, 2)) * box.source[::-1]
        sources.append(np.hstack([corner, corner + rng.uniform(0.1, 0.5, (7, 2)) * box.source[::-1]]))
    model = Fake([_prediction(box.forward(s)) for box, s in zip(letterboxes, sources, strict=True)])
    batches = [_batch(letterboxes[:3], [11, 12, 13]), _batch(letterboxes[3:], [4, 5])]
    results = predict(model, batches, progress=False)
    assert [result["image_id"] for result in results] == [11] * 7 + [12] * 7 + [13] * 7 + [4] * 7 + [5] * 7
    found = np.array([result["bbox"] for result in results])
    found[:, 2:] += found[:, :2]
    np.testing.assert_allclose(found, np.vstack(sources), atol=1e-9)


def test_labels_and_scores_are_plain_numbers() -> None:
    model = Fake([_prediction(np.array([[0, 0, 9, 9], [1, 1, 5, 5]]), [2, 1], [0.75, 0.25])])
    results = predict(model, [_batch([fit(SIZE, SIZE)], [3])], progress=False)
    assert results == [
        {"image_id": 3, "category_id": 2, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.75},
        {"image_id": 3, "category_id": 1, "bbox": [1.0, 1.0, 4.0, 4.0], "score": 0.25},
    ]
    assert {type(value) for value in results[0].values()} == {int, list, float}


def test_boxes_end_at_the_image() -> None:
    wide = fit((48, 160), SIZE)  # 24 rows of grey above and below
    model = Fake([_prediction(np.array([[-5, 0, 170, 96]]))])
    [result] = predict(model, [_batch([wide], [1])], progress=False)
    assert result["bbox"] == [0.0, 0.0, 160.0, 48.0]


def test_no_detections_at_all() -> None:
    assert predict(Fake(), [_batch([fit(SIZE, SIZE)] * 2, [1, 2])], progress=False) == []


def test_the_model_is_called_in_eval_mode_and_put_back() -> None:
    model = Fake().train()
    model.frozen.eval()
    predict(model, [_batch([fit(SIZE, SIZE)], [1])], progress=False)
    [call] = model.calls
    assert call == {
        "shape": (1, 3, *SIZE),
        "dtype": torch.uint8,
        "training": False,
        "grad": False,
        "compute": torch.float32,
        "inference": False,
    }
    assert model.training
    assert not model.frozen.training


def test_modes_are_put_back_after_a_fault() -> None:
    model = Fake([{}]).train()  # a prediction without boxes
    with pytest.raises(KeyError):
        predict(model, [_batch([fit(SIZE, SIZE)], [1])], progress=False)
    assert model.training


def test_a_loader_process_that_dies_while_the_model_computes_is_told(tmp_path: Path) -> None:
    class Killer(Fake):
        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
            time.sleep(5)  # torch raises as soon as the process hears of it
            return super().forward(images)

    data = load_coco([write(tmp_path, coco(8))])
    with pytest.raises(ResourceError, match=r"E-WORKER a loader process died .*Killed.*data\.workers=0"):
        predict(Killer(), eval_loader(data, SIZE, batch=1, workers=1), progress=False)


def test_bf16_computes_in_bf16_and_gives_plain_floats() -> None:
    prediction = _prediction(np.array([[0, 0, 8, 8]]))
    prediction = {key: value.bfloat16() if value.is_floating_point() else value for key, value in prediction.items()}
    model = Fake([prediction])
    [result] = predict(model, [_batch([fit(SIZE, SIZE)], [1])], precision="bf16", progress=False)
    assert model.calls[0]["compute"] == torch.bfloat16
    assert result["bbox"] == [0.0, 0.0, 8.0, 8.0]


def test_latency_times_images_one_by_one_after_warm_up() -> None:
    model = Fake().train()
    images = torch.zeros(5, 1, 3, *SIZE, dtype=torch.uint8)
    figures = latency(model, images, warm_up=2)
    assert [call["shape"] for call in model.calls] == [(1, 3, *SIZE)] * 7
    assert not any(call["training"] or call["grad"] for call in model.calls)
    assert model.training
    assert 0 < figures["median_ms"] <= figures["p90_ms"] < 1000
    assert figures["images"] == 5
    assert figures["threads"] == torch.get_num_threads()
    assert (figures["device"], figures["precision"]) == ("cpu", "fp32")


def test_a_photo_in_tiles_is_timed_as_a_whole() -> None:
    model = Fake()
    figures = latency(model, [torch.zeros(9, 3, *SIZE, dtype=torch.uint8)] * 2, warm_up=1)
    assert [call["shape"] for call in model.calls] == [(1, 3, *SIZE)] * 27
    assert figures["images"] == 2


def test_latency_without_images() -> None:
    figures = latency(Fake(), [])
    assert (figures["images"], figures["median_ms"], figures["p90_ms"]) == (0, None, None)
