"""A config that holds every kind of value, and signatures as three methods would give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest

GOOD = """\
# cvpeft train configs/good.yaml
run: {name: good, seed: 7, needs: base.yaml}
data:
  root: ../data
  train: [a.json, b.json]
  val: val.json
  classes: [good, broke]
  size: [320, 480]
  augment: [{HorizontalFlip: {p: 0.5}}, RandomRain]
  render: {city: a, train: 20}
backbone: {name: vit, weights: ../weights/vit.safetensors, drop_path: 0}
peft:
  mode: adapters
  methods:
    - lora: {rank: 8, alpha: 16, targets: attn.qkv}
    - vpt
detector: {head: fcos, anchor_sizes: [16, 32.5, 64]}
train:
  epochs: 3
  lr: {adapter: 5e-3, head: 1e-4}
  tensorboard: true
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """Writes a text or bytes to a path below the working folder and gives the relative path."""

    def _write(content: str | bytes, name: str = "x.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def _lora(*, rank: int = 8, alpha: float = 16.0, rows: Literal["qkv", "qv"] = "qkv", dropout: float = 0.0) -> None: ...


def _vpt(*, tokens: int = 10, deep: bool = False, blocks: tuple[int, ...] | None = None) -> None: ...


def _pattern(*, ranks: dict[str, int], where: tuple[str, ...] = ()) -> None: ...


@pytest.fixture(scope="session")
def methods() -> Mapping[str, inspect.Signature]:
    """One with annotations as text, as `from __future__ import annotations` leaves them, two with resolved ones."""
    return {
        "lora": inspect.signature(_lora),
        "vpt": inspect.signature(_vpt, eval_str=True),
        "pattern": inspect.signature(_pattern, eval_str=True),
    }
