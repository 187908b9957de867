"""Bottleneck adapters: D narrows to a few channels, U widens back, U = 0 at the start.

Sequential, h + s U f(D h) on a module's output h: after attention and mlp (houlsby: Houlsby et al. 2019, arXiv
1902.00751) or after the mlp alone (pfeiffer: Pfeiffer et al. 2021, arXiv 2005.00247). Parallel, m(x) + s U f(D x)
beside the mlp m (AdaptFormer: Chen et al. 2022, arXiv 2205.13535). Neither folds into weights: f is not linear.

Letters: C channels, m width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvpeft.errors import AdapterError
from cvpeft.peft.adapter import Adapter, check_compound, check_scale, output_width
from cvpeft.types import Layout, Site

__all__ = ["Bottleneck"]


class Bottleneck(Adapter):
    """A bottleneck at attn, mlp or block; 2 m C + m + C parameters.

    place: what is wrapped by default and how. width: channels of the bottleneck.
    scale: s; empty: 0.1 for parallel, as in AdaptFormer, else 1. dropout: inside the bottleneck, in training.
    gated: s is multiplied by a trained gate, sigmoid(0) at the start.
    """

    targets = ("attn", "mlp")

    def __init__(
        self,
        base: nn.Module,
        site: Site,
        *,
        place: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer",
        width: int = 64,
        activation: Literal["relu", "gelu"] = "relu",
        scale: float | None = None,
        dropout: float = 0.0,
        gated: bool = False,
    ) -> None:
        super().__init__(base, site)
        check_compound(self.method, site)
        if width < 1 or not 0 <= dropout < 1:
            raise AdapterError("ADAPTER", f"width {width} with dropout {dropout}", fix="width from 1, dropout below 1")
        self.parallel = place == "parallel"
        self.scale = (0.1 if self.parallel else 1.0) if scale is None else scale
        check_scale(self.method, self.scale)
        channels = output_width(base)
        self.down = _per_position(site.layout, channels, width)
        self.act = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.up = _per_position(site.layout, width, channels)
        self.gate = nn.Parameter(torch.zeros(())) if gated else None
        nn.init.zeros_(self.down.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]
        self.to(next(base.parameters()).device)

    @classmethod
    def roles(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.targets if settings.get("place") == "houlsby" else ("mlp",)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base(x, *args, **kwargs)
        h = x if self.parallel else y
        narrow = self.dropout(self.act(self.down(h.to(self.down.weight.dtype))))
        scale = self.scale if self.gate is None else self.scale * self.gate.sigmoid()
        return y + (scale * self.up(narrow)).to(y.dtype)


def _per_position(layout: Layout, inputs: int, outputs: int) -> nn.Linear | nn.Conv2d:
    """A linear map of the channels, the same at every position; drawn as nn.Linear draws its weight."""
    return nn.Conv2d(inputs, outputs, 1) if layout == "NCHW" else nn.Linear(inputs, outputs)
