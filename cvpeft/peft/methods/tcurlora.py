"""tCURLoRA (He et al. 2025, arXiv 2501.02227): weights of equal shape are one tensor, its CUR cores are trained.

The weights of L layers are stacked, (L, O, I), and transformed by an FFT over the layers. In each slice of frequency r
rows and r columns of the slice itself are kept, C (O, r) and R (r, I), chosen once for all slices by their length. What
is trained is the core between them. Here the trained core is the change of it, zero at the start: dW is the inverse
transform of C U R. (The authors' published code never trains the core; this follows the formulas.)

Weights are real, so that the slices of negative frequency are the conjugates of the others and need no core of their
own. C and R are stored with the adapter: a machine that rounds otherwise might choose other rows.

Letters: L layers, F = L / 2 + 1 frequencies, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, plain, weighted_sum
from cvpeft.peft.weight_change import WeightChange, drawn
from cvpeft.types import Site

__all__ = ["TCurLora"]


class TCurLora(WeightChange):
    """A core for each frequency, shared by all places of one role and shape; 2 F R R parameters for all of them.

    rank: R, at most the shorter side of the weight.
    """

    def __init__(
        self, base: nn.Module, site: Site, stack: nn.Module | None = None, layer: int = 0, *, rank: int = 8
    ) -> None:
        super().__init__(base, site)
        self.stack, self.layer = stack or _Stack([base], rank, site), layer

    @classmethod
    def build(cls, places: Sequence[tuple[nn.Module, Site]], **settings: Any) -> list[Adapter]:
        groups: dict[tuple[str, torch.Size], list[tuple[nn.Module, Site]]] = {}
        for base, site in places:
            groups.setdefault((site.role, plain(base).get_parameter("weight").shape), []).append((base, site))
        built: dict[str, Adapter] = {}
        for group in groups.values():
            stack = _Stack([base for base, _ in group], settings.get("rank", 8), group[0][1])
            built |= {site.path: cls(base, site, stack, i, **settings) for i, (base, site) in enumerate(group)}
        return [built[site.path] for _, site in places]

    def change(self) -> Tensor:
        matrix: Tensor = self.stack.change(self.layer)  # type: ignore[operator]
        return matrix.view_as(plain(self.base).get_parameter("weight"))

    def mixed(self, states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """The weighted sum of the cores: what is kept of the weights is alike, as the base is.

        AdapterError: it is not, since a machine that rounds otherwise has chosen other rows.
        """
        first, *others = states
        kept = [key for key in first if key != "stack.core"]
        if any(not torch.equal(first[key], other[key]) for key in kept for other in others):
            what, why = f"the rows that are kept at {self.site.path} differ", "cores of other rows cannot be summed"
            raise AdapterError("MIX", what, why=why, fix="mix linearly (how='linear')")
        return {**first, **weighted_sum([{"stack.core": state["stack.core"]} for state in states], weights)}


class _Stack(nn.Module):
    """The weights of one shape in all layers: what is kept of them, and the cores."""

    left: Tensor  # (F, O, R, 2)
    right: Tensor  # (F, R, I, 2)

    def __init__(self, bases: Sequence[nn.Module], rank: int, site: Site) -> None:
        super().__init__()
        weights = [plain(base).get_parameter("weight").detach().float().flatten(1) for base in bases]
        if not 1 <= rank <= min(weights[0].shape):
            what = f"rank {rank} at {site.path}, a {weights[0].shape[0]} x {weights[0].shape[1]} weight"
            raise AdapterError("TCURLORA", what, fix=f"set rank from 1 to {min(weights[0].shape)}, or targets")
        self.layers = len(weights)
        stacked = torch.stack(weights)  # (L, O, I)
        slices = torch.fft.rfft(stacked, dim=0)  # (F, O, I) complex
        self.register_buffer("left", torch.view_as_real(slices[:, :, _longest(stacked, 1, rank)]))
        self.register_buffer("right", torch.view_as_real(slices[:, _longest(stacked, 2, rank)]))
        self.core = drawn(bases[0], len(slices), rank, rank, 2, zero=True)

    def change(self, layer: int) -> Tensor:
        """(O, I): the inverse transform of C U R at one layer, all frequencies in one product."""
        left, core, right = (torch.view_as_complex(t.float()) for t in (self.left, self.core, self.right))
        wave = self._wave(layer, left.device)[:, None, None]  # (F, 1, 1)
        product = (wave * left @ core).permute(1, 0, 2).flatten(1), right.flatten(0, 1)  # (O, F R), (F R, I)
        return product[0].real @ product[1].real - product[0].imag @ product[1].imag

    def _wave(self, layer: int, device: torch.device) -> Tensor:
        """(F,) complex: how much of each frequency a layer has; those with a conjugate count twice."""
        frequency = torch.arange(self.layers // 2 + 1, device=device)
        alone = (frequency == 0) | (2 * frequency == self.layers)
        size = torch.where(alone, 1.0, 2.0) / self.layers
        return torch.polar(size, 2 * math.pi * layer / self.layers * frequency.float())


def _longest(stacked: Tensor, axis: int, rank: int) -> Tensor:
    """(R,) the columns (axis 1 summed) or rows (axis 2) that are longest over all frequencies, in order.

    Their squares sum to L times those over the layers (Parseval), without the weight that half of the slices would
    give to the frequencies that have no conjugate.
    """
    length = stacked.square().sum((0, axis))
    return length.topk(rank).indices.sort().values
