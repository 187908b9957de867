"""What a process has taken of the machine's memory, told without torch: importing that alone takes half a GiB."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["process_peak"]


def process_peak() -> float:
    """Peak resident memory of this process since it started, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss is inherited there: a small child of a large process would show the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
