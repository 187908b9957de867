"""One trained detector and one exported file per head, made once for all tests that look at them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from cvpeft.export.onnx import export_onnx
from tests.export.stand_in import CLASSES, HEADS, trained


@pytest.fixture(scope="session", params=HEADS)
def detector(request) -> nn.Module:
    return trained(request.param)


@pytest.fixture(scope="session")
def exported(detector, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return export_onnx(detector, folder / "model.onnx", classes=CLASSES, metadata={"licence": "Apache-2.0"})


@pytest.fixture(scope="session")
def quick() -> nn.Module:
    """The detector that exports fastest, for tests of what happens around an export."""
    return trained("fcos")


@pytest.fixture(scope="session")
def quick_file(quick, tmp_path_factory) -> Path:
    return export_onnx(quick, tmp_path_factory.mktemp("quick") / "model.onnx", classes=CLASSES)
