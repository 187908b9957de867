"""RepAdapter (Luo et al. 2023, arXiv 2302.08106): a linear bottleneck before a Linear, which folds into its weight.

x becomes x + s (B (A x + a) + b) with B = 0 and b = 0 at the start; B works in groups. Folded: W (I + s B A), and the
bias W s (B a + b) more. A bias that the module has not cannot be folded into: there a and b are left out.

Letters: I inputs, m width of the bottleneck, g groups.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, check_scale, plain
from cvpeft.peft.channels import add_bias
from cvpeft.peft.weight_change import check_plain, drawn
from cvpeft.types import Site

__all__ = ["RepAdapter"]


class RepAdapter(Adapter):
    """A linear bottleneck before a Linear or a 1 x 1 convolution; I m + I m / g + m + I parameters.

    width: m, a multiple of groups. scale: s. groups: g, of which I is a multiple too.
    """

    targets = ("attn.qkv", "mlp.fc1")
    accepts = (nn.Linear, nn.Conv2d)

    def __init__(self, base: nn.Module, site: Site, *, width: int = 8, scale: float = 1.0, groups: int = 2) -> None:
        super().__init__(base, site)
        check_plain(self.method, base, site)
        check_scale(self.method, scale)
        module = plain(base)
        _check_one_by_one(module, site)
        inputs = module.get_parameter("weight").shape[1]
        if width < 1 or groups < 1 or width % groups or inputs % groups:
            what = f"width {width} and {inputs} channels in {groups} groups"
            raise AdapterError("REPADAPTER", what, fix="set groups to a divisor of both")
        self.scale, self.groups = scale, groups
        self.A = drawn(base, width, inputs)
        self.B = drawn(base, groups, inputs // groups, width // groups, zero=True)
        has_bias = module.bias is not None
        self.a = drawn(base, width, zero=True) if has_bias else None
        self.b = drawn(base, inputs, zero=True) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        way, shift = self._folded()
        if isinstance(plain(self.base), nn.Conv2d):
            change = F.conv2d(x, way.to(x.dtype)[:, :, None, None], None if shift is None else shift.to(x.dtype))
        else:
            change = F.linear(x, way.to(x.dtype), None if shift is None else shift.to(x.dtype))
        y: Tensor = self.base(x + change)
        return y

    def merged(self) -> nn.Module:
        way, shift = self._folded()
        module = copy.deepcopy(self.base)
        weight = module.get_parameter("weight")
        matrix = weight.detach().double().flatten(1)  # (O, I)
        weight.data = (matrix + matrix @ way.detach().double()).view_as(weight).to(weight.dtype)
        return module if shift is None else add_bias(module, matrix @ shift.detach().double())

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        """s B A as (I, I) and s (B a + b) as (I,)."""
        B = self.scale * torch.block_diag(*self.B)  # (I, m)
        if self.a is None or self.b is None:
            return B @ self.A, None
        return B @ self.A, B @ self.a + self.scale * self.b


def _check_one_by_one(module: nn.Module, site: Site) -> None:
    """A bias before a larger kernel is not seen by its padding, and a depthwise one would have to mix channels."""
    if isinstance(module, nn.Conv2d) and (module.kernel_size != (1, 1) or module.groups > 1):
        what = f"repadapter cannot take {site.path}, a convolution of {module.kernel_size} in {module.groups} groups"
        raise AdapterError("REPADAPTER", what, fix="choose Linear or dense 1 x 1 convolutions")
