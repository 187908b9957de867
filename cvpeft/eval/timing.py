"""Durations that may be compared: measured in turn, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["median_ms", "side_by_side"]


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
