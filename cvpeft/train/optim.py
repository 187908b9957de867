"""The optimizer: a learning rate for each part, no decay where it hurts, warm-up and cosine, moving average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.train.muon import Muon

__all__ = ["EMA", "OPTIMIZERS", "param_groups", "warmup_cosine", "with_one_rate"]

OPTIMIZERS: Mapping[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]]
OPTIMIZERS = MappingProxyType({"adamw": torch.optim.AdamW, "muon": Muon})  # by their names in train.optimizer


def param_groups(
    parameters: Mapping[str, nn.Parameter],
    part_of: Callable[[str], str],
    lr: Mapping[str, float],
    weight_decay: float,
    undecayed: Set[str] = frozenset(),
    lr_factors: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Groups for an optimizer, one for each part, kind of decay and factor of the rate, in the order of the parameters.

    parameters: the trained tensors by canonical key. part_of: key -> name in `lr`.
    lr_factors: key -> what the rate of its part is multiplied by; 1 where it is not named.
    `full_lr` is the rate that a schedule scales, `part` the name of the group's part.
    Tensors of one dimension (norms, biases, scales) and those in `undecayed` are not decayed.
    """
    groups: dict[tuple[str, bool, float], list[nn.Parameter]] = {}
    for key, p in parameters.items():
        decayed = p.ndim > 1 and key not in undecayed
        groups.setdefault((part_of(key), decayed, lr_factors.get(key, 1.0)), []).append(p)
    return [
        {
            "params": ps, "lr": lr[part] * factor, "full_lr": lr[part] * factor, "factor": factor,
            "weight_decay": weight_decay * decayed, "part": part,
        }
        for (part, decayed, factor), ps in groups.items()
    ]  # fmt: skip


def with_one_rate(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer of OPTIMIZERS for the whole model, with the same learning rate everywhere."""
    parameters = dict(model.named_parameters())
    return OPTIMIZERS[name](param_groups(parameters, lambda _: "all", {"all": lr}, weight_decay))


def warmup_cosine(total: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 0 over `warmup * total` steps, then cosine to 0."""
    rise = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

    return factor


class EMA:
    """Moving average of the trained tensors (Polyak averaging), with a rising decay so that early steps are forgotten.

    decay: of the average per step, in 0..1; 0 keeps the tensors themselves.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.average = {key: t.detach().clone() for key, t in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the tensors after one optimizer step; integer tensors (counters) are copied."""
        self.steps += 1
        decay = min(self.decay, self.steps / (10 + self.steps))
        for key, mean in self.average.items():
            if mean.is_floating_point():
                mean.lerp_(tensors[key].detach(), 1 - decay)
            else:
                mean.copy_(tensors[key])

    @contextmanager
    def swapped_in(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """The model holds the average inside the block, and its own tensors again after it, whatever happens."""
        kept = {key: t.detach().clone() for key, t in tensors.items()}
        try:
            _copy(self.average, tensors)
            yield
        finally:
            _copy(kept, tensors)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for key, t in target.items():
        t.copy_(source[key])
