"""Fixtures of every test: real photographs and real weights, where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path.name}, which lies in the folder `shared` beside the checkout and is not there")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with measuring data beside the checkout."""
    return _present(SHARED)


@pytest.fixture(scope="session")
def potholes() -> Path:
    """Real road photographs: train.json, val.json, images/."""
    return _present(SHARED / "data" / "road_potholes")


@pytest.fixture(scope="session")
def deit_tiny_file() -> Path:
    """Real ImageNet weights of DeiT-Tiny."""
    return _present(SHARED / "weights" / "deit_tiny_patch16_224.safetensors")
