"""LoRA (Hu et al. 2021, arXiv 2106.09685): y = W x + s B A x with s = alpha / rank and B = 0 at the start.

Its variants are settings: rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) has s = alpha / sqrt(rank); LoRA+ (Hayou et al.
2024, arXiv 2402.12354) a higher learning rate for B; PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz
2024, arXiv 2406.01775) begin with the strongest part of W by its SVD or QR (s B A, and B A), which is taken off again:
the change is s (B A - B0 A0), so that the base stays as it is and the adapter's file is enough.

Letters: I inputs, O outputs, R rank, k side of a kernel.

| module                       | A            | B          | parameters    | the change of W              |
|------------------------------|--------------|------------|---------------|------------------------------|
| Linear                       | (R, I)       | (O, R)     | R (I + O)     | B A                          |
| fused qkv, n parts of it     | (n R, I)     | (n, O/3, R)| n R (I + O/3) | B_p A_p in the rows of part p|
| Conv2d                       | (R, I, k, k) | (O, R)     | R (I k k + O) | B A, A as (R, I k k)         |
| depthwise Conv2d             | (R, k k)     | (O, R)     | R (k k + O)   | B A as (O, 1, k, k)          |

A depthwise change is factorised in weight space: an activation-space pair would mix channels, could not be merged,
and at 7 x 7 has ten times the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, Foreign, plain
from cvpeft.peft.one_product import one_convolution, one_product, pays, pays_at_convolution
from cvpeft.peft.weight_change import check_plain, check_rank, folded, summed_products
from cvpeft.types import Site

__all__ = ["Lora"]

RANKS = {"default": 8, "large": 16, "small": 4, "ultra_small": 1}


class Lora(Adapter):
    """A low-rank change of a Linear or Conv2d.

    preset: default is rank 8, large 16, small 4, ultra_small 1; each with alpha = 2 rank.
    rank: takes the preset's place. alpha: the change is scaled by alpha / rank; empty: 2 rank.
    dropout: of the input of A, in training.
    scaling: what alpha is divided by, the rank or its root (rank_stabilized; alpha is 16 there if empty).
    init: of A and B; pissa and olora not at depthwise convolutions, nor at parts of a qkv.
    b_lr_ratio: learning rate of B over that of A; 16 in LoRA+. gated: s times a trained gate, sigmoid(0) at the start.
    qkv: at a fused qkv Linear, one pair for all of it (fused), or a pair for each part named; no matter elsewhere.
    """

    targets = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "neck", "head")
    accepts = (nn.Linear, nn.Conv2d)

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        *,
        preset: Literal["default", "large", "small", "ultra_small"] = "default",
        rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        qkv: Literal["fused", "q", "k", "v", "qk", "qv", "kv", "qkv"] = "fused",
        scaling: Literal["rank", "rank_stabilized"] = "rank",
        init: Literal["kaiming", "pissa", "olora"] = "kaiming",
        b_lr_ratio: float = 1.0,
        gated: bool = False,
    ) -> None:
        super().__init__(base, site)
        rank = RANKS[preset] if rank is None else rank
        check_rank(self.method, rank, alpha)
        if not 0 <= dropout < 1 or b_lr_ratio <= 0:
            what = f"dropout {dropout} with b_lr_ratio {b_lr_ratio}"
            raise AdapterError("LORA", what, fix="set dropout from 0 below 1 and b_lr_ratio above 0")
        if scaling == "rank":
            self.scale = 2.0 if alpha is None else alpha / rank
        else:
            self.scale = (16.0 if alpha is None else alpha) / math.sqrt(rank)
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Parameter(torch.zeros((), device=next(plain(base).parameters()).device)) if gated else None
        self.change = _change(plain(base), site, rank, "" if qkv == "fused" else qkv)
        if init != "kaiming":
            self._start(plain(base), init)
            self.undecayed = ("change.A", "change.B")  # the change is zero at A0 and B0, not at zero
        if b_lr_ratio != 1:
            self.lr_factors = {"change.B": b_lr_ratio}

    def _start(self, base: nn.Module, init: Literal["pissa", "olora"]) -> None:
        if not isinstance(self.change, _Pair):
            what = f"init {init} cannot be had at {self.site.path}, a {type(base).__name__}"
            raise AdapterError("LORA", what, fix="set init: kaiming for depthwise convolutions and parts of a qkv")
        A, B = _strongest(base.get_parameter("weight"), len(self.change.A), init)
        self.change.start_at(A, B, self.scale if init == "pissa" else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self._is_plain(_Linear) and pays(self.base, x):
            return one_product(x, cast(nn.Linear, self.base), self.change.A, self.change.B, self.scale)
        if self._is_plain(_Conv) and pays_at_convolution(self.base, x):
            return one_convolution(x, cast(nn.Conv2d, self.base), self.change.A, self.change.B, self.scale)
        y: Tensor = self.base(x)
        change: Tensor = self.change(self.dropout(x), plain(self.base), self._scale())
        return y + change.to(y.dtype)

    def _is_plain(self, kind: type[_Linear | _Conv]) -> bool:
        """Whether it is one A and one B of this kind and nothing else."""
        drops = self.training and self.dropout.p > 0
        return isinstance(self.change, kind) and self.change.A0 is None and not drops and self.gate is None

    def merged(self) -> nn.Module:
        scale = self.scale if self.gate is None else self.scale * self.gate.sigmoid().item()
        return folded(self.base, scale * self.change.weight())

    def to_hf(self) -> Foreign | None:
        change = self.change
        if isinstance(change, _Depthwise):
            return None
        A, B = change.fused()
        B = B if self.gate is None else self.gate.sigmoid() * B
        B = B.view(*B.shape, *[1] * (A.ndim - 2))
        alpha = self.scale * len(A)
        return Foreign("LORA", {"lora_A.weight": A, "lora_B.weight": B}, {}, len(A), alpha, "lora_alpha")

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        if stored.kind != "LORA" or stored.settings.get("use_dora"):
            return None
        dropout = stored.settings.get("lora_dropout")
        return {"rank": stored.rank, "alpha": stored.alpha, **({"dropout": dropout} if dropout else {})}

    def mixed(self, states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
        """The weighted sum of the changes B A, cut to the rank by its SVD: a sum of factors would mix their products.

        AdapterError: gates or PiSSA's and OLoRA's starts, which are no part of B A.
        """
        if set(states[0]) != {"change.A", "change.B"}:
            what = f"{self.site.path} holds {', '.join(states[0])}"
            raise AdapterError("MIX", what, why="only a plain B A can be cut to its rank", fix="mix linearly")
        A, B = summed_products([(s["change.A"], s["change.B"]) for s in states], weights)
        return {"change.A": A, "change.B": B}

    def _scale(self) -> float | Tensor:
        return self.scale if self.gate is None else self.scale * self.gate.sigmoid()


def _change(base: nn.Module, site: Site, rank: int, parts: str) -> _Linear | _Parts | _Conv | _Depthwise:
    check_plain("lora", base, site)
    if isinstance(base, nn.Linear):
        return _Parts(base, rank, parts) if parts and site.role == "attn.qkv" else _Linear(base, rank)
    assert isinstance(base, nn.Conv2d)
    return _Conv(base, rank) if base.groups == 1 else _Depthwise(base, rank)


def _pair(base: nn.Linear | nn.Conv2d, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[nn.Parameter, nn.Parameter]:
    """A drawn as nn.Linear draws its weight, B zero; float32 whatever the base is held in."""
    A = nn.Parameter(torch.empty(a, device=base.weight.device))
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A, nn.Parameter(torch.zeros(b, device=base.weight.device))


def _strongest(weight: Tensor, rank: int, init: Literal["pissa", "olora"]) -> tuple[Tensor, Tensor]:
    """A (R, I) and B (O, R) whose product is what the largest singular values, or the first columns, make of W."""
    w = weight.detach().float().flatten(1)
    if rank > min(w.shape):
        raise AdapterError("LORA", f"rank {rank} of a {w.shape[0]} x {w.shape[1]} weight", fix="lower rank")
    if init == "olora":
        q, r = torch.linalg.qr(w)
        return r[:rank], q[:, :rank]
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


# Each of the four computes its change of the output (forward) and of the weight, the latter without the scale. A and B
# follow the input's type, so that they serve under autocast and beside a base that is held in bfloat16. The scale is
# multiplied into A: that is a small tensor, and the output's change a large one, in the backward pass too.


class _Pair(nn.Module):
    """One A and one B; where they do not begin at B A = 0, what they begin at is taken off."""

    A: nn.Parameter
    B: nn.Parameter
    A0: Tensor | None
    B0: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A0", None)
        self.register_buffer("B0", None)

    def start_at(self, A: Tensor, B: Tensor, scale: float) -> None:
        """Begin with `scale` B A = the product that is given."""
        self.A.data, self.B.data = A.view_as(self.A) / scale**0.5, B / scale**0.5
        self.A0, self.B0 = self.A.detach().clone(), self.B.detach().clone()

    def forward(self, x: Tensor, base: Any, scale: float | Tensor) -> Tensor:
        change = self.through(x, base, scale * self.A, self.B)
        if self.A0 is None or self.B0 is None:
            return change
        return change - self.through(x, base, scale * self.A0, self.B0)

    def through(self, x: Tensor, base: Any, A: Tensor, B: Tensor) -> Tensor:
        raise NotImplementedError

    def fused(self) -> tuple[Tensor, Tensor]:
        """A and B of one pair: of twice the rank where something is taken off."""
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], 1)

    def weight(self) -> Tensor:
        change = self.B.double() @ self.A.double().flatten(1)
        return change if self.A0 is None or self.B0 is None else change - self.B0.double() @ self.A0.double().flatten(1)


class _Linear(_Pair):
    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.A, self.B = _pair(base, (rank, base.in_features), (base.out_features, rank))

    def through(self, x: Tensor, base: nn.Linear, A: Tensor, B: Tensor) -> Tensor:  # (..., I)
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))  # (..., O)


class _Conv(_Pair):
    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.A, self.B = _pair(base, (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank))

    def through(self, x: Tensor, base: nn.Conv2d, A: Tensor, B: Tensor) -> Tensor:  # (B, I, H, W)
        low = base._conv_forward(x, A.to(x.dtype), None)  # (B, R, H', W'), the base's stride and padding
        return F.conv2d(low, B.to(x.dtype)[:, :, None, None])  # (B, O, H', W')


class _Parts(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, parts: str) -> None:
        super().__init__()
        self.parts = parts
        n = len(parts)
        self.A, self.B = _pair(base, (n * rank, base.in_features), (n, base.out_features // 3, rank))

    def forward(self, x: Tensor, _: nn.Linear, scale: float | Tensor) -> Tensor:  # (..., I)
        low = F.linear(x, (scale * self.A).to(x.dtype)).chunk(len(self.parts), -1)  # n of (..., R)
        change = {part: F.linear(a, b.to(x.dtype)) for part, a, b in zip(self.parts, low, self.B, strict=True)}
        return _rows(change)  # (..., O)

    def fused(self) -> tuple[Tensor, Tensor]:
        """One pair of n times the rank: each part's B in its own rows and columns."""
        empty = self.B.new_zeros(self.B.shape[1], 0)
        blocks = dict(zip(self.parts, self.B, strict=True))
        return self.A, torch.block_diag(*(blocks.get(part, empty) for part in "qkv"))

    def weight(self) -> Tensor:
        pairs = zip(self.parts, self.A.double().chunk(len(self.parts)), self.B.double(), strict=True)
        return _rows({part: (b @ a).T for part, a, b in pairs}).T


def _rows(change: dict[str, Tensor]) -> Tensor:
    """The parts beside one another along the last axis, zeros for those that are not there."""
    nothing = torch.zeros_like(next(iter(change.values())))
    return torch.cat([change.get(part, nothing) for part in "qkv"], -1)


class _Depthwise(nn.Module):
    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__()
        height, width = base.kernel_size
        self.A, self.B = _pair(base, (rank, height * width), (base.out_channels, rank))

    def forward(self, x: Tensor, base: nn.Conv2d, scale: float | Tensor) -> Tensor:  # (B, O, H, W)
        weight = (self.B @ (scale * self.A)).view(base.weight.shape)  # (O, 1, k, k)
        return base._conv_forward(x, weight.to(x.dtype), None)  # (B, O, H', W')

    def weight(self) -> Tensor:
        return self.B.double() @ self.A.double()
