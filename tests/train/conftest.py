from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import ellipses


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums do not depend on the machine then, and a forked child may compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five photos to train on, one of them without boxes, and three of val."""
    ellipses(tmp_path, 5, negatives=1)
    ellipses(tmp_path, 3, name="val")
    return tmp_path
