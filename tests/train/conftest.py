from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cvpeft.eval import plots

from .runs import make_data


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums do not depend on the machine then, and a forked child may compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _sigint_stops() -> Iterator[None]:
    """It is ignored where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_data(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these trainings; tests/eval draws them."""
    for name in ("precision_recall", "confusion"):
        monkeypatch.setattr(plots, name, lambda _: b"")
