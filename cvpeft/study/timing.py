"""Durations that may be compared: measured in turn, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from cvpeft.detector.saved import load_run
from cvpeft.export.run import verification_inputs
from cvpeft.peft.merge import merge, unmergeable

__all__ = ["Latency", "detector_calls", "latencies", "median_ms", "side_by_side"]


def side_by_side(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call in every round; in a round each is called once. One more round before warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                times[name].append((time.perf_counter() - started) * 1000)
    return times


def median_ms(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each call's times."""
    return {name: statistics.median(values) for name, values in times.items()}


class Latency(TypedDict):
    """Median milliseconds of a detector's forward on one image; merged is None where that cannot be."""

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
