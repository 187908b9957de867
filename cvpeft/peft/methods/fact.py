"""FacT (Jie & Deng 2022, arXiv 2212.03145), in tensor-train form: all places share two matrices, each has a core.

Weights are cut into C x C blocks, C the smaller side: dW of a block is s U S V with U and V shared by all blocks of one
width C, S its own, and V = 0 at the start. Where widths differ (stages of a ConvNeXt or Swin), each has its own pair.

Letters: C width, R rank, n blocks of one weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, check_scale, plain
from cvpeft.peft.weight_change import WeightChange, check_rank, drawn, matrix_shape
from cvpeft.types import Site

__all__ = ["FacT"]


class FacT(WeightChange):
    """A small core for each C x C block of a weight; n R R parameters, and 2 C R shared.

    By default weights that cannot be cut into squares are left out.
    rank: R. scale: s; the paper tunes it from 0.01 to 100.
    """

    def __init__(
        self, base: nn.Module, site: Site, pair: nn.Module | None = None, *, rank: int = 16, scale: float = 1.0
    ) -> None:
        super().__init__(base, site)
        check_scale(self.method, scale)
        rows, columns = matrix_shape(base)
        if not _is_cut(base):
            what, why = f"fact cannot take {site.path}, a {rows} x {columns} weight", "it cannot be cut into squares"
            raise AdapterError("FACT", what, why=why, fix="leave it out of targets")
        self.scale, self.pair = scale, pair or _Pair(base, rank)
        self.core = drawn(base, rows // _width(base), columns // _width(base), rank, rank)

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        own = [(module, site) for module, site in places if site.role in cls.targets]
        return [site for module, site in own if not isinstance(module, cls.accepts) or _is_cut(module)]

    @classmethod
    def build(cls, places: Sequence[tuple[nn.Module, Site]], **settings: Any) -> list[Adapter]:
        widths = {_width(base): base for base, _ in places}
        pairs = {width: _Pair(base, settings.get("rank", 16)) for width, base in widths.items()}
        return [cls(base, site, pairs[_width(base)], **settings) for base, site in places]

    def change(self) -> Tensor:
        U, V = self.pair.get_parameter("U"), self.pair.get_parameter("V")  # (C, R), (R, C)
        blocks = self.scale * (U @ self.core @ V)  # (rows / C, columns / C, C, C)
        return blocks.transpose(1, 2).reshape(plain(self.base).get_parameter("weight").shape)


def _is_cut(base: nn.Module) -> bool:
    return not any(side % _width(base) for side in matrix_shape(base))


def _width(base: nn.Module) -> int:
    return min(matrix_shape(base))


class _Pair(nn.Module):
    """U and V of all blocks of one width."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        check_rank(FacT.method, rank)
        width = _width(base)
        self.U, self.V = drawn(base, width, rank), drawn(base, rank, width, zero=True)
