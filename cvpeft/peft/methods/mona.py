"""Mona (Yin et al. 2024, arXiv 2408.08345): a bottleneck that looks at its neighbours at three scales.

After a block: y + U f(z + P z), z = t + mean(DW3 t, DW5 t, DW7 t), t = D (g norm(y) + h y). DWk is a depthwise k x k
convolution, P a 1 x 1 one, f GELU; g = 1e-6 and h = 1 at the start. The authors draw U at random; here it is 0, so that
training starts at the pretrained model. They have a second one after each attention, where no module ends that an
Adapter could take: one a block it is here.

Letters: B batch, C channels, m width of the bottleneck, H and W of the map.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, check_compound, output_width
from cvpeft.peft.grid import middle_only, on_map
from cvpeft.types import Site

__all__ = ["Mona"]

KERNELS = (3, 5, 7)


class Mona(Adapter):
    """A multi-scale bottleneck after a block; 2 m C + m m + 87 m + 3 C parameters. Stays in an exported graph.

    width: m. dropout: inside the bottleneck, in training.
    """

    targets = ("block",)

    def __init__(self, base: nn.Module, site: Site, *, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__(base, site)
        check_compound(self.method, site)
        if width < 1 or not 0 <= dropout < 1:
            raise AdapterError("MONA", f"width {width} with dropout {dropout}", fix="width from 1, dropout below 1")
        channels = output_width(base)
        self.normed, self.straight = nn.Parameter(torch.full((channels,), 1e-6)), nn.Parameter(torch.ones(channels))
        self.down, self.up = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        self.scales = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in KERNELS)
        self.project, self.dropout = nn.Conv2d(width, width, 1), nn.Dropout(dropout)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]
        self.to(next(base.parameters()).device)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base(x, *args, **kwargs)
        change = on_map(y.to(self.down.weight.dtype), self.site, self._change, self._alone)
        return y + change.to(y.dtype)

    def _change(self, y: Tensor) -> Tensor:  # (B, C, H, W)
        t = self._narrow(y)
        near = torch.stack([scale(t) for scale in self.scales]).sum(0)
        return self._widen(t + near / len(KERNELS))

    def _alone(self, y: Tensor) -> Tensor:
        """Tokens without neighbours: each kernel's middle."""
        t = self._narrow(y)
        middle = [middle_only(cast(nn.Conv2d, scale), t) for scale in self.scales]
        return self._widen(t + torch.stack(middle).sum(0) / len(KERNELS))

    def _narrow(self, y: Tensor) -> Tensor:
        normed = F.layer_norm(y.permute(0, 2, 3, 1), y.shape[1:2]).permute(0, 3, 1, 2)
        mixed = self.normed[:, None, None] * normed + self.straight[:, None, None] * y
        return self.down(mixed)

    def _widen(self, z: Tensor) -> Tensor:
        return self.up(self.dropout(F.gelu(z + self.project(z))))
