"""SSF (Lian et al. 2022, arXiv 2210.08823): after every linear map and norm, channels are scaled and shifted.

y = g * base(x) + b with g = 1, b = 0 at the start (the paper draws them near that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.peft.adapter import Adapter, plain
from cvpeft.peft.channels import (
    add_bias,
    along_channels,
    check_scalable,
    output_channels,
    scalable,
    scale_output,
)
from cvpeft.types import Site

__all__ = ["Ssf"]


class Ssf(Adapter):
    """Scales and shifts the output of a Linear, a convolution or a norm; 2 C parameters. By default all of them.

    Those whose tensors do not scale the output, such as standardised convolutions, are left out.
    Where the module has no bias there is no shift, so that the change folds into the tensors that are there.
    """

    accepts = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
    additive = True

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__(base, site)
        module = plain(base)
        check_scalable(self.method, module, site)
        channels, device = output_channels(module), module.get_parameter("weight").device
        self.scale = nn.Parameter(torch.ones(channels, device=device))
        has_bias = getattr(module, "bias", None) is not None
        self.shift = nn.Parameter(torch.zeros(channels, device=device)) if has_bias else None

    @classmethod
    def choose(cls, places: Sequence[tuple[nn.Module, Site]], settings: Mapping[str, Any]) -> list[Site]:
        return [site for module, site in places if isinstance(module, cls.accepts) and scalable(module)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        module, layout = plain(self.base), self.site.layout
        y = y * along_channels(self.scale, y, module, layout)
        return y if self.shift is None else y + along_channels(self.shift, y, module, layout)

    def merged(self) -> nn.Module:
        scaled = scale_output(self.base, self.scale)
        return scaled if self.shift is None else add_bias(scaled, self.shift.detach())
