"""What one run moves, how far it has come, and both of them to disk and back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.config import schema
from cvpeft.data.splits import Splits
from cvpeft.errors import CheckpointError
from cvpeft.peft.adapter import Adapter, by_class
from cvpeft.peft.state import owned, remembered
from cvpeft.train.checkpoint import State, load_state, optimizer_tensors, require_space, restore_optimizer, save_state
from cvpeft.train.optim import EMA

__all__ = ["Progress", "Trainer", "resume", "save"]

log = logging.getLogger(__name__)
COPIES = 14  # of the trained tensors on disk: weights, average and two moments in three states, and two adapter folders


@dataclass
class Progress:
    """Where a run stands; all of it is in the resume state."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are in a step
    step: int = 0  # optimizer steps done
    sums: dict[str, float] = field(default_factory=dict)  # losses of this epoch, summed over its steps
    best: float = -1.0
    stale: int = 0  # evaluations since the best one
    seconds: float = 0.0  # training time, evaluations left out
    records: int = 0  # lines of the log
    finished: bool = False


@dataclass
class Trainer:
    """Everything that one run moves."""

    settings: schema.Settings
    folder: Path
    splits: Splits
    model: nn.Module
    meta: dict[str, Any]
    device: torch.device
    precision: str  # "bf16" or "fp32"
    holds_low: bool  # whether frozen matrices are held in bf16
    optimizer: torch.optim.Optimizer
    ema: EMA
    progress: Progress = field(default_factory=Progress)
    signum: int = 0
    told: float = field(default_factory=time.perf_counter)  # when the log last told of progress

    @cached_property
    def adapters(self) -> dict[type[Adapter], list[Adapter]]:
        """Asked for in every step, and the same in all of them."""
        return by_class(self.model)

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.splits.train.images) / self.settings.train.batch)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.batches_per_epoch / self.settings.train.accumulate)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.settings.train.epochs


def save(t: Trainer) -> None:
    """Write the resume state; ResourceError where the disk refuses, and then the state before it stands."""
    rng = {"torch": torch.get_rng_state()}
    if t.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(t.device)
    tensors = {
        "model": owned(t.model),
        "ema": t.ema.average,
        "optimizer": optimizer_tensors(t.optimizer),
        "rng": rng,
    }
    if memory := remembered(t.model):
        tensors["methods"] = memory
    values = {
        "progress": asdict(t.progress), "ema_steps": t.ema.steps, "data": t.meta["data"], "base": t.meta["base"],
        **_numbers(t),
    }  # fmt: skip
    save_state(t.folder / "last", State(tensors, values))


def _numbers(t: Trainer) -> dict[str, str]:
    """What `auto` in the settings of the same names came to."""
    return {"device": t.device.type, "precision": t.precision}


def resume(t: Trainer) -> None:
    """Take up the run's own state, if there is one; CheckpointError where it belongs to other data or weights,
    or to another device or number type."""
    found = load_state(t.folder / "last")
    if found is None:
        require_space(t.folder, COPIES * sum(p.nbytes for p in owned(t.model).values()))
        return
    state, place = found
    _check_same(t, state)
    try:
        _take_up(t, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise _refusal(t, f"the state was written by another version ({type(e).__name__}: {e})") from e
    log.info("going on from %s: epoch %d, step %d", place.name, t.progress.epoch + 1, t.progress.step)


def _check_same(t: Trainer, state: State) -> None:
    for key, what in (("data", "the json files of the data"), ("base", "the base weights")):
        if state.values.get(key) != t.meta[key]:
            raise _refusal(t, f"{what} are not those that the run began with")
    for key, now in _numbers(t).items():
        if (then := state.values.get(key, now)) != now:
            raise _refusal(
                t, f"the run began with train.{key} {then} and is now at {now}", f"set train.{key}={then}, or "
            )


def _take_up(t: Trainer, state: State) -> None:
    mine = owned(t.model)
    _check_keys(mine, state.tensors["model"])
    _check_keys(mine, state.tensors["ema"])
    with torch.no_grad():
        for key, tensor in mine.items():
            tensor.copy_(state.tensors["model"][key])
            t.ema.average[key].copy_(state.tensors["ema"][key])
    memory, stored = remembered(t.model), state.tensors.get("methods", {})
    _check_keys(memory, stored)
    for key, tensor in memory.items():
        tensor.copy_(stored[key])
    t.ema.steps = state.values["ema_steps"]
    restore_optimizer(t.optimizer, state.tensors["optimizer"])
    torch.set_rng_state(state.tensors["rng"]["torch"])
    if t.device.type == "cuda":
        torch.cuda.set_rng_state(state.tensors["rng"]["cuda"], t.device)
    t.progress = Progress(**state.values["progress"])


def _check_keys(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if differing := sorted(mine.keys() ^ theirs.keys()):
        raise ValueError(f"{len(differing)} tensors differ, first {', '.join(differing[:5])}")


def _refusal(t: Trainer, what: str, remedy: str = "") -> CheckpointError:
    why, fix = "the result would be of neither", f"{remedy}start again under another run.name"
    return CheckpointError("RESUME", what, where=str(t.folder), why=why, fix=fix)
