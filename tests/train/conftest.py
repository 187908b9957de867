from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .runs import make_data


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums do not depend on the machine then, and a forked child may compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_data(tmp_path)
    return tmp_path
