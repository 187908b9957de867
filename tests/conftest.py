"""Fixtures of every test: real photographs and real weights, where they lie beside the checkout; a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


LONG = ("tests/export", "tests/study", "tests/train")  # folders whose files take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: where processes share the files, none ends alone with a long one."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)
