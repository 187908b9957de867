"""LoRA (Hu et al. 2021, arXiv 2106.09685): y = W x + s B A x with s = alpha / rank and B = 0 at the start.

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

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, plain
from cvpeft.types import Site

__all__ = ["Lora"]

RANKS = {"default": 8, "large": 16, "small": 4, "ultra_small": 1}


class Lora(Adapter):
    """A low-rank change of a Linear or Conv2d.

    preset: default is rank 8, large 16, small 4, ultra_small 1; each with alpha = 2 rank.
    rank: takes the preset's place. alpha: the change is scaled by alpha / rank; empty: 2 rank.
    dropout: of the input of A, in training.
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
    ) -> None:
        super().__init__(base, site)
        rank = RANKS[preset] if rank is None else rank
        if rank < 1 or not 0 <= dropout < 1:
            raise AdapterError("LORA", f"rank {rank} with dropout {dropout}", fix="rank from 1, dropout from 0 below 1")
        self.scale = 2.0 if alpha is None else alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.change = _change(plain(base), site, rank, "" if qkv == "fused" else qkv)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        change: Tensor = self.change(self.dropout(x), plain(self.base), self.scale)
        return y + change.to(y.dtype)

    def merged(self) -> nn.Module:
        module = copy.deepcopy(self.base)
        weight = module.get_parameter("weight")
        weight.data = (weight.double() + self.scale * self.change.weight().view_as(weight)).to(weight.dtype)
        return module


def _change(base: nn.Module, site: Site, rank: int, parts: str) -> _Linear | _Parts | _Conv | _Depthwise:
    if isinstance(base, nn.Linear) and type(base).forward is nn.Linear.forward:
        return _Parts(base, rank, parts) if parts and site.role == "attn.qkv" else _Linear(base, rank)
    if isinstance(base, nn.Conv2d) and type(base).forward is nn.Conv2d.forward:
        if base.groups == 1:
            return _Conv(base, rank)
        if base.groups == base.in_channels == base.out_channels:
            return _Depthwise(base, rank)
        found = f"lora cannot take {site.path}, a Conv2d in {base.groups} groups"
        raise AdapterError("LORA", found, fix="choose dense or depthwise convolutions")
    raise AdapterError("LORA", f"lora cannot take {site.path}, a {type(base).__name__} with a forward of its own")


def _pair(base: nn.Linear | nn.Conv2d, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[nn.Parameter, nn.Parameter]:
    """A drawn as nn.Linear draws its weight, B zero; float32 whatever the base is held in."""
    A = nn.Parameter(torch.empty(a, device=base.weight.device))
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A, nn.Parameter(torch.zeros(b, device=base.weight.device))


# Each of the four computes its change of the output (forward) and of the weight, the latter without the scale. A and B
# follow the input's type, so that they serve under autocast and beside a base that is held in bfloat16. The scale is
# multiplied into A: that is a small tensor, and the output's change a large one, in the backward pass too.


class _Linear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.A, self.B = _pair(base, (rank, base.in_features), (base.out_features, rank))

    def forward(self, x: Tensor, _: nn.Linear, scale: float) -> Tensor:  # (..., I)
        return F.linear(F.linear(x, (scale * self.A).to(x.dtype)), self.B.to(x.dtype))  # (..., O)

    def weight(self) -> Tensor:
        return self.B.double() @ self.A.double()


class _Parts(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, parts: str) -> None:
        super().__init__()
        self.parts = parts
        n = len(parts)
        self.A, self.B = _pair(base, (n * rank, base.in_features), (n, base.out_features // 3, rank))

    def forward(self, x: Tensor, _: nn.Linear, scale: float) -> Tensor:  # (..., I)
        low = F.linear(x, (scale * self.A).to(x.dtype)).chunk(len(self.parts), -1)  # n of (..., R)
        change = {part: F.linear(a, b.to(x.dtype)) for part, a, b in zip(self.parts, low, self.B, strict=True)}
        return _rows(change)  # (..., O)

    def weight(self) -> Tensor:
        pairs = zip(self.parts, self.A.double().chunk(len(self.parts)), self.B.double(), strict=True)
        return _rows({part: (b @ a).T for part, a, b in pairs}).T


def _rows(change: dict[str, Tensor]) -> Tensor:
    """The parts beside one another along the last axis, zeros for those that are not there."""
    nothing = torch.zeros_like(next(iter(change.values())))
    return torch.cat([change.get(part, nothing) for part in "qkv"], -1)


class _Conv(nn.Module):
    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.A, self.B = _pair(base, (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank))

    def forward(self, x: Tensor, base: nn.Conv2d, scale: float) -> Tensor:  # (B, I, H, W)
        low = base._conv_forward(x, (scale * self.A).to(x.dtype), None)  # (B, R, H', W'), the base's stride and padding
        return F.conv2d(low, self.B.to(x.dtype)[:, :, None, None])  # (B, O, H', W')

    def weight(self) -> Tensor:
        return self.B.double() @ self.A.double().flatten(1)


class _Depthwise(nn.Module):
    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__()
        height, width = base.kernel_size
        self.A, self.B = _pair(base, (rank, height * width), (base.out_channels, rank))

    def forward(self, x: Tensor, base: nn.Conv2d, scale: float) -> Tensor:  # (B, O, H, W)
        weight = (self.B @ (scale * self.A)).view(base.weight.shape)  # (O, 1, k, k)
        return base._conv_forward(x, weight.to(x.dtype), None)  # (B, O, H', W')

    def weight(self) -> Tensor:
        return self.B.double() @ self.A.double()
