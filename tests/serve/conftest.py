"""A stand-in model that finds the same boxes in every white photo, and a service with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cvpeft.runtime.onnx_detector import Detector
from cvpeft.serve.app import Limits
from tests.runtime.test_onnx_detector import METADATA, model_file
from tests.serve.client import running

BOXES = [(10, 30, 50, 60), (0, 0, 128, 96), (64, 24, 128, 72)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes of class 1, one of class 2, in a network input of 96 x 128."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return model_file(path, {**METADATA, "run": "city_a"}, BOXES, [0.9, 0.4, 0.3], [1, 1, 2])


@pytest.fixture(scope="session")
def port(model: Path) -> Iterator[int]:
    """A service that takes 1 MB and 2 megapixels."""
    with running(Detector(model, threads=1), Limits(1, 2)) as port:
        yield port
