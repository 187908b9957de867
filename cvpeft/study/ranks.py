"""Which rank each place needs, read off a run that was trained at a rank too high.

What training did to a weight is a matrix, and its singular values say how many directions matter. AdaLoRA (Zhang et al.
2023, arXiv 2303.10512) takes ranks away while it trains; this looks once, after a cheap run, and the next run is
trained with the ranks that are left.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvpeft.detector.saved import load_run
from cvpeft.errors import ConfigError
from cvpeft.peft.adapter import Adapter, Dense, adapters

__all__ = ["Ranks", "needed_ranks"]


@dataclass(frozen=True)
class Ranks:
    """ranks: path of a site -> rank, below the backbone or, in scope detector, the detector.

    scope: the run's peft.scope. before, after: parameters of a LoRA at the run's ranks and at these.
    """

    ranks: dict[str, int]
    scope: str
    keep: float
    before: int
    after: int

    def yaml(self) -> str:
        """The ranks as peft.methods of a config, the commonest rank first; its places are those of the run."""
        common = Counter(self.ranks.values()).most_common(1)[0][0]
        others = [f"          {path}: {{rank: {rank}}}" for path, rank in self.ranks.items() if rank != common]
        lines = ["peft:", f"  scope: {self.scope}", "  methods:", "    - lora:", f"        rank: {common}"]
        lines += ["        targets:", *(f"          - {path}" for path in self.ranks)]
        lines += ["        patterns:", *others] if others else []
        share = f"# {100 * self.keep:g}% of the change at each place: {self.before:,} parameters become {self.after:,}"
        return "\n".join([share, *lines])


def needed_ranks(run: Path, keep: float = 0.9, overrides: Sequence[str] = ()) -> Ranks:
    """The smallest rank at each place that holds the share `keep` of the change's squared size.

    run: of mode adapters, whose method changes weights of Linear or Conv2d (lora, dora, loha, ...). overrides:
    `key=value` for its config, such as where its base lies now.
    ConfigError: keep is not in 0..1, or nothing in the run changes a weight.
    """
    if not 0 < keep <= 1:
        raise ConfigError("RANKS", f"the share is {keep:g}", fix="give one above 0, up to 1")
    loaded = load_run(run, overrides)
    root: Any = loaded.model
    if (scope := loaded.settings.peft.scope) == "backbone":
        root = root.backbone.body.net
    changes = {path: change for path, stack in adapters(root).items() if (change := _change(stack)) is not None}
    if not any(change.any() for change in changes.values()):
        what = "no method in it changes a weight"
        raise ConfigError("RANKS", what, where=str(run), fix="name a run that was trained with lora")
    found = {path: torch.linalg.svdvals(change) for path, change in changes.items()}
    ranks = {path: _rank(values, keep) for path, values in found.items()}
    sizes = {path: sum(change.shape) for path, change in changes.items()}
    before = sum(_full_rank(values) * sizes[path] for path, values in found.items())
    return Ranks(ranks, scope, keep, before, sum(rank * sizes[path] for path, rank in ranks.items()))


def _change(stack: list[Adapter]) -> Tensor | None:
    """(O, I k k) float64: what the innermost Adapter does to its module's weight; None where it does not fold."""
    adapter = copy.deepcopy(stack[0]).double()  # float32 would round W + dW: a small change would have every rank
    merged = None if isinstance(adapter, Dense) else adapter.merged()
    weight = None if merged is None else getattr(merged, "weight", None)
    if weight is None or weight.ndim < 2:
        return None
    base = adapter.base.get_parameter("weight")
    return (weight.detach() - base.detach()).flatten(1)


def _rank(values: Tensor, keep: float) -> int:
    energy = values.square().cumsum(0)
    return int((energy < keep * energy[-1] * (1 - 1e-9)).sum()) + 1 if energy[-1] > 0 else 1


def _full_rank(values: Tensor) -> int:
    return max(1, int((values > 1e-5 * values[0]).sum()))
