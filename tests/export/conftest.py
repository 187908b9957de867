"""One trained detector and one exported file per head, made once for all tests that look at them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from torch import nn

from cvpeft.export.onnx import export_onnx
from tests.export.stand_in import CLASSES, HEADS, trained


@pytest.fixture(scope="session", params=HEADS)
def detector(request) -> nn.Module:
    return trained(request.param)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this run of the tests share: an export takes a quarter of a minute."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "exported"
    folder.mkdir(exist_ok=True)
    return folder


def from_shelf(shelf: Path, detector: nn.Module) -> Path:
    """The file of this detector: whoever comes first exports it."""
    file = shelf / f"{type(detector).__name__}.onnx"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            export_onnx(detector, file, classes=CLASSES, metadata={"licence": "Apache-2.0"})
    return file


@pytest.fixture(scope="session")
def exported(detector: nn.Module, shelf: Path) -> Path:
    return from_shelf(shelf, detector)


@pytest.fixture(scope="session")
def quick() -> nn.Module:
    """The detector that exports fastest, for tests of what happens around an export."""
    return trained("retinanet")


@pytest.fixture(scope="session")
def quick_file(quick: nn.Module, shelf: Path) -> Path:
    return from_shelf(shelf, quick)
