"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454): all places share one random A and B; each trains two vectors.

dW = diag(b) B diag(d) A with b = 0 at the start. A and B are stored with the adapter: a seed would not give them back
on another machine.

Letters: I inputs, O outputs, R rank, k side of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, Foreign, plain
from cvpeft.peft.weight_change import WeightChange, check_rank, drawn, matrix_shape
from cvpeft.types import Site

__all__ = ["Vera"]


class Vera(WeightChange):
    """Two vectors around a shared random pair; O + R trained parameters. Wants a high learning rate.

    rank: R; large, as nothing of its size is trained but d. start: of d, not 0.
    """

    def __init__(
        self, base: nn.Module, site: Site, pair: nn.Module | None = None, *, rank: int = 64, start: float = 0.1
    ) -> None:
        super().__init__(base, site)
        if start == 0:
            fix = "set start to another number"
            raise AdapterError("VERA", "start 0", why="nothing would be trained: b is 0 at the start too", fix=fix)
        self.rows, self.columns = matrix_shape(base)
        self.pair = pair or _Pair(base, rank, [(self.rows, self.columns)])
        self.b = drawn(base, self.rows, zero=True)
        self.d = nn.Parameter(torch.full((rank,), start, device=self.b.device))

    @classmethod
    def build(cls, places: Sequence[tuple[nn.Module, Site]], **settings: Any) -> list[Adapter]:
        shapes = [matrix_shape(base) for base, _ in places]
        pair = _Pair(places[0][0], settings.get("rank", 64), shapes)
        return [cls(base, site, pair, **settings) for base, site in places]

    def to_hf(self) -> Foreign | None:
        if isinstance(plain(self.base), nn.Conv2d):
            return None
        tensors = {"vera_lambda_b": self.b, "vera_lambda_d": self.d}
        shared = {f"base_model.vera_{name}": self.pair.get_buffer(name) for name in ("A", "B")}
        return Foreign("VERA", tensors, {"save_projection": True}, len(self.d), shared=shared)

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        return {"rank": stored.rank} if stored.kind == "VERA" else None

    def change(self) -> Tensor:
        A, B = self.pair.get_buffer("A")[:, : self.columns], self.pair.get_buffer("B")[: self.rows]
        matrix = (self.b[:, None] * B) @ (self.d[:, None] * A)  # (O, I k k)
        return matrix.view_as(plain(self.base).get_parameter("weight"))


class _Pair(nn.Module):
    """The frozen random A (R, most columns) and B (most rows, R) of all places."""

    def __init__(self, base: nn.Module, rank: int, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        check_rank(Vera.method, rank)
        rows, columns = (max(sizes) for sizes in zip(*shapes, strict=True))
        self.register_buffer("A", drawn(base, rank, columns).detach())
        self.register_buffer("B", drawn(base, rows, rank).detach())
