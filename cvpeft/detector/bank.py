"""One base in memory and the adapters of many sites, of which one is in use at a time, or a mix of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvpeft.detector.saved import WEIGHTS, load_run, read_config
from cvpeft.errors import CheckpointError, ConfigError
from cvpeft.peft.adapter import Adapter, walk, weighted_sum
from cvpeft.peft.state import owned, read_owned

__all__ = ["AdapterBank"]

ALIKE = ("base", "classes", "detector", "methods", "mode", "preprocessing", "sites")  # of adapter_config.json
NEWER = ("windows",)  # the same, where both have it: older versions wrote none


class AdapterBank:
    """A detector whose adapter is exchanged without loading the base again.

    model: the detector, in eval mode, with the adapter that was chosen last. thresholds: that adapter's best score of
    each class; empty after a mix. current: its name; "" after a mix.
    """

    def __init__(self, runs: Mapping[str, Path], overrides: Sequence[str] = ()) -> None:
        """runs: name -> folder of a finished run; all of one base, with the same methods, classes and sizes.
        overrides: of the settings of the first, which the detector is built from.

        ConfigError, CheckpointError: no run, a run in mode full, or one that is not like the first.
        """
        if not runs:
            raise ConfigError("BANK", "no run is named", fix="give at least one")
        first = next(iter(runs))
        loaded = load_run(runs[first], overrides)
        self.model: nn.Module = loaded.model
        self.classes = loaded.classes
        self._metas: dict[str, dict[str, Any]] = {}
        self._states: dict[str, dict[str, Tensor]] = {}
        for name, run in runs.items():
            self._metas[name] = meta = read_config(run / "adapter")
            told = [key for key in NEWER if key in meta and key in self._metas[first]]
            if differing := [key for key in (*ALIKE, *told) if meta.get(key) != self._metas[first].get(key)]:
                what = f"its {' and '.join(differing)} differ from those of {runs[first]}"
                raise CheckpointError("BANK", what, where=str(run), why="one base carries adapters of one kind")
            if meta["mode"] == "full":
                raise ConfigError("BANK", "the run was trained whole", where=str(run), why="it has no base to share")
            self._states[name] = read_owned(run / "adapter" / WEIGHTS, self.model)
        self.current = ""
        self.thresholds: dict[str, float] = {}
        self.use(first)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._states)

    def use(self, name: str) -> None:
        """Put another adapter in; ConfigError where there is none of this name."""
        self._copy(self._state(name))
        self.current, self.thresholds = name, dict(self._metas[name].get("thresholds") or {})

    def mix(self, weights: Mapping[str, float], how: Literal["linear", "svd"] = "svd") -> None:
        """Put a weighted mix of adapters in.

        weights: of a sum of 1, as neck and head, trained as copies, are summed themselves.
        svd: what methods change is summed, and the sums of lora, lora_qkv and adalora are cut to their rank by an SVD.
        linear: all tensors are summed. Where a change is a product, that also multiplies one's factors with the
        other's; of bottlenecks, prompts and prefixes it is no sum of changes either.
        ConfigError: no weight, a sum that is not 1, or an unknown name. AdapterError: svd, and a method whose changes
        cannot be summed.
        """
        if not weights:
            raise ConfigError("BANK", "a mix of nothing", fix="give a weight for at least one adapter")
        if not math.isclose(total := sum(weights.values()), 1, abs_tol=1e-6):
            what, why = f"the weights of a mix sum to {total:g}", "neck and head are copies, which it would scale"
            raise ConfigError("BANK", what, why=why, fix="divide each weight by the sum of all")
        states, shares = [self._state(name) for name in weights], list(weights.values())
        mixed = weighted_sum(states, shares)
        for place in walk(self.model):
            if how == "svd" and isinstance(place.module, Adapter):
                prefix = f"{place.prefix}."
                own = [{k.removeprefix(prefix): t for k, t in s.items() if k.startswith(prefix)} for s in states]
                if own[0]:
                    mixed |= {prefix + key: t for key, t in place.module.mixed(own, shares).items()}
        self._copy(mixed)
        self.current, self.thresholds = "", {}

    def _state(self, name: str) -> dict[str, Tensor]:
        if name not in self._states:
            raise ConfigError("BANK", f"there is no adapter '{name}'", fix=f"choose among {', '.join(self.names)}")
        return self._states[name]

    @torch.no_grad()
    def _copy(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in owned(self.model).items():
            tensor.copy_(state[key])
