"""Convpass (Jie & Deng 2022, arXiv 2207.07039): a narrow 3 x 3 convolution beside attention and mlp.

y = base(x) + s U f(K f(D x)): D narrows, K is a 3 x 3 convolution over the map, U = 0 at the start, f is GELU. Class
and register tokens have no neighbours: K's middle is all that they see.

Letters: B batch, C channels, m width of the bottleneck, H and W of the map.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, check_compound, check_scale, output_width
from cvpeft.peft.grid import middle_only, on_map
from cvpeft.types import Site

__all__ = ["Convpass"]


class Convpass(Adapter):
    """A convolutional bypass of attn, mlp or block; 2 m C + 9 m m + 2 m + C parameters. Stays in an exported graph.

    width: m. scale: s; the paper tunes it from 0.01 to 10.
    """

    targets = ("attn", "mlp")

    def __init__(self, base: nn.Module, site: Site, *, width: int = 8, scale: float = 1.0) -> None:
        super().__init__(base, site)
        check_compound(self.method, site)
        check_scale(self.method, scale)
        if width < 1:
            raise AdapterError("CONVPASS", f"width {width}", fix="set width to 1 or more")
        channels = output_width(base)
        self.scale = scale
        self.down, self.up = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.middle, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(next(base.parameters()).device)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base(x, *args, **kwargs)
        change = on_map(x.to(self.down.weight.dtype), self.site, self._bypass, self._alone)
        return y + (self.scale * change).to(y.dtype)

    def _bypass(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.up(F.gelu(self.middle(F.gelu(self.down(x)))))

    def _alone(self, x: Tensor) -> Tensor:  # (B, C, P, 1)
        return self.up(F.gelu(middle_only(self.middle, F.gelu(self.down(x)))))
