"""What a process has taken of the machine's memory, told without torch: importing that alone takes half a GiB."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["process_peak"]

STATUS = Path("/proc/self/status")


def process_peak() -> float:
    """Peak resident memory of this process since it started, in MiB."""
    # macOS has no such file, and not every kernel puts the line into it: that of gVisor's sandboxes does not.
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith("VmHWM"):  # ru_maxrss is inherited: a small child of a large process would show the parent's
            return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
