"""IA3 (Liu et al. 2022, arXiv 2205.05638): keys, values and the hidden channels of the mlp are scaled, l = 1 at first.

At `attn.qkv` the rows of k and v are scaled, at `mlp.fc2` its inputs, at a convolution its outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cvpeft.peft.adapter import Adapter, Foreign, plain
from cvpeft.peft.channels import along_channels, check_scalable, output_channels, scale_output
from cvpeft.types import Site

__all__ = ["Ia3"]


class Ia3(Adapter):
    """Scales channels of a Linear or Conv2d; one parameter each, 2 C at a fused qkv. Wants a high learning rate.

    At `mlp.fc2` (Linear or 1 x 1 convolution) inputs are scaled, elsewhere outputs, of a qkv the keys and values.
    queries: those of a fused qkv are scaled too, as HF peft does, which knows no parts of it.
    """

    targets = ("attn.qkv", "mlp.fc2", "conv_dw")
    accepts = (nn.Linear, nn.Conv2d)
    additive = True

    def __init__(self, base: nn.Module, site: Site, *, queries: bool = False) -> None:
        super().__init__(base, site)
        module, role = plain(base), site.role
        check_scalable(self.method, module, site)
        self.scales_inputs, self.skipped = role == "mlp.fc2", 0
        channels = module.get_parameter("weight").shape[1] if self.scales_inputs else output_channels(module)
        if role == "attn.qkv" and not queries:
            self.skipped = channels // 3
        device = module.get_parameter("weight").device
        self.scale = nn.Parameter(torch.ones(channels - self.skipped, device=device))

    def forward(self, x: Tensor) -> Tensor:
        scale, module = self._whole(), plain(self.base)
        if self.scales_inputs:
            y: Tensor = self.base(x * along_channels(scale, x, module, self.site.layout))
            return y
        y = self.base(x)
        return y * along_channels(scale, y, module, self.site.layout)

    def to_hf(self) -> Foreign:
        vector = self._whole()[None]
        if isinstance(plain(self.base), nn.Conv2d):
            vector = vector[..., None, None]
        elif not self.scales_inputs:
            vector = vector.T
        listed = ("feedforward_modules",)  # HF peft wants it empty rather than left out
        return Foreign("IA3", {"ia3_l": vector}, {listed[0]: []}, lists=listed if self.scales_inputs else ())

    @classmethod
    def from_hf(cls, stored: Foreign) -> dict[str, Any] | None:
        return {"queries": True} if stored.kind == "IA3" else None

    def merged(self) -> nn.Module:
        scale = self._whole().detach()
        if not self.scales_inputs:
            return scale_output(self.base, scale)
        module = copy.deepcopy(self.base)
        weight = module.get_parameter("weight")
        factor = scale.double().view(-1, *[1] * (weight.ndim - 2))
        weight.data = (weight.double() * factor).to(weight.dtype)
        return module

    def _whole(self) -> Tensor:
        return torch.cat([self.scale.new_ones(self.skipped), self.scale]) if self.skipped else self.scale
