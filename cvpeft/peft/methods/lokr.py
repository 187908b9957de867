"""LoKr (Edalati et al. 2022, arXiv 2212.10650, "KronA"; Yeh et al. 2023, arXiv 2309.14859): dW is a Kronecker product.

dW = s C (x) (B A): C is small and dense and 0 at the start, B A of low rank and as large as a block of W.

Letters: I inputs, O outputs, R rank, k side of a kernel; o1 o2 = O, i1 i2 = I.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Foreign, plain
from cvpeft.peft.weight_change import WeightChange, check_rank, drawn
from cvpeft.types import Site

__all__ = ["LoKr"]


class LoKr(WeightChange):
    """A Kronecker product; o1 i1 + R (o2 + i2 k k) parameters.

    rank: R. alpha: the change is scaled by alpha / rank; empty: rank.
    factor: most rows and columns of C; o1 and i1 are the largest divisors of O and I up to it; 0: up to their roots.
    """

    def __init__(
        self, base: nn.Module, site: Site, *, rank: int = 8, alpha: float | None = None, factor: int = 0
    ) -> None:
        super().__init__(base, site)
        check_rank(self.method, rank, alpha)
        if factor < 0:
            raise AdapterError("LOKR", f"factor {factor}", fix="set factor from 0")
        self.factor, self.scale = factor, 1.0 if alpha is None else alpha / rank
        weight = plain(base).get_parameter("weight")
        outputs, inputs = weight.shape[:2]
        self.kernel = weight.shape[2:]
        o1, i1 = _divisor(outputs, factor), _divisor(inputs, factor)
        self.C = drawn(base, o1, i1, zero=True)
        self.B = drawn(base, outputs // o1, rank)
        self.A = drawn(base, rank, inputs // i1 * math.prod(self.kernel))

    def to_hf(self) -> Foreign | None:
        if self.factor:
            return None  # HF peft cuts by another rule then
        o2, i2 = len(self.B), self.A.shape[1] // math.prod(self.kernel)
        rank = len(self.A)
        tensors: dict[str, Tensor] = {"lokr_w1": self.C, "lokr_w2_a": self.B, "lokr_w2_b": self.A}
        if rank >= max(o2, i2) / 2:  # HF peft then keeps the block itself
            tensors = {"lokr_w1": self.C, "lokr_w2": (self.B @ self.A).view(o2, i2, *self.kernel)}
        return Foreign("LOKR", tensors, {"decompose_factor": -1}, rank, self.scale * rank)

    def change(self) -> Tensor:
        block = (self.B @ self.A).view(len(self.B), -1, *self.kernel)  # (o2, i2, k, k)
        small = self.C.view(*self.C.shape, *[1] * len(self.kernel))  # (o1, i1, 1, 1)
        return self.scale * torch.kron(small, block)  # (O, I, k, k)


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` that is at most `most`, or its square root."""
    limit = most or math.isqrt(size)
    return next(d for d in range(min(limit, size), 0, -1) if size % d == 0)
