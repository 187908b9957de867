"""Norm tuning: of a frozen network only the gains and shifts of its norms are trained.

Zhao et al. 2023, arXiv 2312.11420; for vision Basu et al. 2023 (arXiv 2304.01917, "LN-Tune"). They are trained as a
copy, so that the frozen ones stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cvpeft.peft.adapter import Dense, Foreign, in_own_type
from cvpeft.types import Site

__all__ = ["Norm"]


class Norm(Dense):
    """Trains a copy of a norm's gain and shift; 2 C parameters. By default every norm of the backbone."""

    accepts = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__(base, site)

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        return [site for module, site in places if isinstance(module, cls.accepts)]

    def to_hf(self) -> Foreign:
        return Foreign("LN_TUNING", {f"ln_tuning_layers.{name}": t for name, t in self.trained.named_parameters()})

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        return {} if stored.kind == "LN_TUNING" else None

    def forward(self, x: Tensor) -> Tensor:
        return in_own_type(self.trained, x)
