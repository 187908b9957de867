"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): of a frozen network only the biases are trained.

A bias is trained as what is added to the frozen one: y = base(x) + d, with d = 0 at the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, plain
from cvpeft.peft.channels import add_bias, along_channels
from cvpeft.types import Site

__all__ = ["BitFit"]


class BitFit(Adapter):
    """Trains the bias of a Linear, a convolution or a norm; C parameters. By default wherever there is one."""

    accepts = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
    additive = True

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__(base, site)
        if not _has_bias(plain(base)):
            raise AdapterError("BITFIT", f"bitfit cannot take {site.path}, which has no bias")
        self.shift = nn.Parameter(torch.zeros_like(plain(base).get_parameter("bias"), dtype=torch.float32))

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        return [site for module, site in places if isinstance(module, cls.accepts) and _has_bias(module)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + along_channels(self.shift, y, plain(self.base), self.site.layout)

    def merged(self) -> nn.Module:
        return add_bias(self.base, self.shift.detach())


def _has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None
