"""LoKr (Edalati et al. 2022, arXiv 2212.10650, "KronA"; Yeh et al. 2023, arXiv 2309.14859): dW is a Kronecker product.

dW = s C (x) (B A): C is small and dense and 0 at the start, B A of low rank and as large as a block of W.

Letters: I inputs, O outputs, R rank, k side of a kernel; o1 o2 = O, i1 i2 = I.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    whole: a block whose longer side is at most 2 R is trained itself in the place of B A, as HF peft has it.
    """

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        *,
        rank: int = 8,
        alpha: float | None = None,
        factor: int = 0,
        whole: bool = False,
    ) -> None:
        super().__init__(base, site)
        check_rank(self.method, rank, alpha)
        if factor < 0:
            raise AdapterError("LOKR", f"factor {factor}", fix="set factor from 0")
        self.rank, self.factor, self.scale = rank, factor, 1.0 if alpha is None else alpha / rank
        weight = plain(base).get_parameter("weight")
        outputs, inputs = weight.shape[:2]
        self.kernel = weight.shape[2:]
        o1, i1 = _divisor(outputs, factor), _divisor(inputs, factor)
        self.C = drawn(base, o1, i1, zero=True)
        o2, i2 = outputs // o1, inputs // i1
        self.is_small = rank >= max(o2, i2) / 2
        self.D = drawn(base, o2, i2 * math.prod(self.kernel)) if whole and self.is_small else None
        if self.D is None:
            self.B, self.A = drawn(base, o2, rank), drawn(base, rank, i2 * math.prod(self.kernel))

    def change(self) -> Tensor:
        small = self.C.view(*self.C.shape, *[1] * len(self.kernel))  # (o1, i1, 1, 1)
        return self.scale * torch.kron(small, self._block())  # (O, I, k, k)

    def _block(self) -> Tensor:
        block = self.B @ self.A if self.D is None else self.D
        return block.view(len(block), -1, *self.kernel)  # (o2, i2, k, k)

    def to_hf(self) -> Foreign | None:
        if self.factor and not all(_cut_alike(n, self.factor) for n in self._sides()):
            return None
        tensors: dict[str, Tensor] = {"lokr_w1": self.C}
        tensors |= {"lokr_w2": self._block()} if self.is_small else {"lokr_w2_a": self.B, "lokr_w2_b": self.A}
        settings = {"decompose_factor": self.factor or -1}
        return Foreign("LOKR", tensors, settings, self.rank, self.scale * self.rank)

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        if stored.kind != "LOKR":
            return None
        factor = stored.settings.get("decompose_factor", -1)
        return {"rank": stored.rank, "alpha": stored.alpha, "factor": max(factor, 0), "whole": True}

    def settled_hf(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """C may be stored as two factors (decompose_both), a convolution's block as three (use_effective_conv2d)."""
        found = dict(tensors)
        if {"lokr_w1_a", "lokr_w1_b"} <= found.keys():
            found["lokr_w1"] = found.pop("lokr_w1_a") @ found.pop("lokr_w1_b")
        if {"lokr_t2", "lokr_w2_a", "lokr_w2_b"} <= found.keys():  # (R, R, k, k), (R, o2), (R, i2)
            inner = torch.einsum("rskl,si->rikl", found.pop("lokr_t2"), found["lokr_w2_b"])
            found |= {"lokr_w2_a": found["lokr_w2_a"].T, "lokr_w2_b": inner.flatten(1)}
        return found

    def _sides(self) -> tuple[int, int]:
        rows, columns = plain(self.base).get_parameter("weight").shape[:2]
        return rows, columns


def _cut_alike(size: int, factor: int) -> bool:
    """Whether HF peft cuts as `_divisor` does: beyond the root of `size` it takes the factor itself, or the root."""
    return factor <= math.isqrt(size) or size % factor == 0


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` that is at most `most`, or its square root."""
    limit = most or math.isqrt(size)
    return next(d for d in range(min(limit, size), 0, -1) if size % d == 0)
