"""LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098, "FedPara"): dW is the product, entry by entry, of two low-rank ones.

dW = s (B1 A1) * (B2 A2), whose rank may reach R squared; A2 = 0 at the start.

Letters: I inputs, O outputs, R rank, k side of a kernel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cvpeft.peft.adapter import Foreign, plain
from cvpeft.peft.weight_change import WeightChange, check_rank, drawn, matrix_shape
from cvpeft.types import Site

__all__ = ["LoHa"]


class LoHa(WeightChange):
    """A Hadamard product of two low-rank changes; 2 R (I k k + O) parameters.

    rank: R. alpha: the change is scaled by alpha / rank; empty: rank.
    """

    def __init__(self, base: nn.Module, site: Site, *, rank: int = 8, alpha: float | None = None) -> None:
        super().__init__(base, site)
        check_rank(self.method, rank, alpha)
        self.scale = 1.0 if alpha is None else alpha / rank
        rows, columns = matrix_shape(base)
        self.B1, self.B2 = drawn(base, rows, rank), drawn(base, rows, rank)
        self.A1, self.A2 = drawn(base, rank, columns), drawn(base, rank, columns, zero=True)
        # Wide at the start, as in the paper: what multiplies the zero decides how fast it grows.
        for factor, deviation in ((self.B1, 1.0), (self.B2, 0.1), (self.A1, 1.0)):
            nn.init.normal_(factor, std=deviation)

    def to_hf(self) -> Foreign:
        tensors = {"hada_w1_a": self.B1, "hada_w1_b": self.A1, "hada_w2_a": self.B2, "hada_w2_b": self.A2}
        rank = len(self.A1)
        return Foreign("LOHA", tensors, {}, rank, self.scale * rank)

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        return {"rank": stored.rank, "alpha": stored.alpha} if stored.kind == "LOHA" else None

    def change(self) -> Tensor:
        matrix = self.scale * (self.B1 @ self.A1) * (self.B2 @ self.A2)  # (O, I k k)
        return matrix.view_as(plain(self.base).get_parameter("weight"))
