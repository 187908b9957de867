"""Methods that add to the weight of a Linear or Conv2d: y = W x + dW x, with dW built anew in every step.

They differ in how few numbers make dW. Adding to the output and not to W keeps a change that is small beside W exact
where W is held in bfloat16, and lets such methods stand upon one another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, plain
from cvpeft.types import Site

__all__ = [
    "WeightChange",
    "apply_weight",
    "check_plain",
    "check_rank",
    "drawn",
    "folded",
    "is_depthwise",
    "matrix_shape",
    "summed_products",
    "triplets",
]


class WeightChange(Adapter):
    """Base class of methods with a dW; one of them overrides `change` alone."""

    targets = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "neck", "head")
    accepts = (nn.Linear, nn.Conv2d)

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__(base, site)
        check_plain(self.method, base, site)

    def change(self) -> Tensor:
        """dW in float32, in the shape of the base's weight."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + apply_weight(plain(self.base), x, self.change().to(x.dtype)).to(y.dtype)

    def merged(self) -> nn.Module:
        return folded(self.base, self.change())


def check_plain(method: str, base: nn.Module, site: Site) -> None:
    """AdapterError where the module under `base` does more with its weight than its class says, or has groups.

    Depthwise convolutions are allowed.
    """
    module = plain(base)
    if type(module).forward not in {nn.Linear.forward, nn.Conv2d.forward}:
        what = f"{method} cannot take {site.path}, a {type(module).__name__} with a forward of its own"
        raise AdapterError(method.upper(), what)
    if isinstance(module, nn.Conv2d) and module.groups > 1 and not is_depthwise(module):
        what = f"{method} cannot take {site.path}, a Conv2d in {module.groups} groups"
        raise AdapterError(method.upper(), what, fix="choose dense or depthwise convolutions")


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def check_rank(method: str, rank: int, alpha: float | None = None) -> None:
    """AdapterError where a change of this rank and scale would be none."""
    if rank < 1 or (alpha is not None and alpha <= 0):
        what = f"rank {rank}" + ("" if alpha is None else f" with alpha {alpha:g}")
        raise AdapterError(method.upper(), what, why="nothing would be trained", fix="set rank from 1, alpha above 0")


def apply_weight(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What `base` would give for x with another weight and no bias."""
    if isinstance(base, nn.Conv2d):
        return base._conv_forward(x, weight, None)
    return F.linear(x, weight)


def folded(module: nn.Module, change: Tensor) -> nn.Module:
    """A copy of a plain module with `change` added to its weight."""
    module = copy.deepcopy(module)
    weight = module.get_parameter("weight")
    weight.data = (weight.double() + change.detach().double().view_as(weight)).to(weight.dtype)
    return module


def matrix_shape(base: nn.Module) -> tuple[int, int]:
    """(O, I k k): the weight of a Linear or Conv2d as one matrix."""
    weight = plain(base).get_parameter("weight")
    return weight.shape[0], weight[0].numel()


def drawn(base: nn.Module, *shape: int, zero: bool = False) -> nn.Parameter:
    """A float32 parameter on the base's device: zeros, or drawn as nn.Linear draws its weight."""
    tensor = torch.zeros(shape, device=plain(base).get_parameter("weight").device)
    return nn.Parameter(tensor if zero else nn.init.kaiming_uniform_(tensor, a=math.sqrt(5)))


def summed_products(pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A and B whose product is the weighted sum of the products B A, cut to their rank by its SVD.

    pairs: A (R, ...) and B (O, R), or of n parts of a qkv A (n R, I) and B (n, O, R); all of the same shapes.
    """
    A, B = pairs[0]
    parts = [(b if b.ndim == 3 else b[None], a) for a, b in pairs]
    products = [b @ a.reshape(len(b), b.shape[-1], -1) for b, a in parts]  # (n, O, I k k) each
    u, values, v = triplets(sum((w * p for w, p in zip(weights, products, strict=True)), torch.zeros(())), B.shape[-1])
    root = values.sqrt()
    return (root[..., None] * v).reshape(A.shape), (u * root[:, None]).view(B.shape)


def triplets(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular triplets of (..., O, I): (..., O, R), (..., R) and (..., R, I).

    Zeros stand in for those beyond the shorter side.
    """
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    rest = max(0, rank - values.shape[-1])
    return (
        F.pad(u[..., :rank], (0, rest)),
        F.pad(values[..., :rank], (0, rest)),
        F.pad(v[..., :rank, :], (0, 0, 0, rest)),
    )
