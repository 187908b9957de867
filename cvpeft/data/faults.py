"""All faults of a data set in one error: the first twenty, and how many there are of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

from cvpeft.errors import DataError

__all__ = ["raise_faults", "refuse_seed", "seed_faults"]

SHOWN = 20  # faults that are printed


def raise_faults(faults: Sequence[DataError], *, fix: str = "") -> NoReturn:
    """Raise the only fault itself, or one DataError that tells the first of them and counts the others by code."""
    if len(faults) == 1:
        raise faults[0]
    lines = [f"  {fault}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        kinds = Counter(fault.code for fault in faults)
        lines.append(f"  and {len(faults) - SHOWN} more; in all " + ", ".join(f"{n} {c}" for c, n in kinds.items()))
    raise DataError("DATA", f"{len(faults)} faults in the data set\n" + "\n".join(lines).rstrip("."), fix=fix)


def seed_faults(seed: int) -> list[DataError]:
    """What is wrong with a seed that numpy's generators do not take."""
    return [DataError("SEED", f"the seed is {seed}", fix="use 0 or more")] if seed < 0 else []


def refuse_seed(seed: int) -> None:
    """DataError, see `seed_faults`."""
    for fault in seed_faults(seed):
        raise fault
