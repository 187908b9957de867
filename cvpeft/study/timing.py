"""How long the detectors of runs take, each as it was trained and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from cvpeft.detector.saved import load_run
from cvpeft.eval.timing import median_ms, side_by_side
from cvpeft.export.run import verification_inputs
from cvpeft.peft.merge import merge, unmergeable

__all__ = ["Latency", "detector_calls", "latencies"]


class Latency(TypedDict):
    """Median milliseconds of a detector's forward on one network input; merged is None where that cannot be."""

    unmerged: float
    merged: float | None


def latencies(runs: Mapping[str, Path], *, rounds: int) -> dict[str, Latency]:
    """Name -> latency of a finished run, on one of its own images, on the CPU in float32."""
    calls: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        loaded = load_run(run)
        forms = detector_calls(loaded.model, verification_inputs(loaded, 1)[0])
        calls |= {f"{name}/{form}": call for form, call in forms.items()}
    ms = median_ms(side_by_side(calls, rounds=rounds))
    return {name: {"unmerged": ms[f"{name}/unmerged"], "merged": ms.get(f"{name}/merged")} for name in runs}


def detector_calls(model: nn.Module, image: Tensor) -> dict[str, Callable[[], object]]:
    """unmerged and, where all its methods can be folded, merged: a detector's forward on one image (3, H, W) uint8."""
    models = {"unmerged": model} | ({} if unmergeable(model) else {"merged": merge(model)})
    return {name: _forward(one.eval(), image[None]) for name, one in models.items()}


def _forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            model(images)

    return call
